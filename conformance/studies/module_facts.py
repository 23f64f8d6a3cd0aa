"""Findings in TorchRL's ``LSTMModule`` beyond the laws, a few lines each: ``python module_facts.py``."""

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.modules import LSTMModule, set_recurrent_mode
from torchrl.modules.tensordict_module.rnn import LSTM

OUT = ["y", ("next", "h"), ("next", "c")]


def module(python_based: bool = False, proj_size: int = 0) -> LSTMModule:
    """The same weights each time."""
    torch.manual_seed(0)
    return LSTMModule(3, 4, in_keys=["x", "h", "c"], out_keys=OUT, python_based=python_based, proj_size=proj_size)


def data(resets: bool = True, width: int = 4) -> TensorDict:
    """Two rows of five steps with random stored states; with resets, each row has one in the middle."""
    generator = torch.Generator().manual_seed(0)
    x, h, c = (torch.rand(2, 5, *shape, generator=generator) for shape in ((3,), (1, width), (1, 4)))
    is_init = torch.zeros(2, 5, 1, dtype=torch.bool)
    is_init[0, 2] = is_init[1, 3] = resets
    return TensorDict({"x": x, "h": h, "c": c, "is_init": is_init}, [2, 5])


def recurrent(lstm: LSTMModule, td: TensorDict) -> TensorDict:
    """A call in recurrent mode."""
    with set_recurrent_mode(True):
        return lstm(td)


def integer_is_init(python_based: bool) -> float:
    """The error of the output if ``is_init`` is int64 instead of bool: it is used as indices."""
    lstm, td = module(python_based), data()
    right = recurrent(lstm, td.clone())["y"]
    td["is_init"] = td["is_init"].long()
    return (recurrent(lstm, td)["y"] - right).abs().max().item()


def autocast_dtypes() -> list[torch.dtype]:
    """The dtype of the output under autocast, without resets and with them."""
    with torch.autocast("cpu", torch.bfloat16):
        return [recurrent(module(), data(resets))["y"].dtype for resets in (False, True)]


def acting_with_a_projection() -> str:
    """The error of a step with a projection and stored states."""
    try:
        module(proj_size=2)(data(width=2)[:, 1])
    except RuntimeError as error:
        return str(error)
    return ""


def unprojected_step() -> tuple[int, ...]:
    """The shape of the Python LSTM's first output while acting, for ``proj_size=2``."""
    return tuple(module(True, proj_size=2)(data()[:, 1].exclude("h", "c"))["y"].shape)


def layers_left_out() -> bool:
    """Whether the Python LSTM of two layers runs only one if the state has one row."""
    torch.manual_seed(0)
    two, one = LSTM(3, 4, 2), LSTM(3, 4, 1)
    one.load_state_dict({name: w for name, w in two.state_dict().items() if name.endswith("l0")})
    x, state = torch.rand(2, 5, 3), (torch.zeros(1, 2, 4), torch.zeros(1, 2, 4))
    outputs: list[Tensor] = [lstm(x, state)[0] for lstm in (two, one)]
    return torch.equal(*outputs)


def fourth_argument() -> tuple[bool, bool]:
    """``bias`` and ``batch_first`` of the Python LSTM with the arguments ``(3, 4, 1, False)``: no bias in
    torch.nn.LSTM."""
    made = LSTM(3, 4, 1, False)
    return made.bias, made.batch_first


if __name__ == "__main__":
    print("int64 is_init, pad: off by", integer_is_init(False))
    print("int64 is_init, python: off by", integer_is_init(True))
    print("autocast, without resets and with:", autocast_dtypes())
    print("a step with a projection:", acting_with_a_projection())
    print("the Python LSTM's first step, proj_size=2:", unprojected_step())
    print("two layers, a state for one: the second is skipped:", layers_left_out())
    print("LSTM(3, 4, 1, False): bias, batch_first =", fourth_argument())
