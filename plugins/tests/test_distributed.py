"""FSDP2, DDP and DTensors, in one process and in two: numbers and gradients of the plain module, or a refusal."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed
from rnn_backends import LSTMSpec, get_backend

BACKENDS = ("cpp", "compile", "cudnn", "vmap", "torchscript")
CALLS = ("dense", "resets", "step", "act")
DECLINED = {"cpp": {*CALLS}, "cudnn": {*CALLS}, "compile": {"dense", "resets"}}
"""The backends with kernels that have no rule for DTensors, and the calls of those kernels."""


def available():
    cpu = torch.device("cpu")
    return [name for name in BACKENDS if get_backend(name).rejects(LSTMSpec(1, 1), cpu, torch.float32) is None]


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def found(request):
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    command = [sys.executable, str(Path(__file__).with_name("distributed_run.py")), str(request.param), *available()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check_numbers(given):
    assert isinstance(given, list), given
    assert max(given) < 1e-5, given


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_sharded_and_data_parallel_modules_compute_and_train_like_the_plain_one(found, backend):
    cases = {key: value for key, value in found.items() if key.startswith((f"{backend}: FSDP2", f"{backend}: DDP"))}
    if backend not in available():
        pytest.skip(f"{backend} is declined on this machine")
    assert len(cases) == 9
    for case, given in cases.items():
        if "FSDP2 of module" in case:  # FSDP2 does not look into a TensorDict
            assert given.startswith("InputError: FSDP2 shards this LSTMModule"), given
        else:
            check_numbers(given)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("placement", ["replicated", "sharded"])
@pytest.mark.parametrize("call", CALLS)
def test_dtensors_give_the_number_or_are_declined_in_words(found, backend, placement, call):
    if backend not in available():
        pytest.skip(f"{backend} is declined on this machine")
    given = found[f"{backend}: DTensor, {placement}, {call}"]
    if call in DECLINED.get(backend, ()):
        assert given.startswith("UnsupportedError: "), given
        assert "a DTensor" in given
        assert "full_tensor() or to_local()" in given
    else:
        check_numbers(given)
