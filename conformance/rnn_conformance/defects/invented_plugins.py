"""The fourth round, half of it: patches of the plugins' own code, by somebody who had read it and not the laws' code.

A law is named where one was written, or widened, after the first run, which the defect had survived.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from rnn_backends import State
from rnn_backends_plugins import compile as compile_plugin
from rnn_backends_plugins import cudnn
from rnn_backends_plugins.compile import backward as compile_backward
from rnn_backends_plugins.compile import forward as compile_forward
from rnn_backends_plugins.compile import ops as compile_ops
from rnn_backends_plugins.compile.layer import Layer
from rnn_backends_plugins.compile.products import Product
from rnn_backends_plugins.cudnn import kernel as cudnn_kernel
from rnn_backends_plugins.cudnn.costs import Costs
from rnn_backends_plugins.cudnn.plan import Plan, Sequences, make_plan
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from .planting import Patch, in_core

COMPILE, CUDNN = compile_plugin.lstm_backend(), cudnn.lstm_backend()


@in_core("sizes_of_training", on=COMPILE)
def packed_weights_kept_by_address_and_version() -> list[Patch]:
    """compile keeps packed weights by address and version, which an edit through .data does not change.

    A soft update of a target network writes ``.data``; a new module may lie where an old one lay. Only where weights
    are packed at all: from a million multiplications on, in float32 on a CPU.
    """
    versions: dict[int, int | None] = {}
    kept: OrderedDict[Any, Any] = OrderedDict()
    run_forward = compile_ops.run_forward

    def noting(found: Layer, keep: bool) -> Any:
        for w in (found.w_ih, found.w_hh):
            versions[w.data_ptr()] = None if w.is_inference() else w._version
        return run_forward(found, keep)

    class Kept(Product):
        def __init__(self, matrix: Tensor, rows: int) -> None:
            version = versions.get(matrix.data_ptr())
            key = (matrix.data_ptr(), tuple(matrix.shape), matrix.stride(), rows, version)
            if version is not None and key in kept:
                self._matrix, self._packed = matrix, kept[key]
                return
            super().__init__(matrix, rows)
            if version is not None and self._packed is not None:
                kept[key] = self._packed
                if len(kept) > 16:
                    kept.popitem(last=False)

    return [Patch(compile_ops, "run_forward", noting), Patch(compile_forward, "Product", Kept)]


@in_core("long_rows_in_bfloat16", on=COMPILE)
def half_gradients_are_summed_in_half() -> list[Patch]:
    """compile adds up the chunks of a weight's gradient in the weight's own dtype, so bfloat16 loses small parts."""

    class Sums(compile_backward._Sums):
        @property
        def sum_dtype(self) -> torch.dtype:
            return self.run.c.dtype

        @sum_dtype.setter
        def sum_dtype(self, wanted: torch.dtype) -> None:
            pass

    return [Patch(compile_backward, "_Sums", Sums)]


@in_core("expanded_states_are_read", on=CUDNN)
def one_state_is_told_by_the_stride_of_time() -> list[Patch]:
    """cudnn takes stored states expanded over time for one state of all rows: every start begins from row 0's."""

    def is_one_state(entry: State) -> bool:
        return all(v.stride()[0] == 0 for v in entry)

    return [Patch(cudnn, "is_one_state", is_one_state)]


@in_core(on=CUDNN)
def plan_is_kept_without_what_it_was_asked_for() -> list[Patch]:
    """cudnn's plan for last states only is found again where every end's are asked for: their c comes out as zero."""
    plans: OrderedDict[Any, Plan] = OrderedDict()

    def cached_plan(
        starts: bytes, T: int, B: int, must_head: bytes, every_end: bool, device: torch.device, costs: Costs, at: int
    ) -> Plan:
        key = (starts, T, B, must_head, device, costs, at)
        if key not in plans:
            seqs = Sequences.of(np.frombuffer(starts, bool).reshape(T, B))
            with temporarily_clear_interpreter_stack(), torch.inference_mode(False):
                plans[key] = make_plan(seqs, np.frombuffer(must_head, bool), every_end, costs).to(device)
            if len(plans) > 16:
                plans.popitem(last=False)
        return plans[key]

    return [Patch(cudnn, "_cached_plan", cached_plan)]


@in_core("sizes_of_training_in_both_directions", on=CUDNN)
def both_directions_run_in_pieces() -> list[Patch]:
    """cudnn cuts a large bidirectional training call into pieces of time: the reverse direction starts anew in each."""

    def run(
        params: list[Tensor], x: Tensor, state: State, bias: bool, layers: int = 1, bidirectional: bool = False
    ) -> tuple[Tensor, State]:
        T, train = x.shape[0], torch.is_grad_enabled()
        pieces = cudnn_kernel._pieces(x, state, layers)
        ys = []
        for k in range(pieces):
            part = x[T * k // pieces : T * (k + 1) // pieces] if pieces > 1 else x
            y, h, c = torch.lstm(part, tuple(state), params, bias, layers, 0.0, train, bidirectional, False)
            ys.append(y)
            state = State(h, c)
        return torch.cat(ys) if pieces > 1 else ys[0], state

    return [Patch(cudnn_kernel, "run", run)]
