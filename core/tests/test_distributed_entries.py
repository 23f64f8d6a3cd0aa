"""DTensors as entries of a TensorDict, over a mesh of one process: right numbers and gradients, or a refusal with a
reason.

``plugins/tests/test_distributed.py`` has the tensor interface, and meshes of two processes.
"""

import pytest
import torch
from rnn_backends import InputError, LSTMModule, UnsupportedError
from tensordict import TensorDict
from torch import distributed, nn
from torch.testing import assert_close

if not distributed.is_available() or not distributed.is_gloo_available():
    pytest.skip("this torch has no gloo", allow_module_level=True)

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

H, C = "recurrent_state_h", "recurrent_state_c"
OUT = ("y", ("next", H), ("next", C))
WHICH = {
    "everything": ("x", "is_init", H, C, "weights"),
    "without states": ("x", "is_init", "weights"),
    "all entries": ("x", "is_init", H, C),
    "the input": ("x",),
    "h": (H,),
    "c": (C,),
    "both states": (H, C),
    "the mask": ("is_init",),
    "input and states": ("x", H, C),
    "the weights": ("weights",),
}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        meet = tmp_path_factory.mktemp("gloo") / "meet"
        distributed.init_process_group("gloo", f"file://{meet}", world_size=1, rank=0)
        yield init_device_mesh("cpu", (1,))
        distributed.destroy_process_group()


def made(backend, recurrent):
    torch.manual_seed(0)
    return LSTMModule(3, 4, in_key="x", out_key="y", lstm_backend=backend, default_recurrent_mode=recurrent)


def rows(recurrent, states):
    torch.manual_seed(1)
    batch = (4, 5) if recurrent else (4,)
    entries = {"x": torch.randn(*batch, 3), "is_init": torch.rand(*batch, 1) < 0.4}
    if states:
        entries |= {H: torch.randn(*batch, 1, 4), C: torch.randn(*batch, 1, 4)}
    return TensorDict(entries, batch)


def whole(value):
    return value.full_tensor() if isinstance(value, DTensor) else value


@pytest.mark.parametrize("recurrent", [True, False], ids=["recurrent", "a step"])
@pytest.mark.parametrize("placement", [Replicate(), Shard(0)], ids=["replicated", "shards of the batch"])
@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("backend", [None, "vmap"], ids=["the default", "vmap"])
def test_entries_that_are_distributed_are_right_or_refused(mesh, backend, which, placement, recurrent):
    td, plain = rows(recurrent, which != "without states"), made(backend, recurrent)
    expected = plain(td.clone())
    module = made(backend, recurrent)
    for name in WHICH[which]:
        if name != "weights":
            td[name] = distribute_tensor(td[name], mesh, [placement])
            continue
        for weight, value in dict(module.lstm.named_parameters()).items():
            setattr(module.lstm, weight, nn.Parameter(distribute_tensor(value.detach(), mesh, [Replicate()])))
    keys = set(td.keys(True))
    alike = "weights" in WHICH[which] and len(WHICH[which]) > 1
    if not alike:
        with pytest.raises(InputError, match="some of the tensors are DTensors and others are not"):
            module(td)
    elif backend is None:
        with pytest.raises(UnsupportedError, match="a DTensor, for which its operator has no rule"):
            module(td)
    if not alike or backend is None:
        assert set(td.keys(True)) == keys
        return
    if torch.__version__ < (2, 13) and recurrent and placement == Shard(0):  # it multiplies no such shards
        with pytest.raises(RuntimeError, match="Sharding propagation failed"):
            module(td)
        return
    found = module(td)
    assert_close([whole(found[key]) for key in OUT], [expected[key] for key in OUT])
    for run, result in ((module, found), (plain, expected)):
        whole(result["y"]).square().sum().backward()
        assert run.lstm.weight_hh_l0.grad is not None
    assert_close(whole(module.lstm.weight_hh_l0.grad), plain.lstm.weight_hh_l0.grad)
