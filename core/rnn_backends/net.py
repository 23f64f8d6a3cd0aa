"""``LSTMNet``: an MLP, an LSTM and a linear layer, over tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import layout
from .checks import check_like
from .contract import LSTMBackend, State
from .errors import InputError
from .lstm import LSTM, as_inner
from .mlp import mlp


class LSTMNet(nn.Module):
    """An embedder for an LSTM preceded by an MLP.

    The forward method returns the incoming and the outgoing hidden states, as an environment returns the observation
    and the next observation. The outgoing ones are zero except at the last step, so that they have the right size to
    be stored in a TensorDict of size ``[batch, time]``.

    Args:
        out_features: features of the output.
        lstm_kwargs: the options of :class:`LSTM` (``batch_first`` is always ``True``).
        mlp_kwargs: the options of the MLP in front: TorchRL's ``MLP`` options.
        device: of the parameters.

    Keyword Args:
        lstm_backend: a backend's name, ``"auto"``, or an :class:`~rnn_backends.LSTMBackend`. ``"torch"`` and
            ``"torchrl"`` are aliases of ``"cudnn"`` and ``"vmap"``.

    Examples:
        >>> import torch
        >>> from rnn_backends import LSTMNet
        >>> batch, time_steps, in_features, out_features, hidden_size = 7, 6, 4, 10, 5
        >>> net = LSTMNet(
        ...     out_features,
        ...     {"input_size": hidden_size, "hidden_size": hidden_size},
        ...     {"out_features": hidden_size},
        ... )
        >>> x = torch.randn(batch, time_steps, in_features)  # three dimensions: many steps
        >>> y, hidden0_in, hidden1_in, hidden0_out, hidden1_out = net(x)
        >>> y.shape, hidden0_out.shape
        (torch.Size([7, 6, 10]), torch.Size([7, 6, 1, 5]))
        >>> y, *_ = net(torch.randn(batch, in_features))  # two dimensions: one step
        >>> y.shape
        torch.Size([7, 10])
    """

    if TYPE_CHECKING:  # nn.Module's __call__ returns Any

        def __call__(
            self, input: Tensor, hidden0_in: Tensor | None = None, hidden1_in: Tensor | None = None
        ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
            """Embed one step or many: see :meth:`forward`."""

    def __init__(
        self,
        out_features: int,
        lstm_kwargs: dict[str, Any],
        mlp_kwargs: dict[str, Any],
        device: torch.device | str | None = None,
        *,
        lstm_backend: str | LSTMBackend | None = None,
    ) -> None:
        super().__init__()
        if not lstm_kwargs.get("batch_first", True):
            raise InputError("LSTMNet needs batch_first=True: its inputs are [batch, time, features]")
        shared = {"device": device}
        self.mlp = mlp(**{**shared, **mlp_kwargs})
        self.lstm = LSTM(**{**shared, "lstm_backend": lstm_backend, **lstm_kwargs, "batch_first": True})
        spec = self.lstm.spec
        self.linear = nn.Linear(spec.directions * spec.output_size, out_features, device=device)

    def forward(
        self, input: Tensor, hidden0_in: Tensor | None = None, hidden1_in: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Embed one step or many.

        Args:
            input: ``[F]`` or ``[B, F]``: one step; ``[B, T, F]``: many.
            hidden0_in: ``h``, ``[K, P]``, ``[B, K, P]`` or ``[B, T, K, P]`` with ``K = L * D``; over many steps only
                the first step's is read. Default: zeros.
            hidden1_in: ``c``, likewise with ``H`` in place of ``P``.

        Returns:
            ``y [..., out_features]``, ``hidden0_in``, ``hidden1_in``, ``hidden0_out``, ``hidden1_out``: the hidden
            outputs are shaped like the inputs and zero except at the last step.

        Raises:
            InputError: only one hidden state is given, or a shape does not fit.
        """
        if input.ndim not in (1, 2, 3):
            raise InputError(f"input must be [F], [B, F] or [B, T, F], got shape {tuple(input.shape)}")
        x, lstm = self.mlp(input), as_inner(self.lstm)
        if x.shape[-1] != lstm.input_size:
            raise InputError(f"the MLP gives {x.shape[-1]} features, and the LSTM's input_size={lstm.input_size}")
        stored = self._state(x, hidden0_in, hidden1_in)
        batch = x.shape[:-1]
        never = torch.zeros(batch, dtype=torch.bool, device=x.device)
        rows = layout.Inputs(x, never, stored)
        if input.ndim == 3:
            x, never, state = layout.fold_time(rows)
            y, out = lstm(x, state, is_init=never, form="sequences")
            unfold, lead = layout.unfold_time, batch[:-1]
        else:
            x, _, state = layout.fold_step(rows)
            y, out = lstm(x, state, form="step")
            unfold, lead = layout.unfold_step, batch
        return self.linear(unfold(y, lead)), *stored, unfold(out[0], lead), unfold(out[1], lead)

    def _state(self, x: Tensor, h: Tensor | None, c: Tensor | None) -> State:
        if (h is None) != (c is None):
            raise InputError("give both hidden0_in and hidden1_in, or neither")
        spec, lead = self.lstm.spec, tuple(x.shape[:-1])
        if h is None or c is None:
            return State(
                x.new_zeros(*lead, spec.num_states, spec.output_size),
                x.new_zeros(*lead, spec.num_states, spec.hidden_size),
            )
        for name, value, size in (("hidden0_in", h, spec.output_size), ("hidden1_in", c, spec.hidden_size)):
            expected = (*lead, spec.num_states, size)
            if tuple(value.shape) != expected:
                raise InputError(f"{name} must have shape {expected}, got {tuple(value.shape)}")
            check_like(name, value, self.lstm.like_weights(), self.lstm.autocast_dtype() is not None)
        return State(h, c)
