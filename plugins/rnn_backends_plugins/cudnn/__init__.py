"""``cudnn``: torch's native fused kernel (cuDNN on CUDA, oneDNN and ATen on CPU), with resets at little cost.

The kernel takes dense rows without resets. plan.py packs the sequences into rows; flush.py runs them.
"""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np
import torch
from rnn_backends import LayerWeights, LSTMBackend, LSTMSpec, State, UnsupportedError, hookimpl
from rnn_backends.authoring import (
    SurveyedLayer,
    are_exact,
    cell,
    check_call,
    fixed_sizes,
    materialized,
    reset,
    unreadable,
)
from torch import Tensor

from .. import _torch
from . import kernel, target
from .costs import Costs, costs_of
from .device import layer_on_device, survey
from .flush import fused, gather_steps, is_clean, run_plan
from .functions import scatter_rows
from .inputs import is_one_state
from .plan import Plan, Sequences, make_plan

contract_version = 1

_ONE_CALL = "torch.lstm is one call into a fused kernel, and Dynamo does not trace it"
_REASON = "the plan is made from the resets' positions, which a traced graph does not know"


@torch.compiler.disable(reason=_REASON)  # type: ignore[untyped-decorator]
def layer(weights: LayerWeights, x: Tensor, entry: State, starts: Tensor, every_end: bool) -> State:
    """A :data:`~rnn_backends.contract.LayerFunction`; without ``every_end``, ``c`` is right at ``T - 1`` only."""
    if not check_call("cudnn", weights, x, entry, starts):
        why = unreadable((x, starts, *entry, *weights))
        if why is not None:
            raise UnsupportedError("cudnn", "a reset mask over time here", why, ["vmap"])
        x, entry = _materialized(x, entry)
    if target.on_cuda(x):
        return layer_on_device(weights, x, entry, starts, every_end)
    T, B = starts.shape
    where = target.read(starts)
    if not where[1:].any():  # every row is one sequence: nothing to plan
        y, c = fused(_params(weights), x, State(entry.h[0], entry.c[0]), weights.b_ih is not None)
        return State(y, c.expand(T, B, -1))
    seqs = Sequences.of(where)
    must_head = _must_head(weights, entry, seqs, every_end)
    key, costs = where.tobytes(), _costs(weights, x)
    plan = _cached_plan(key, T, B, must_head.tobytes(), every_end, costs)
    y, tails, probed = run_plan(plan, weights, x, _states_at(entry, plan.heads, B))
    if not must_head.all() and not is_clean(y, plan):
        plan = _cached_plan(key, T, B, np.ones_like(must_head).tobytes(), every_end, costs)
        y, tails, probed = run_plan(plan, weights, x, _states_at(entry, plan.heads, B))
    h = gather_steps(y, plan).view(T, B, -1)
    return State(h, _cell_states(plan, tails, probed, T, B, every_end))


def _must_head(weights: LayerWeights, entry: State, seqs: Sequences, every_end: bool) -> np.ndarray:
    """The sequences that must be the first of their row: those that may start from a state other than zero. These are
    all sequences if a cell state is required that no PROBE can show: under a projection, which is not invertible, and
    in 16 bits, where the biases do not cancel; and if a value may leak through a cut.
    """
    if every_end and (weights.w_hr is not None or weights.w_ih.dtype.itemsize < 4):
        return np.ones(len(seqs.row), bool)
    if torch.is_grad_enabled() and (entry.h.requires_grad or entry.c.requires_grad):
        return np.ones(len(seqs.row), bool)
    if is_one_state(entry):
        return np.full(len(seqs.row), bool(torch.cat([v[0, 0] for v in entry]).any()))
    at = torch.from_numpy(seqs.start_index).to(entry.h.device)
    h, c = _states_at(entry, at, seqs.B)
    return target.read(h.any(-1) | c.any(-1))


def _states_at(entry: State, index: Tensor, B: int) -> State:
    if is_one_state(entry):
        return State(*(v[0, :1].expand(len(index), -1) for v in entry))
    t, b = index // B, index % B
    return State(entry.h[t, b], entry.c[t, b])


def _cell_states(plan: Plan, tails: Tensor, probed: Tensor, T: int, B: int, every_end: bool) -> Tensor:
    """``[T, B, H]``: the cell states at their steps; a view of the last ones if only those are required."""
    if every_end:
        at = torch.cat([plan.tails, plan.probed])
        return scatter_rows(torch.cat([tails, probed]), at, T * B).view(T, B, -1)
    return tails.index_select(0, plan.last).expand(T, B, -1)


@lru_cache(maxsize=16)  # epochs over one rollout see the same resets again
def _cached_plan(starts: bytes, T: int, B: int, must_head: bytes, every_end: bool, costs: Costs) -> Plan:
    seqs = Sequences.of(np.frombuffer(starts, bool).reshape(T, B))
    with _torch.outside_transforms(), torch.inference_mode(False):  # outside of all modes, because the plan is cached
        return make_plan(seqs, np.frombuffer(must_head, bool), every_end, costs)


def _costs(w: LayerWeights, x: Tensor) -> Costs:
    fused = kernel.is_fused(x.dtype, w.w_hr is not None)
    return costs_of(w.w_ih.shape[0] // 4, x.dtype, x.device.type, fused, torch.is_grad_enabled())


def _params(w: LayerWeights) -> list[Tensor]:
    return [v for v in w if v is not None]


@torch.compiler.disable(reason=_ONE_CALL)  # type: ignore[untyped-decorator]
def stack(weights: list[LayerWeights], x: Tensor, state: State, spec: LSTMSpec) -> tuple[Tensor, State]:
    """All layers in one call, without resets and dropout: a :data:`~rnn_backends.contract.StackFunction`."""
    exact = True
    for w in weights:
        exact &= check_call("cudnn", w, x, state)
    if not exact:
        why = fixed_sizes(x)
        if why is not None:
            raise UnsupportedError("cudnn", "make_fx with fixed sizes", why, ["vmap"])
        x, state = _materialized(x, state)
    flat = [v for w in weights for v in _params(w)]
    return kernel.run(flat, x, state, spec.bias, spec.num_layers, spec.bidirectional)


def step(weights: LayerWeights, x: Tensor, state: State) -> State:
    """One step: a :data:`~rnn_backends.contract.StepFunction`."""
    return _step(weights, x, state, check_call("cudnn", weights, x, state))


def act(weights: LayerWeights, x: Tensor, state: State, is_init: Tensor) -> State:
    """One step with resets: a :data:`~rnn_backends.contract.ActFunction`."""
    exact = check_call("cudnn", weights, x, state, is_init)
    return _step(weights, x, reset(state, is_init, exact), exact)


def _step(w: LayerWeights, x: Tensor, state: State, exact: bool) -> State:
    """``exact``: whether the weights are known to be plain tensors with memory."""
    if w.w_hr is None and (exact or torch.compiler.is_compiling() or are_exact((x, *state, *w))):
        if not exact:
            x, state = _materialized(x, state)
        return kernel.step(_params(w), x, state, w.b_ih is not None)
    linear = torch.nn.functional.linear
    return cell(linear(x, w.w_ih, w.b_ih) + linear(state.h, w.w_hh, w.b_hh), state.c, w.w_hr)


def _materialized(x: Tensor, state: State) -> tuple[Tensor, State]:
    if torch.compiler.is_compiling():
        return x, state
    return materialized(x), State(*map(materialized, state))


def rejects(spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> str | None:
    """Reject devices without tests, a torch without its fused kernel, and threads that oneDNN cannot use."""
    if device.type not in ("cpu", "cuda", "meta"):
        return f"it is made for cpu and cuda, not {device.type}"
    if not _torch.fused_lstm_exists():
        return f"it calls torch.lstm and torch.lstm_cell, which torch {torch.__version__} does not have"
    return kernel.untrusted(dtype, spec.proj_size > 0) if device.type == "cpu" else None


@hookimpl
def lstm_backend() -> LSTMBackend:
    """The backend: resets by flush steps; dense rows and stacks by torch's own call."""
    ends, last = (SurveyedLayer(partial(layer, every_end=every_end), survey) for every_end in (True, False))
    return LSTMBackend("cudnn", ends, rejects, step=step, act=act, stack=stack, layer_last=last)
