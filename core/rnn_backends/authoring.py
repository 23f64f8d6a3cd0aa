"""For authors of backends: the parts of the built-in backends, besides the contract in ``rnn_backends`` itself.

- **A hand-written layer**: :func:`make_layer` turns a forward and a backward pass over memory into a layer that works
  with torch's dispatcher, autograd, ``torch.func``, ``torch.compile`` and ``torch.export``. The passes get
  :class:`Arguments`, :class:`Run` and :class:`Needs`.
- **Acting**: :func:`make_steps` adds one step, without the dispatcher where possible, :func:`make_act_stack` one of
  all layers at once.
- **A row of one step** with gradients, without the general row's cost: :func:`with_one_step`.
- **A backward pass of your own**, in an ``autograd.Function``: :func:`refuse_double_backward`, :func:`only_inlined`.
- **Kinds of tensors**: :func:`is_plain` and similar functions tell when a kernel may read a tensor's memory by address.
- **The plain unroll**: :func:`unroll`, its :func:`cell`, :func:`accumulation_views` for sums in 16 bits,
  :func:`make_unrolled_steps` and :func:`torch_step`.
- **Resets**: where sequences start and end, and the states there.
- **A device with slow reads to the host**: a :class:`SurveyedLayer` reads once for all layers of a call.
- **Files**: :func:`cache_folder` and :func:`write_whole`.
"""

from ._torch import only_inlined
from .acting import StackOnMemory, StepOnMemory, make_act_stack, make_steps, make_unrolled_steps, torch_step
from .arguments import Arguments, Needs, Run
from .autograd_rule import wants_gradient
from .contract import SteppedLayer, SurveyedLayer, SurveyFunction
from .double_backward import refuse_double_backward
from .handwritten import Layer, make_layer
from .kernels import Backward, Forward, Kernel
from .one_step import RowBackward, RowForward, RowRead, with_one_step
from .paths import cache_folder, write_whole
from .plain import (
    are_exact,
    available,
    check_kinds,
    check_memory,
    check_steps,
    fixed_sizes,
    have_memory,
    is_plain,
    is_plain_eager,
    materialized,
    plain_keys,
    unreadable,
)
from .resets import at_ends, ends_of, first_steps, starts_of, take_steps, zero_at
from .unroll import accumulation_views, cell, unroll
from .weight_cache import WeightInfo, check_call, reset, weight_info

__all__ = [
    "Arguments",
    "Backward",
    "Forward",
    "Kernel",
    "Layer",
    "Needs",
    "RowBackward",
    "RowForward",
    "RowRead",
    "Run",
    "StackOnMemory",
    "StepOnMemory",
    "SteppedLayer",
    "SurveyFunction",
    "SurveyedLayer",
    "WeightInfo",
    "accumulation_views",
    "are_exact",
    "at_ends",
    "available",
    "cache_folder",
    "cell",
    "check_call",
    "check_kinds",
    "check_memory",
    "check_steps",
    "ends_of",
    "first_steps",
    "fixed_sizes",
    "have_memory",
    "is_plain",
    "is_plain_eager",
    "make_act_stack",
    "make_layer",
    "make_steps",
    "make_unrolled_steps",
    "materialized",
    "only_inlined",
    "plain_keys",
    "refuse_double_backward",
    "reset",
    "starts_of",
    "take_steps",
    "torch_step",
    "unreadable",
    "unroll",
    "wants_gradient",
    "weight_info",
    "with_one_step",
    "write_whole",
    "zero_at",
]
