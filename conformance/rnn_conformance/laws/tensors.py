"""Kinds of tensors: every kind that torch can pass gives right numbers or shapes, or is rejected with a reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from rnn_backends import LSTM, State
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.testing._internal.logging_tensor import LoggingTensor, LoggingTensorMode
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from ..suite.law import law
from ..suite.trial import Trial, differentiate
from ..suite.verdict import LawBroken
from ._kinds import IN_FULL, KINDS, WAYS, Given, Kind, attempt, compare, every_kind, expected, given, run


class _Renamed(Tensor):
    """A subclass with memory of its own and torch's own ``__torch_function__``."""


class _Wrapper(Tensor):
    """A subclass without memory, around another tensor."""

    held: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> _Wrapper:
        made: _Wrapper = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, requires_grad=inner.requires_grad
        )
        return made

    def __init__(self, inner: Tensor) -> None:
        self.held = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        args, kwargs = tree_map_only(_Wrapper, lambda v: v.held, (args, kwargs or {}))
        return tree_map_only(Tensor, _Wrapper, func(*args, **kwargs))


def _two(value: Tensor) -> Tensor:
    made: Tensor = TwoTensor(value.clone(), value.clone())
    return made


_SUBCLASSES: dict[str, Callable[[Tensor], Tensor]] = {
    "a subclass with memory": lambda v: v.clone().as_subclass(_Renamed),
    "a TwoTensor": _two,
    "a LoggingTensor": LoggingTensor,
    "a wrapper subclass": _Wrapper,
}


def _input(make: Callable[[Tensor], Tensor], values: Given) -> Given:
    return values._replace(x=make(values.x))


def _state(make: Callable[[Tensor], Tensor], values: Given) -> Given:
    return values._replace(state=State(*map(make, values.state)))


def _all(make: Callable[[Tensor], Tensor], values: Given) -> Given:
    return values.each(make)


def _plain(value: Tensor) -> Tensor:
    """The plain tensor within all wrappers."""
    for inner in ("held", "elem", "a"):
        while hasattr(value, inner):
            value = getattr(value, inner)
    return value.as_subclass(Tensor)


@law(**KINDS)
def tensor_subclasses(trial: Trial) -> None:
    """Subclasses of Tensor, as input or as all tensors of a call, are right, or rejected with a reason."""

    def kinds() -> Iterator[Kind]:
        for name, make in _SUBCLASSES.items():
            yield Kind(f"{name} as input", partial(_input, make))
            yield Kind(f"{name} for every tensor", partial(_all, make))

    every_kind(trial, kinds(), _plain)


class _Passing(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class _PassingFunctions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextmanager
def _functionalized() -> Iterator[None]:
    torch._enable_functionalization(reapply_views=True)
    try:
        yield
    finally:
        torch._disable_functionalization()


def _functional(value: Tensor) -> Tensor:
    made: Tensor = torch._to_functional_tensor(value)
    return made


def _defunctional(value: Tensor) -> Tensor:
    if not torch._is_functional_tensor(value):
        return value
    torch._sync(value)
    made: Tensor = torch._from_functional_tensor(value)
    return made


@law(**KINDS | IN_FULL)
def torch_modes(trial: Trial) -> None:
    """Modes of torch change no number: dispatch and function modes, functionalization, inference."""
    modes: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "a TorchDispatchMode": _Passing,
        "a TorchFunctionMode": _PassingFunctions,
        "a LoggingTensorMode": LoggingTensorMode,
        "inference mode": torch.inference_mode,
    }

    def kinds() -> Iterator[Kind]:
        for name, mode in modes.items():
            yield Kind(name, lambda g: g, mode)
        yield Kind("functionalization", partial(_all, _functional), _functionalized)

    every_kind(trial, kinds(), _defunctional)


@law(**KINDS)
def fake_and_meta_tensors(trial: Trial) -> None:
    """Fake and meta tensors give fake and meta ones of the right shape and dtype, gradients too, or are rejected."""
    for way in WAYS:
        for kind in ("fake tensors", "meta tensors"):
            for gradients in (False, True):
                if found := _shapes(trial, way, kind, gradients):
                    raise LawBroken(f"{kind}, {way}, {gradients=}: {found}")


def _shapes(trial: Trial, way: str, kind: str, gradients: bool) -> str | None:
    """The fault of a call with tensors without values, or ``None``."""
    fake = FakeTensorMode()
    lstm = trial.lstm()
    with torch.no_grad():
        plain = [(v.shape, v.dtype) for v in run(lstm, given(trial, lstm), way)]
    convert = fake.from_tensor if kind == "fake tensors" else lambda v: v.to("meta")
    right = (lambda v: isinstance(v, FakeTensor)) if kind == "fake tensors" else (lambda v: v.is_meta)
    mode = fake if kind == "fake tensors" else torch.no_grad() if not gradients else torch.enable_grad()
    values = given(trial, lstm).each(convert, gradients)

    def call() -> list[Tensor]:
        with mode, torch.set_grad_enabled(gradients):
            found = run(values.installed(lstm), values, way)
            if gradients:
                loss = sum(v.sum() for v in found)
                assert isinstance(loss, Tensor)
                found += list(differentiate(loss, dict(lstm.named_parameters())).values())
            return found

    found = attempt(kind, way, call)
    if found is None:
        return None
    expected = plain + ([(v.shape, v.dtype) for v in lstm.parameters()] if gradients else [])
    for value, (shape, dtype) in zip(found, expected, strict=True):
        if not right(value):
            return f"a {type(value).__name__} on {value.device} was returned"
        if (value.shape, value.dtype) != (shape, dtype):
            return f"{tuple(value.shape)} of {value.dtype} was returned, expected {tuple(shape)} of {dtype}"
    return None


def _negated(value: Tensor) -> Tensor:
    """A view with the negative bit."""
    return torch.complex(torch.zeros_like(value), -value).conj().imag if value.is_floating_point() else value


def _real_of_conjugate(value: Tensor) -> Tensor:
    """The real part of a conjugated complex tensor, as a view of every second number in memory."""
    return torch.complex(value, -value).conj().real if value.is_floating_point() else value


def _inference(value: Tensor) -> Tensor:
    with torch.inference_mode():
        return value.clone()


def _outlived(value: Tensor) -> Tensor:
    """A tensor of ``torch.func.grad`` that outlives the transform."""
    kept: list[Tensor] = []

    def loss(value: Tensor) -> Tensor:
        kept.append(value)
        return value.sum()

    torch.func.grad(loss)(value)
    return kept[0]


@law(**KINDS)
def lazy_tensors(trial: Trial) -> None:
    """Negative bits, conjugated views, zero, inference and dead torch.func tensors give the right numbers."""
    makes = {
        "tensors with the negative bit": _negated,
        "views of conjugated tensors": _real_of_conjugate,
        "inference tensors": _inference,
    }

    def kinds() -> Iterator[Kind]:
        for name, make in makes.items():
            yield Kind(f"{name} as input", partial(_input, make))
            yield Kind(f"{name} as state", partial(_state, make))
            yield Kind(f"{name} for every tensor", partial(_all, make))
        yield Kind("a tensor that outlived torch.func.grad as input", partial(_input, _outlived))

    every_kind(trial, kinds(), torch.Tensor.clone)
    for what in (_input, _state):
        _zero_tensors(trial, what)


def _zero_tensors(trial: Trial, what: Callable[[Callable[[Tensor], Tensor], Given], Given]) -> None:
    """Zero tensors have no memory at all; torch makes them in forward mode and for missing gradients."""
    for way in WAYS:

        def call(make: Callable[[Tensor], Tensor], way: str = way) -> list[Tensor]:
            lstm = trial.lstm()
            with torch.no_grad():
                return run(lstm, what(make, given(trial, lstm)), way)

        kind = f"zero tensors as {what.__name__[1:]}"
        found = attempt(kind, way, partial(call, lambda v: torch._efficientzerotensor(v.shape, dtype=v.dtype)))
        if found is not None:
            compare(trial, f"{kind}, {way}", found, [v.double() for v in call(torch.zeros_like)])


def _freed(value: Tensor) -> Tensor:
    value = value.detach().clone()
    value.untyped_storage().resize_(0)
    return value


def _shrunk(value: Tensor) -> Tensor:
    value = value.detach().clone()
    value.untyped_storage().resize_(value.untyped_storage().nbytes() // 16)
    return value


@law(**KINDS | IN_FULL | {"H": (8,)})
def freed_memory(trial: Trial) -> None:
    """Inputs, states and weights with freed or shrunk memory raise an error with a reason, after earlier calls too."""
    for what in ("input", "reset mask", "state", "weight", "weight after a call"):
        for how, lose in (("freed", _freed), ("shrunk", _shrunk)):
            for way in WAYS if what != "reset mask" else ("with resets", "one step with resets"):
                kind = f"{what} whose memory was {how}"
                for gradients in (False, True):
                    if _answers(trial, kind, way, what, lose, gradients):
                        raise LawBroken(f"{kind}, {way}: numbers from memory that does not exist")
    for way in WAYS:
        _given_back_smaller(trial, way)


def _given_back_smaller(trial: Trial, way: str) -> None:
    """Freed memory that is allocated again, in a smaller size, may have the old address: each size is tried."""
    lstm = trial.lstm().requires_grad_(False)
    values, weight = given(trial, lstm), lstm.get_parameter("weight_hh_l1")
    whole, storage = weight.clone(), weight.untyped_storage()
    for size in range(64, whole.nbytes, 64):
        run(lstm, values, way)
        storage.resize_(0)
        storage.resize_(size)
        if _is_answered(lstm, values, "a weight whose memory was freed and given back smaller", way):
            raise LawBroken(f"a weight whose memory was given back smaller, {way}: numbers from beyond its memory")
        storage.resize_(whole.nbytes)
        weight.copy_(whole)


def _answers(trial: Trial, kind: str, way: str, what: str, lose: Callable[[Tensor], Tensor], gradients: bool) -> bool:
    """Whether a call returned numbers although some of its memory is missing."""
    lstm = trial.lstm().requires_grad_(gradients)
    values = given(trial, lstm)
    if what == "input":
        values = values._replace(x=lose(values.x))
    elif what == "reset mask":
        values = values._replace(is_init=lose(values.is_init))
    elif what == "state":
        values = values._replace(state=State(values.state.h, lose(values.state.c)))
    else:
        if what == "weight after a call":  # facts about a weight from an earlier call are stale
            run(lstm, values, way)
        weight = lstm.get_parameter("weight_hh_l1")
        weight.untyped_storage().resize_(lose(weight).untyped_storage().nbytes())

    return _is_answered(lstm, values, kind, way)


def _is_answered(lstm: LSTM, values: Given, kind: str, way: str) -> bool:
    def call() -> bool:
        try:
            run(lstm, values, way)
        except RuntimeError as error:  # torch has its own error for some views
            if "out of bounds for storage" in str(error):
                return False
            raise
        return True

    return bool(attempt(kind, way, call))


_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse": lambda v: v.to_sparse(),
    "CSR": lambda v: v.reshape(-1, v.shape[-1]).to_sparse_csr(),
    "nested": lambda v: torch.nested.nested_tensor(list(v)),
    "quantized": lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.quint8),
    "mkldnn": lambda v: v.contiguous().to_mkldnn(),
    "meta": lambda v: v.to("meta"),
}


@law(**KINDS | IN_FULL)
def other_layouts_are_right_or_refused(trial: Trial) -> None:
    """Sparse, CSR, nested, quantized, mkldnn and meta inputs and weights are right or rejected with a reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: prototypes and beta
        for name, make in _LAYOUTS.items():
            for way in WAYS:
                _right_or_refused(trial, name, make, way, "input")
                if name not in ("nested", "mkldnn"):  # torch has no parameters of these
                    _right_or_refused(trial, name, make, way, "weight")


def _right_or_refused(trial: Trial, name: str, make: Callable[[Tensor], Tensor], way: str, what: str) -> None:
    lstm = trial.lstm().requires_grad_(False)
    values, kind = given(trial, lstm), f"a {name} {what}"
    if what == "weight":
        lstm._parameters["weight_hh_l1"] = nn.Parameter(make(lstm.get_parameter("weight_hh_l1").data), False)
    found = attempt(kind, way, lambda: run(lstm, values, way, make if what == "input" else lambda x: x))
    if found is None:
        return
    if name in ("quantized", "meta", "nested"):
        raise LawBroken(f"{kind}, {way}: returned a result, in which no number can be right")
    compare(trial, f"{kind}, {way}", [v.to_dense() for v in found], expected(trial, way))


def _nested(layout: torch.layout, value: Tensor) -> Tensor:
    """The rows of a tensor as one nested tensor; a bias is unchanged, because torch does not nest single numbers."""
    if value.ndim < 2:
        return value.detach()
    made: Tensor = torch.nested.nested_tensor(list(value.detach()), layout=layout)
    return made


def _padded(value: Tensor) -> Tensor:
    return value.to_padded_tensor(0.0) if value.is_nested else value


def _mask(make: Callable[[Tensor], Tensor], values: Given) -> Given:
    return values._replace(is_init=make(values.is_init))


def _recurrent_weight(make: Callable[[Tensor], Tensor], values: Given) -> Given:
    weight = nn.Parameter(make(values.weights["weight_hh_l1"]), requires_grad=False)
    return values._replace(weights=values.weights | {"weight_hh_l1": weight})


@law(**KINDS | IN_FULL)
def nested_tensors_are_right_or_refused(trial: Trial) -> None:
    """Nested tensors, strided or jagged, of one length or several, as any tensor of a call, are right or rejected."""
    layouts = {"strided": torch.strided, "jagged": torch.jagged}

    def kinds() -> Iterator[Kind]:
        for name, layout in layouts.items():
            make = partial(_nested, layout)
            yield Kind(f"a {name} nested tensor as input", lambda g: g, taken=make)
            for what in (_state, _mask, _recurrent_weight, _all):
                yield Kind(f"a {name} nested tensor as {what.__name__[1:]}", partial(what, make))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: nested tensors are a prototype
        every_kind(trial, kinds(), _padded)
        for name, layout in layouts.items():
            _of_several_lengths(trial, f"a {name} nested tensor of several lengths", layout)


def _of_several_lengths(trial: Trial, kind: str, layout: torch.layout) -> None:
    """The rows of a batch, each shorter than the previous one, as one nested input with the batch first."""
    lstm, x = trial.lstm(batch_first=True).requires_grad_(False), trial.inputs.x
    rows = [x[: len(x) - k, k] for k in range(x.shape[1])]

    def call() -> tuple[list[Tensor], Tensor]:
        output, (h, _) = lstm(torch.nested.nested_tensor([row.clone() for row in rows], layout=layout))
        return list(output.unbind()), _padded(h)

    found = attempt(kind, "without resets", call)
    if found is None:
        return
    for k, row in enumerate(rows):
        output, (h, _) = lstm(row)
        trial.agree(f"{kind}: output of row {k}", found[0][k][: len(row)], output.double(), None, "")
        trial.agree(f"{kind}: the state after row {k}", found[1][:, k], h.double(), None, "")
