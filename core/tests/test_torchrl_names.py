"""TorchRL's options of an LSTMModule: accepted if they have a meaning here, else refused with a replacement in the
message."""

from contextlib import nullcontext

import pytest
import torch
from rnn_backends import InputError, LSTMModule, UnknownBackendError, UnsupportedError
from tensordict import TensorDict

KEYS = {"in_key": "x", "out_key": "y"}


def make(*args, **options):
    return LSTMModule(3, 4, *args, **KEYS, **options)


@pytest.mark.parametrize(
    ("name", "means"), [("pad", "cudnn"), ("scan", "vmap"), ("vmap", "vmap"), ("torchscript", "torchscript")]
)
def test_a_recurrent_backend_is_a_name_of_ours_or_an_alias(name, means):
    assert make(recurrent_backend=name).lstm_backend == means
    assert make(recurrent_backend=name, lstm_backend=means).lstm_backend == means


def test_auto_chooses_and_triton_is_refused_where_it_cannot_run():
    assert make(recurrent_backend="auto").lstm_backend == make().lstm_backend
    with pytest.raises(UnsupportedError, match="triton"):
        make(recurrent_backend="triton", dtype=torch.float64)


def test_another_name_suggests_the_nearest():
    with pytest.raises(UnknownBackendError, match="cudnn"):
        make(recurrent_backend="cudn")


@pytest.mark.parametrize(
    "options",
    [
        {"recurrent_backend": "pad", "lstm_backend": "vmap"},
        {"recurrent_backend": "cudnn", "python_based": True},
        {"lstm_backend": "cudnn", "python_based": True},
        {"recurrent_backend": "scan", "lstm_backend": "cudnn", "python_based": True},
    ],
)
def test_two_backends_are_one_too_many(options):
    with pytest.raises(InputError, match="give one of them"):
        make(**options)


@pytest.mark.parametrize(
    "options", [*({"recurrent_backend": name} for name in ("scan", "pad", "auto")), {"lstm_backend": "torchrl"}, {}]
)
def test_two_names_of_the_same_backend_are_accepted(options):
    assert make(python_based=True, **options).lstm_backend == "vmap"


@pytest.mark.parametrize(
    ("option", "usual", "other", "instead"),
    [
        ("recurrent_recompute", "none", "full", "torch.utils.checkpoint"),
        ("recurrent_compute_dtype", torch.float32, torch.bfloat16, "torch.autocast"),
        ("recurrent_matmul_precision", "auto", "tf32", "allow_tf32"),
    ],
)
def test_options_of_torchrls_kernels_are_taken_at_their_defaults(option, usual, other, instead):
    make(**{option: usual})
    with pytest.raises(InputError, match=instead):
        make(**{option: other})


def test_torchrls_order_of_positional_arguments():
    assert make(1, True, True, 0.0, 0, False, False, "scan", torch.float32, "none", "auto").lstm_backend == "vmap"


def test_canonicalize_lays_out_what_the_module_reads_and_nothing_else():
    module = make(lstm_backend="vmap")
    data = TensorDict({"x": torch.randn(5, 2, 3).mT.mT.transpose(0, 1), "reward": torch.randn(5, 2).t()}, [2, 5])
    found = module.canonicalize(data)
    assert found["x"].is_contiguous()
    assert torch.equal(found["x"], data["x"])
    assert found["reward"] is data["reward"]
    assert not data["x"].is_contiguous()
    assert module.canonicalize(data, inplace=True) is data
    assert data["x"].is_contiguous()


def test_torchrls_function_takes_our_modules():
    torchrl_modules = pytest.importorskip("torchrl.modules", reason="it is TorchRL's")
    data = TensorDict({"x": torch.randn(5, 2, 3).transpose(0, 1)}, [2, 5])
    found = torchrl_modules.canonicalize_rnn_subset(data, [make(lstm_backend="vmap"), make(lstm_backend="cudnn")])
    assert found["x"].is_contiguous()


def test_burn_in_brings_the_stored_state_up_to_date():
    transforms = pytest.importorskip("torchrl.envs.transforms", reason="it is TorchRL's")
    module = make(lstm_backend="vmap", default_recurrent_mode=True)
    data = TensorDict(
        {
            "x": torch.randn(2, 6, 3),
            "is_init": torch.zeros(2, 6, 1, dtype=torch.bool),
            "recurrent_state_h": torch.randn(2, 6, 1, 4),
            "recurrent_state_c": torch.randn(2, 6, 1, 4),
        },
        [2, 6],
    )
    whole = module(data.clone())["y"]
    burnt = transforms.BurnInTransform([module], burn_in=2)(data.clone())
    torch.testing.assert_close(module(burnt)["y"], whole[:, 2:])


def test_the_default_mode_is_torchrls():
    modules = pytest.importorskip("torchrl.modules", reason="it is TorchRL's")
    for own in (None, False, True):
        options = {"input_size": 3, "hidden_size": 4, **KEYS, "default_recurrent_mode": own}
        assert LSTMModule(**options).recurrent_mode == modules.LSTMModule(**options).recurrent_mode == bool(own)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"recurrent_backend": "vmap"}, ValueError),
        ({"recurrent_recompute": "full"}, ValueError),
        ({"recurrent_backend": "scan", "recurrent_recompute": "full"}, None),
        ({"recurrent_backend": "pad", "recurrent_compute_dtype": torch.bfloat16}, None),
        ({"recurrent_backend": "scan", "recurrent_matmul_precision": "tf32"}, None),
        ({"recurrent_backend": "pad", "python_based": True}, None),
    ],
    ids=str,
)
def test_what_the_page_says_of_torchrls_own_options(options, error):
    modules = pytest.importorskip("torchrl.modules", reason="it is TorchRL's")
    with pytest.raises(error, match="recurrent_") if error else nullcontext():
        modules.LSTMModule(3, 4, **KEYS, **options)


def test_what_the_page_says_of_torchrls_own_module():
    modules = pytest.importorskip("torchrl.modules", reason="it is TorchRL's")
    theirs = modules.LSTMModule(3, 4, **KEYS, default_recurrent_mode=True)
    with pytest.raises(RuntimeError, match="removed"):
        theirs.set_recurrent_mode(True)
    data = TensorDict({"x": torch.randn(2, 3), "is_init": torch.zeros(2, 1, dtype=torch.bool)}, [2])
    data["recurrent_state_h"], data["recurrent_state_c"] = torch.zeros(2, 1, 2), torch.zeros(2, 1, 4)
    with pytest.raises(RuntimeError, match="must match"):  # a projection while acting
        modules.LSTMModule(3, 4, proj_size=2, **KEYS)(data)
    del data["recurrent_state_c"]
    with pytest.raises(RuntimeError, match="NoneType"):
        theirs(data.unsqueeze(1))
