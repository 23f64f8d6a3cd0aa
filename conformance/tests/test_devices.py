"""A missing device: no law runs, none is reported as held, and the run is incomplete."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner
from rnn_backends import LSTMBackend, register, unregister
from rnn_backends.authoring import unroll
from rnn_conformance.check import check_backend
from rnn_conformance.cli.check import check_command
from rnn_conformance.suite.device import exact_float32, tf32_allowed
from rnn_conformance.suite.torch_settings import restored_settings

SOME = ["one_row", "rollout_equals_torch_lstm", "a_compiled_result_outlives_the_next_call"]


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_without_a_gpu_every_law_declines_and_the_report_is_incomplete():
    report = check_backend("vmap", device="cuda", laws=SOME, profile="full")
    assert [(r.verdict, r.message, r.cases) for r in report.results] == [("declined", "no CUDA device", 0)] * 3
    assert not report.complete
    assert not report.ok
    assert report.failures == []


def test_without_a_gpu_the_command_says_so_and_ends_with_status_3(tmp_path):
    file = tmp_path / "report.jsonl"
    options = ["vmap", "--profile", "smoke", "-k", "one_row", "--device", "cpu,cuda", "--json", str(file)]
    ran = CliRunner().invoke(check_command, options)
    assert ran.exit_code == 3, ran.output
    assert "? vmap on cuda: no CUDA device" in ran.output
    assert "1 law ran on 1 of 2 backends" in ran.output
    assert '"no CUDA device"' in file.read_text()


def test_a_device_of_no_kind_is_bad_usage():
    assert CliRunner().invoke(check_command, ["vmap", "--device", "warp"]).exit_code == 2


def test_float32_is_float32_on_cuda_and_the_settings_come_back(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with exact_float32("cuda"):
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32
    with exact_float32("cpu"):
        assert torch.backends.cudnn.allow_tf32


def test_float32_is_float32_on_cuda_where_torchs_newer_names_were_used():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    with restored_settings():
        cudnn.rnn.fp32_precision, matmul.fp32_precision = "ieee", "tf32"  # allow_tf32 of both raises an error now
        with tf32_allowed("cuda"):
            assert (cudnn.rnn.fp32_precision, matmul.fp32_precision) == ("tf32", "tf32")
        with exact_float32("cuda"):
            assert (cudnn.rnn.fp32_precision, matmul.fp32_precision) == ("ieee", "ieee")
        assert (cudnn.rnn.fp32_precision, matmul.fp32_precision) == ("ieee", "tf32")


@pytest.fixture
def _made_for_another_device():
    elsewhere = LSTMBackend("elsewhere", unroll, lambda spec, device, dtype: f"made for warp, not for {device.type}")
    register(elsewhere)
    yield
    unregister("elsewhere")


@pytest.mark.usefixtures("_made_for_another_device")
def test_a_backend_for_another_device_does_not_hold_here():
    named = CliRunner().invoke(check_command, ["elsewhere", "--profile", "smoke", "-k", "one_row"])
    assert named.exit_code == 3, named.output
    assert "? elsewhere: made for warp, not for cpu" in named.output
    assert "held" not in named.output


@pytest.mark.usefixtures("_made_for_another_device")
def test_who_names_no_backend_is_told_which_were_left_out():
    ran = CliRunner().invoke(check_command, ["--profile", "smoke", "-k", "a_net_over_one"])
    assert ran.exit_code == 0, ran.output
    assert "not run   elsewhere on cpu: made for warp, not for cpu" in ran.output
    assert "elsewhere  " not in ran.output.split("not run")[-1].split("\n", 1)[1]
