"""The plugin contract: a backend is a value that holds a function, which runs one layer in one direction.

Letters, everywhere: ``T`` time, ``B`` batch, ``I`` input features, ``H`` hidden size, ``P`` output size
(``proj_size`` or ``H``), ``L`` layers, ``D`` directions.

No ``from __future__ import annotations`` here: TorchScript reads the annotations of the NamedTuples.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Optional

import torch
from torch import Tensor

from .errors import ContractError

CONTRACT_VERSION = 1
"""The version that a plugin declares in its module-level ``contract_version``."""


class State(NamedTuple):
    """Hidden and cell state: ``h [..., P]``, ``c [..., H]``."""

    h: Tensor
    c: Tensor


class LayerWeights(NamedTuple):
    """One layer's weights in one direction: torch.nn.LSTM's names, layout and gate order i, f, g, o."""

    w_ih: Tensor  # [4H, I]
    w_hh: Tensor  # [4H, P]
    b_ih: Optional[Tensor]  # [4H]
    b_hh: Optional[Tensor]  # [4H]
    w_hr: Optional[Tensor]  # [P, H], the projection


LayerFunction = Callable[[LayerWeights, Tensor, State, Tensor], State]
"""``layer(weights, x [T, B, I], entry State([T, B, P], [T, B, H]), starts [T, B] bool) -> State``.

``entry`` is the state from which a sequence starts. It is read only where ``starts`` is true, and core makes
``starts[0]`` true everywhere. The returned ``h [T, B, P]`` is the output at every step; the returned
``c [T, B, H]`` is right at least at each sequence's last step.
"""

StepFunction = Callable[[LayerWeights, Tensor, State], State]
"""``step(weights, x [B, I], State([B, P], [B, H])) -> State([B, P], [B, H])``: one step, for acting."""

ActFunction = Callable[[LayerWeights, Tensor, State, Tensor], State]
"""``act(weights, x [B, I], State([B, P], [B, H]), is_init [B] bool) -> State``: a step in which the incoming state
counts as zero where ``is_init`` is true."""

ActStackFunction = Callable[[list[LayerWeights], Tensor, State, Optional[Tensor]], Optional[tuple[Tensor, State]]]
"""``act_stack(weights, x [B, I], State([B, L, P], [B, L, H]), is_init [B] bool or None) -> (output [B, P], State)``.

One step of all layers in one call, for a kernel that writes each layer's state in its place: used for one direction and
without active dropout. The incoming state counts as zero where ``is_init`` is true. ``None``: it does not support these
tensors, and core goes layer by layer. The output shares no memory with the states.
"""

StackFunction = Callable[[list[LayerWeights], Tensor, State, "LSTMSpec"], tuple[Tensor, State]]
"""``stack(weights, x [T, B, I], State([L*D, B, P], [L*D, B, H]), spec) -> (output [T, B, D*P], State)``.

All layers in one call, for a kernel that can: used if there are no resets and no active dropout. ``weights``
holds ``L*D`` entries in torch.nn.LSTM's order (layer by layer, forward then reverse).
"""


SurveyFunction = Callable[[list[LayerWeights], Tensor, list[State], Tensor, bool, float], AbstractContextManager[None]]
"""``survey(weights, x [T, B, I], entry, starts [T, B] bool, bidirectional, dropout)`` -> a context manager.

Entered around the layer function's calls for one pass through all layers, with their arguments: all weights, the first
layer's input, all entry states, the starts (forward).
"""


@dataclass(frozen=True)
class SurveyedLayer:
    """A :data:`LayerFunction` for a device with slow reads to the host: the survey reads once for all layers.

    It must be right without the survey, too. A function that wraps it is not a ``SurveyedLayer``, so there is no survey
    if a wrapper changes the inputs.
    """

    function: LayerFunction
    survey: SurveyFunction

    def __call__(self, weights: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        """Run one layer in one direction."""
        return self.function(weights, x, entry, starts)


@dataclass(frozen=True)
class SteppedLayer:
    """A :data:`LayerFunction` with a shorter path for a row of one step: see :func:`~.one_step.with_one_step`.

    ``row(weights, info, x, hx, is_init, batch_first)`` gets the unchecked arguments of ``LSTM.forward`` and returns its
    result, or ``None`` if it does not support these tensors. A function that wraps the layer is not a ``SteppedLayer``,
    so no call bypasses it.
    """

    function: LayerFunction
    row: Callable[..., Optional[tuple[Tensor, tuple[Tensor, Tensor]]]]

    def __call__(self, weights: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        """Run one layer in one direction."""
        return self.function(weights, x, entry, starts)


class Trait(Enum):
    """Capabilities that a backend claims beyond the contract. The conformance suite tests each claim both ways."""

    VMAP = "vmap"
    """``torch.vmap`` over weights, data or both."""
    FULLGRAPH = "fullgraph"
    """Traced into a user's ``torch.compile(fullgraph=True)`` without a graph break."""
    SCRIPT = "script"
    """``torch.jit.script(module)`` gives a module that runs without this project."""
    EXPORT = "export"
    """``torch.export.export`` supports it."""
    DOUBLE_BACKWARD = "double_backward"
    """Gradients of gradients."""
    FORWARD_AD = "forward_ad"
    """``torch.func.jvp`` and forward-mode AD."""
    CELL_STATES = "cell_states"
    """``c`` is right at every step, not only at the ends: ``hidden_output="all"``."""


@dataclass(frozen=True)
class LSTMSpec:
    """The static part of an LSTM: torch.nn.LSTM's options.

    ``input_size``, ``hidden_size`` and the others mean what they mean in :class:`torch.nn.LSTM`.
    """

    input_size: int
    hidden_size: int
    num_layers: int = 1
    bias: bool = True
    dropout: float = 0.0
    bidirectional: bool = False
    proj_size: int = 0

    @property
    def output_size(self) -> int:
        """``P``: features of one direction's output."""
        return self.proj_size or self.hidden_size

    @property
    def directions(self) -> int:
        """``D``: 2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def num_states(self) -> int:
        """``L*D``: rows of the stacked hidden state."""
        return self.num_layers * self.directions


def accepts_everything(spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> None:
    """The default of :attr:`LSTMBackend.rejects`: it accepts every LSTM."""


def needs_no_preparation(spec: LSTMSpec, device: torch.device, dtype: torch.dtype) -> None:
    """The default of :attr:`LSTMBackend.prepare`: there is nothing to do before the first call."""


@dataclass(frozen=True)
class LSTMBackend:
    """A backend: a value, not a base class.

    Args:
        name: equals the entry point's name.
        layer: runs one layer in one direction, resets included.
        rejects: returns the reason why a spec, device and dtype are not supported, or ``None``. It must be cheap and
            without side effects: no compiler, no files written. Called at construction and after ``.to(...)``, for
            error messages and by ``explain``, never inside a step loop.
        traits: the capabilities claimed beyond the contract.
        step: one time step; default: ``layer`` with ``T = 1``.
        act: one time step with resets; default: core makes the states zero, then ``step``.
        act_stack: one time step of all layers with resets, in one call; default: layer by layer.
        stack: all layers in one call, if there are no resets and no dropout; default: layer by layer.
        layer_last: like ``layer``, with ``c`` right only at the row's last step; called if the cell states of the
            sequences that end before it are not read. Default: ``layer``.
        prepare: does the work that the first call needs, such as compiling a kernel; it may take seconds. Returns a
            reason why the backend cannot run after all, or ``None``. Called once for each spec, device and dtype, and
            only for the chosen backend; if there is a reason, ``"auto"`` tries the next one. The functions above
            must not rely on it: an LSTM that was unpickled in another process calls them directly.
        preparation: for ``explain``: describes the work that ``prepare`` would do now, such as compiling a kernel or
            loading it from disk, or ``None`` for no work. As cheap as ``rejects``. Default: unknown.
        contract_version: the contract version of the backend; the registry takes it from the plugin's module.

    Raises:
        ContractError: the name is not a string or is empty, a function is not callable, or a trait is not a
            :class:`Trait`.
    """

    name: str
    layer: LayerFunction
    rejects: Callable[[LSTMSpec, torch.device, torch.dtype], Optional[str]] = accepts_everything
    traits: frozenset[Trait] = field(default_factory=frozenset)
    step: Optional[StepFunction] = None
    stack: Optional[StackFunction] = None
    layer_last: Optional[LayerFunction] = None
    act: Optional[ActFunction] = None
    prepare: Callable[[LSTMSpec, torch.device, torch.dtype], Optional[str]] = needs_no_preparation
    contract_version: int = CONTRACT_VERSION
    preparation: Optional[Callable[[LSTMSpec, torch.device, torch.dtype], Optional[str]]] = None
    act_stack: Optional[ActStackFunction] = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ContractError(f"an LSTMBackend's name must be a string that is not empty, got {self.name!r}")
        for field_name in ("layer", "rejects", "prepare"):
            self._check_callable(field_name)
        for field_name in ("step", "stack", "layer_last", "act", "act_stack", "preparation"):
            if getattr(self, field_name) is not None:
                self._check_callable(field_name)
        if type(self.contract_version) is not int or not 1 <= self.contract_version <= CONTRACT_VERSION:
            raise ContractError(
                f"LSTMBackend {self.name!r}: contract_version must be 1 to {CONTRACT_VERSION}, "
                f"got {self.contract_version!r}"
            )
        traits: object = self.traits
        if not isinstance(traits, (set, frozenset)) or not all(isinstance(trait, Trait) for trait in traits):
            raise ContractError(f"LSTMBackend {self.name!r}: traits must be a set of Trait, got {traits!r}")
        object.__setattr__(self, "traits", frozenset(traits))

    def _check_callable(self, field_name: str) -> None:
        value = getattr(self, field_name)
        if not callable(value):
            raise ContractError(f"LSTMBackend {self.name!r}: {field_name} must be a function, got {value!r}")

    def __deepcopy__(self, memo: dict[int, object]) -> "LSTMBackend":
        return self  # a value: copied modules keep using the same functions
