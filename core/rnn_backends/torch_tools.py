"""For tools that expect a ``torch.nn.LSTM``: its methods, and an attribute for a quantisation config."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from ._torch import METHODS_OF_NN_LSTM, SharedRNN
from .errors import InputError

_QUANTISERS = "torch.ao.quantization"
_INSTEAD = "to quantise it put lstm.to_torch() in its place; lstm.qconfig = None says that it stays in floating point"


class ToolsLSTM(SharedRNN):
    """The methods of :class:`torch.nn.LSTM` besides ``forward`` that ``torch.nn.RNNBase`` does not have, and more."""

    def to_torch(self) -> nn.LSTM:
        """A :class:`torch.nn.LSTM` that *shares* these parameters, for tools that require that class.

        Raises:
            InputError: it is parametrized, has hooks, or overrides ``forward``, all of which would be lost.
        """
        check_is_plain(self, "to_torch()")
        new = nn.LSTM(
            self.input_size,
            self.hidden_size,
            num_layers=self.num_layers,
            bias=self.bias,
            batch_first=self.batch_first,
            dropout=self.dropout,
            bidirectional=self.bidirectional,
            proj_size=self.proj_size,
            device="meta",
        )
        for name, parameter in self.named_parameters(recurse=False):
            setattr(new, name, parameter)
        return new.train(self.training)

    @property
    def qconfig(self) -> None:
        """``None`` if it was set to that: ``torch.ao.quantization`` then leaves this module in floating point.

        There is no quantised form, so any other value is an error. If ``torch.ao.quantization`` itself sets it to
        ``None``, because it finds LSTMs by torch.nn.LSTM's class and skips this one, there is a warning.

        Raises:
            InputError: the value is a config.
        """
        if "_qconfig" not in self.__dict__:
            raise AttributeError("no qconfig was set")
        return None

    @qconfig.setter
    def qconfig(self, value: Any) -> None:
        if value is not None:
            raise InputError(f"rnn_backends.LSTM has no quantised form: {_INSTEAD}")
        if "_qconfig" not in self.__dict__ and _is_set_by_a_tool():
            warnings.warn(
                f"{_QUANTISERS} passes over this rnn_backends.LSTM, as it looks for torch.nn.LSTM: {_INSTEAD}",
                UserWarning,
                stacklevel=4,
            )
        self.__dict__["_qconfig"] = None

    @qconfig.deleter
    def qconfig(self) -> None:
        self.__dict__.pop("_qconfig", None)


def check_is_plain(lstm: nn.RNNBase, result: str, shares_hooks: bool = False) -> None:
    """Raise if an LSTM does more than its options and parameters say, which a module of another class would not do.

    Args:
        lstm: the LSTM that the other module is made from.
        result: what makes the other module, such as ``"to_torch()"``.
        shares_hooks: whether the other module runs this one's hooks.

    Raises:
        InputError: it overrides ``forward``, has hooks, or a weight that is computed from other parameters.
    """
    kind = type(lstm)
    if str(kind.forward.__module__).partition(".")[0] not in _KNOWN:
        raise InputError(f"{kind.__name__} overrides forward, and {result} would leave that out: {_OVERRIDE}")
    if shares_hooks:
        return
    computed = any(not isinstance(weight, nn.Parameter) for weights in lstm.all_weights for weight in weights)
    if computed or parametrize.is_parametrized(lstm):
        raise InputError(f"the LSTM is parametrized: call {result} first and parametrize what it returns, {_PERMANENT}")
    if any(getattr(lstm, name) for name in _HOOKS):
        raise InputError(f"the LSTM has hooks, and {result} would leave them out: register them on what it returns")


_KNOWN = frozenset({"torch", "torchrl", "rnn_backends"})
"""Packages whose ``forward`` of an LSTM computes what the options say; a wrapper of it names the package that wraps."""
_OVERRIDE = "make it a subclass of rnn_backends.LSTM and use that, or put what it adds into a module around the LSTM"
_PERMANENT = "or make it permanent (parametrize.remove_parametrizations, remove_weight_norm, prune.remove)"
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

for _name, _method in METHODS_OF_NN_LSTM.items():
    setattr(ToolsLSTM, _name, _method)


def _is_set_by_a_tool() -> bool:
    """Whether torch's quantisation assigns the attribute, judged by the frame above the setter's and nn.Module's."""
    frame = inspect.currentframe()
    for _ in range(4):
        frame = frame.f_back if frame is not None else None
        if frame is not None and str(frame.f_globals.get("__name__")).startswith(_QUANTISERS):
            return True
    return False
