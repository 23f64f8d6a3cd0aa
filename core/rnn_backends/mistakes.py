"""The common mistakes around a recurrent policy: their signs in data, and the line that corrects each.

Every function here reads only entries of TensorDicts. :mod:`rnn_backends.testing` provides the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

from .module import LSTMModule

# With CANNOT_ACT the policy cannot act at all; with NOT_CARRIED the states of a rollout give no further information.
CANNOT_ACT = frozenset({"no InitTracker", "is_init of the wrong shape", "recurrent mode while acting"})
NOT_CARRIED = frozenset({"no primer", "hidden keys not carried"})


class Mistake(NamedTuple):
    """One mistake: its name, its sign in the data, the place to change and the line to write there.

    Args:
        name: one of the names in ``docs/troubleshooting.md``, the same from version to version.
        seen: a sentence with the keys, shapes and steps.
        where: ``"environment"``, ``"policy"`` or ``"data"``: which of the three to change.
        line: Python to write there.
    """

    name: str
    seen: str
    where: str
    line: str

    def __str__(self) -> str:
        return f"{self.name}: {self.seen}\n    change the {self.where}: {self.line}"


def in_policy(module: LSTMModule) -> Iterator[Mistake]:
    """The mistakes of a module before it acts, in any environment."""
    if module.lstm.bidirectional:
        yield Mistake(
            "bidirectional while acting",
            "the LSTM is bidirectional: while acting its reverse direction sees one step, in training the whole row",
            "policy",
            "LSTMModule(..., bidirectional=False)",
        )
    if module.recurrent_mode:
        yield Mistake(
            "recurrent mode while acting",
            "the module is in recurrent mode, and takes the last batch dimension of a step for time",
            "policy",
            "LSTMModule(..., default_recurrent_mode=False), and set_recurrent_mode(True) around the loss alone",
        )
    if module.training and module.lstm.dropout and module.lstm.num_layers > 1:
        yield Mistake(
            "dropout while acting",
            f"dropout={module.lstm.dropout} is active, and draws other masks in training than while acting",
            "policy",
            "policy.eval()  # while acting and in the loss, or dropout=0.0",
        )
    if len(module.out_keys) < 3:
        yield Mistake(
            "hidden keys not carried",
            f"module.select_out_keys left {list(module.out_keys)}: the states are not written",
            "policy",
            "module.reset_out_keys()  # for the module that acts",
        )
        return
    for read, written in zip(module.in_keys[1:3], module.out_keys[1:3], strict=True):
        if written != _next(read):
            yield Mistake(
                "hidden keys not carried",
                f"the state is read from {read!r} and written to {written!r}: the next step reads another key",
                "policy",
                f"LSTMModule(..., out_keys={[module.out_keys[0], *map(_next, module.in_keys[1:3])]})",
            )
            return


def in_reset(module: LSTMModule, reset: TensorDictBase) -> Iterator[Mistake]:
    """The mistakes in the first TensorDict of an environment: a wrong mask, missing states."""
    yield from _in_mask(module, reset, "environment")
    missing = [key for key in module.in_keys[1:3] if reset.get(key, None) is None]
    if missing:
        yield Mistake(
            "no primer",
            f"env.reset() has no {' and no '.join(map(repr, missing))}: every step starts from a zero state",
            "environment",
            "env.append_transform(module.make_tensordict_primer())",
        )


def _in_mask(module: LSTMModule, td: TensorDictBase, where: str) -> Iterator[Mistake]:
    key, batch = module.in_keys[3], tuple(td.batch_size)
    mask = td.get(key, None)
    if mask is None:
        tracker = "InitTracker()" if key == "is_init" else f"InitTracker(init_key={key!r})"
        line = f"env.append_transform({tracker})" if where == "environment" else f"data.select(..., {key!r})  # keep it"
        yield Mistake(
            "no InitTracker",
            f"there is no {key!r}: nothing tells the module where an episode starts",
            where,
            line,
        )
    elif mask.dtype != torch.bool:
        yield Mistake(
            "is_init of the wrong shape",
            f"{key!r} is {mask.dtype}, and has to be bool",
            where,
            f"td[{key!r}] = td[{key!r}].bool()",
        )
    elif mask.shape not in (batch, (*batch, 1)):
        yield Mistake(
            "is_init of the wrong shape",
            f"{key!r} has shape {tuple(mask.shape)} where the batch size is {batch}: {(*batch, 1)} is needed",
            where,
            "TransformedEnv(batched_env, InitTracker())  # last, and outside of the batched environment"
            if where == "environment"
            else f"data[{key!r}] = data[{key!r}].reshape(*data.batch_size, 1)",
        )


def in_result(module: LSTMModule, result: TensorDictBase) -> Iterator[Mistake]:
    """The mistake in the policy's result for one step: missing states."""
    dropped = [_next(key) for key in module.in_keys[1:3] if result.get(_next(key), None) is None]
    if dropped and list(map(_next, module.in_keys[1:3])) == list(module.out_keys[1:3]):
        yield Mistake(
            "hidden keys not carried",
            f"the LSTMModule writes {' and '.join(map(repr, dropped))}, and the policy's result does not have it",
            "policy",
            f"policy.select_out_keys(..., {', '.join(map(repr, module.out_keys[1:3]))})",
        )


def in_calls(calls: Mapping[LSTMModule, int], steps: int) -> Iterator[Mistake]:
    """The mistake of LSTMs that overwrite each other's state.

    Args:
        calls: the modules that acted, with the number of calls of each.
        steps: the number of steps that they acted for.
    """
    written: dict[NestedKey, int] = {}
    for module, count in calls.items():
        for key in module.out_keys[1:3]:
            written[key] = written.get(key, 0) + count // steps
    for key, times in written.items():
        if times > 1:
            yield Mistake(
                "hidden keys shared",
                f"{key!r} is written {times} times in each step: LSTMs of the policy overwrite each other's state",
                "policy",
                "LSTMModule(..., in_keys=[..., 'h2', 'c2'], out_keys=[..., ('next', 'h2'), ('next', 'c2')])",
            )
            return


def in_rollout(
    module: LSTMModule, acted: TensorDictBase, written: Sequence[Tensor], transforms: Sequence[Any]
) -> Iterator[Mistake]:
    """The mistakes in a new rollout ``[*batch, T]``: states that do not arrive, starts that are not marked.

    ``written`` has the two states that the module returned at each step, before any transform.
    """
    starts, done, time = flags(acted, module.in_keys[3]), flags(acted, ("next", "done")), acted.ndim - 1
    if starts is None:
        return
    if done is not None and (unmarked := done[..., :-1] & ~starts[..., 1:]).any():
        step = int(unmarked.nonzero()[0][-1])
        yield Mistake(
            "is_init not true after done",
            f"an episode ends at step {step}, and {module.in_keys[3]!r} is false at step {step + 1}: the next episode "
            "starts with the state of the one before",
            "environment",
            "TransformedEnv(env, InitTracker())  # outside of everything that resets the environment by itself",
        )
    T = acted.batch_size[-1]
    for key, state in zip(module.in_keys[1:3], written, strict=False):
        read = acted.get(key, None)
        if read is None:
            continue
        lost = ~same(read.narrow(time, 1, T - 1), state.narrow(time, 0, T - 1), time + 1) & ~starts[..., 1:]
        if done is not None:
            lost = lost & ~done[..., :-1]
        if lost.any():
            yield _reset_by(transforms, key, int(lost.nonzero()[0][-1]) + 1)
            return


def _reset_by(transforms: Sequence[Any], key: NestedKey, step: int) -> Mistake:
    """The mistake that a state at ``step`` differs from the written one, with the transform that has its key."""
    hidden = {key, _next(key)}
    names = [type(t).__name__ for t in transforms if hidden & {*_keys(t, "in_keys"), *_keys(t, "out_keys")}]
    primers = [name for name in names if name == "TensorDictPrimer"]
    others = [name for name in names if name != "TensorDictPrimer"]
    if others:
        cause, line = others[0], f"{others[0]}(in_keys=[...])  # without {key!r}"
    elif len(primers) > 1:
        cause, line = f"{len(primers)} primers", "one module.make_tensordict_primer() for each LSTMModule"
    else:
        cause = "a transform"
        line = f"env.transform = Compose(...)  # without the transform that writes {_next(key)!r}"
    seen = (
        f"{key!r} at step {step} is not the state that step {step - 1} wrote, and no episode starts: {cause} changes it"
    )
    return Mistake("states reset by a transform", seen, "environment", line)


def in_data(module: LSTMModule, data: TensorDictBase) -> Iterator[Mistake]:
    """The mistakes in stored rows ``[*batch, T]`` that show without computation."""
    yield from _in_mask(module, data, "data")
    missing = [key for key in module.in_keys[1:3] if data.get(key, None) is None]
    if missing:
        yield Mistake(
            "hidden keys not carried",
            f"the data has no {' and no '.join(map(repr, missing))}: each row would start from a zero state",
            "data",
            f"data.select(..., {', '.join(map(repr, module.in_keys[1:3]))})  # store the states, too",
        )


def in_order(module: LSTMModule, data: TensorDictBase, written: Tensor, atol: float, rtol: float) -> Iterator[Mistake]:
    """Whether the states ``written`` after each stored step, ``[*batch, T, K, P]``, equal those of the next step."""
    key, starts = module.in_keys[1], flags(data, module.in_keys[3])
    read, time = data[key], data.ndim - 1
    assert starts is not None  # in_data has checked it
    follows = _follows(read, written, starts, time, atol, rtol)
    if follows is None or follows > 0.99:
        return
    for dim in range(time):
        across = _follows(read, written, starts, dim, atol, rtol)
        if across is not None and across > max(0.5, 2 * follows):
            yield Mistake(
                "batch and time swapped",
                f"the states follow one another along dimension {dim} of the batch size {tuple(data.batch_size)}, and "
                f"time has to be the last, {time}",
                "data",
                f"data = data.transpose({dim}, {time})",
            )
            return
    stored = data.get(_next(key), None)
    kept = None if stored is None else _follows(read, stored, starts, time, atol, rtol)
    if kept is not None and kept < 0.99:
        yield Mistake(
            "rows are not in order",
            f"{1 - kept:.0%} of the steps do not start from the state that the step before wrote: a row holds pieces "
            "of several episodes, or shuffled steps",
            "data",
            "data = data.reshape(-1, slice_len)  # one slice a row, before the loss",
        )
        return
    yield Mistake(
        "stale states in a buffer",
        f"with the current weights {1 - follows:.0%} of the steps write another state than was stored: the data was "
        "collected with other weights",
        "data",
        "collect new data after each update, or burn in: run the first steps of a row without gradients",
    )


def _follows(read: Tensor, written: Tensor, starts: Tensor, dim: int, atol: float, rtol: float) -> float | None:
    """The share of the steps that start from the state that the previous one along ``dim`` wrote."""
    n = read.shape[dim]
    inner = ~starts.narrow(dim, 1, n - 1) if n > 1 else starts.narrow(dim, 0, 0)
    if not inner.any():
        return None
    close = torch.isclose(read.narrow(dim, 1, n - 1), written.narrow(dim, 0, n - 1), atol=atol, rtol=rtol)
    return float(close.flatten(starts.ndim).all(-1)[inner].double().mean())


def flags(td: TensorDictBase, key: NestedKey) -> Tensor | None:
    """A bool entry as ``[*batch]``, or ``None`` if it is absent or its shape does not fit."""
    value = td.get(key, None)
    if value is None or value.numel() != td.numel():
        return None
    shaped: Tensor = value.reshape(td.batch_size)
    return shaped


def same(a: Tensor, b: Tensor, start: int) -> Tensor:
    """True where two tensors are equal in all dimensions from ``start`` on; NaN equals NaN."""
    return ((a == b) | (a.isnan() & b.isnan())).flatten(start).all(-1)


def _next(key: NestedKey) -> NestedKey:
    return ("next", *(key if isinstance(key, tuple) else (key,)))


def _keys(transform: Any, name: str) -> list[NestedKey]:
    try:
        return list(getattr(transform, name, None) or [])
    except (AttributeError, TypeError, RuntimeError):  # properties that need an environment
        return []
