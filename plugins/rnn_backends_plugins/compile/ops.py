"""The ``compile`` backend's layer as operators: one node in any graph, with shapes and a gradient that torch knows.

``rnn_backends::lstm_layer`` and ``rnn_backends::lstm_layer_backward``. The gradient of the second is not written:
asking for it raises.
"""

from collections.abc import Sequence
from typing import Any, NoReturn, Optional

import torch
from rnn_backends import UnsupportedError
from torch import Tensor

from .backward import Needs, Run, run_backward
from .forward import run_forward
from .layer import Layer, plain_tensors

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("rnn_backends::lstm_layer", mutates_args=())
def lstm_layer(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    bias: Optional[Tensor],  # noqa: UP045 - torch reads the schema from these annotations
    w_hr: Optional[Tensor],  # noqa: UP045
    entry_h: Tensor,
    entry_c: Tensor,
    starts: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run one layer: the fields of :class:`~.layer.Layer`, and whether a gradient will be asked for.

    Returns:
        ``h [T, B, P]``, ``c [T, B, H]``, and for the gradient the gates ``[T, B, 4, H]``, or ``[0]``.
    """
    with plain_tensors(x.device):
        return run_forward(Layer(x, w_ih, w_hh, bias, w_hr, entry_h, entry_c, starts).checked(), keep)


@lstm_layer.register_fake
def _(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    bias: Tensor | None,
    w_hr: Tensor | None,
    entry_h: Tensor,
    entry_c: Tensor,
    starts: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    (T, B, _), H = x.shape, w_hh.shape[0] // 4
    gates = x.new_empty(T, B, 4, H) if keep else x.new_empty(0)
    return x.new_empty(T, B, w_hh.shape[1]), x.new_empty(T, B, H), gates


@torch.library.custom_op("rnn_backends::lstm_layer_backward", mutates_args=())
def lstm_layer_backward(
    grad_h: Optional[Tensor],  # noqa: UP045
    grad_c: Optional[Tensor],  # noqa: UP045
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    w_hr: Optional[Tensor],  # noqa: UP045
    entry_h: Tensor,
    entry_c: Tensor,
    starts: Tensor,
    h: Tensor,
    c: Tensor,
    gates: Tensor,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, w_ih, w_hh, bias, w_hr, entry_h and entry_c; ``[0]`` where ``needs`` is false."""
    layer = Layer(x, w_ih, w_hh, None, w_hr, entry_h, entry_c, starts).checked()
    run = Run(h.contiguous(), c.contiguous(), gates.contiguous(), grad_h, grad_c)
    with plain_tensors(x.device):
        return _filled(run_backward(layer, run, Needs(*needs)), x)


def _filled(grads: Sequence[Tensor | None], like: Tensor) -> Gradients:
    """An operator gives tensors: an empty one of its own for each ``None``, the others in the data's dtype."""
    return tuple(like.new_empty(0) if v is None else v.to(like.dtype) for v in grads)  # type: ignore[return-value]


@lstm_layer_backward.register_fake
def _(
    grad_h: Tensor | None,
    grad_c: Tensor | None,
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    w_hr: Tensor | None,
    entry_h: Tensor,
    entry_c: Tensor,
    starts: Tensor,
    h: Tensor,
    c: Tensor,
    gates: Tensor,
    needs: Sequence[bool],
) -> Gradients:
    values = (x, w_ih, w_hh, w_hh.new_empty(w_hh.shape[0]), w_hr, entry_h, entry_c)
    shapes = [v.shape if need and v is not None else (0,) for v, need in zip(values, needs, strict=True)]
    return tuple(x.new_empty(shape) for shape in shapes)  # type: ignore[return-value]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, w_ih, w_hh, _, w_hr, entry_h, entry_c, starts, _ = inputs
    ctx.set_materialize_grads(False)  # no zeros [T, B, 4, H] for the gates
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(x, w_ih, w_hh, w_hr, entry_h, entry_c, starts, *output)


def _gradient(
    ctx: Any, grad_h: Tensor | None, grad_c: Tensor | None, _: None, run: Any = lstm_layer_backward
) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:7]
    if grad_h is None and grad_c is None:
        return (None,) * 9
    grads = run(grad_h, grad_c, *ctx.saved_tensors, list(needs))
    return (*(g if need else None for g, need in zip(grads, needs, strict=True)), None, None)


def _no_second_gradient(ctx: Any, *grads: Tensor | None) -> NoReturn:
    reason = "its backward pass is written by hand and has no gradient of its own"
    raise UnsupportedError("compile", "a gradient of a gradient", reason, ["vmap"])


lstm_layer.register_autograd(_gradient, setup_context=_keep)
lstm_layer_backward.register_autograd(_no_second_gradient)


class _FunctionalBackward(torch.autograd.Function):
    """``lstm_layer_backward`` for ``torch.func``, which takes no operator's gradient but such a function's."""

    @staticmethod
    def forward(*inputs: Any) -> Gradients:
        found: Gradients = lstm_layer_backward(*inputs)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Gradients) -> None:
        pass

    backward = staticmethod(_no_second_gradient)


class FunctionalLayer(torch.autograd.Function):
    """``lstm_layer`` for ``torch.func``: the same operators, and the same gradient."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The operator's arguments and results."""
        found: tuple[Tensor, Tensor, Tensor] = lstm_layer(*inputs)
        return found

    setup_context = staticmethod(_keep)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """The operator's gradient."""
        return _gradient(ctx, grads[0], grads[1], None, _FunctionalBackward.apply)
