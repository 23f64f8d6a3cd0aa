"""One layer through TorchRL's own ``LSTMModule``, for the three TorchRL backends here."""

from typing import Any

from rnn_backends import LayerWeights, State
from tensordict import TensorDict
from torch import Tensor
from torch.func import functional_call
from torchrl.modules import LSTMModule, set_recurrent_mode

NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "weight_hr_l0")


def run(weights: LayerWeights, x: Tensor, entry: State, starts: Tensor, **options: Any) -> State:
    """Run the module as a TorchRL user does: a TensorDict with ``is_init`` and stored states, in recurrent mode.
    Nothing is caught or corrected: the suite gets the module's own results and errors. The module is made on the meta
    device, so that its construction draws no random numbers.

    Args:
        weights: used in place of the module's parameters, so that gradients reach them.
        x: ``[T, B, I]``.
        entry: ``State([T, B, P], [T, B, H])``.
        starts: ``[T, B]`` bool.
        options: of TorchRL's ``LSTMModule``: ``recurrent_backend`` or ``python_based``.

    Returns:
        ``State(h [T, B, P], c [T, B, H])``; TorchRL gives ``c`` where a sequence ends, and zero elsewhere.
    """
    module = LSTMModule(
        x.shape[-1],
        entry.c.shape[-1],
        bias=weights.b_ih is not None,
        proj_size=0 if weights.w_hr is None else entry.h.shape[-1],
        in_keys=["x", "h", "c"],
        out_keys=["y", ("next", "h"), ("next", "c")],
        device="meta",
        **options,
    )
    states = {name: state.transpose(0, 1).unsqueeze(2) for name, state in entry._asdict().items()}  # [B, T, L = 1, .]
    td = TensorDict({"x": x.transpose(0, 1), "is_init": starts.T.unsqueeze(-1), **states}, [x.shape[1], x.shape[0]])
    swapped = {f"lstm.{name}": weight for name, weight in zip(NAMES, weights, strict=True) if weight is not None}
    with set_recurrent_mode(True):
        out = functional_call(module, swapped, (td,))
    return State(out["y"].transpose(0, 1), out["next", "c"].squeeze(2).transpose(0, 1))
