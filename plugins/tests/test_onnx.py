"""ONNX, by both of torch's exporters: the saved graph follows its inputs in onnxruntime, or the export is refused."""

import warnings

import numpy as np
import pytest
import torch
from rnn_backends import LSTM, LSTMSpec, State, UnsupportedError, get_backend
from torch import nn
from torch.testing import assert_close

WORDS = "not installed: it is in the dependency group onnx"
onnxruntime, *_ = [pytest.importorskip(name, reason=WORDS) for name in ("onnxruntime", "onnx", "onnxscript")]
NAMES = ("x", "h", "c", "is_init")


@pytest.fixture(params=["cpp", "compile", "cudnn", "vmap", "torchscript"])
def name(request):
    reason = get_backend(request.param).rejects(LSTMSpec(1, 1), torch.device("cpu"), torch.float32)
    if reason is not None:
        pytest.skip(reason)
    return request.param


class Resets(nn.Module):
    def __init__(self, name):
        super().__init__()
        torch.manual_seed(0)
        self.lstm = LSTM(3, 4, num_layers=2, batch_first=True, lstm_backend=name)

    def forward(self, x, h, c, is_init):
        output, (h, c) = self.lstm(x, (h, c), is_init=is_init)
        return output, h, c


class Dense(Resets):
    def forward(self, x, h, c, is_init):
        output, (h, c) = self.lstm(x, (h, c))
        return output, h, c


class Acting(Resets):
    def forward(self, x, h, c, is_init):
        output, (h, c) = self.lstm.step(x[:, 0], State(h, c), is_init[:, 0])
        return output, h, c


def inputs(B, T):
    return torch.randn(B, T, 3), torch.randn(2, B, 4), torch.randn(2, B, 4), torch.rand(B, T) < 0.4


def session(module, dynamo, path, free_length=False):
    """Exported with a free batch size, and with ``free_length`` a free number of steps."""
    example, length = inputs(2, 5), {1: "T"} if free_length else {}
    sizes = {"x": {0: "B"} | length, "h": {1: "B"}, "c": {1: "B"}, "is_init": {0: "B"} | length}
    options = {"dynamic_axes": sizes}
    if dynamo:
        free = torch.export.Dim.DYNAMIC
        options = {"dynamic_shapes": tuple(dict.fromkeys(axes, free) for axes in sizes.values()), "verbose": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations in torch and onnxscript
        torch.onnx.export(module.eval(), example, path, dynamo=dynamo, input_names=list(NAMES), **options)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    return onnxruntime.InferenceSession(path, settings)


def check(run, module, B, T):
    given = inputs(B, T)
    read = {i.name for i in run.get_inputs()}
    found = run.run(None, {name: np.asarray(v) for name, v in zip(NAMES, given, strict=True) if name in read})
    with torch.no_grad():
        assert_close(tuple(map(torch.from_numpy, found)), module(*given))


def refusal(error):
    """The project's error among the causes of torch's error."""
    while error is not None and not isinstance(error, UnsupportedError):
        error = error.__cause__ or error.__context__
    return error


@pytest.mark.parametrize("dynamo", [False, True], ids=["TorchScript exporter", "dynamo exporter"])
@pytest.mark.parametrize("kind", [Resets, Dense, Acting])
def test_a_saved_graph_follows_inputs_states_resets_and_batch_size(name, kind, dynamo, tmp_path):
    if dynamo and kind is not Resets and name not in ("vmap", "cudnn"):
        pytest.skip("one operator, or one scripted loop, to this exporter: Resets shows it, in seconds each")
    module = kind(name)
    if name == "cudnn" and kind is Resets:
        with pytest.raises(Exception, match=r".") as caught:
            session(module, dynamo, str(tmp_path / "m.onnx"))
        assert "resets' positions" in str(refusal(caught.value))
        return
    run = session(module, dynamo, str(tmp_path / "m.onnx"))
    if kind is not Dense:
        assert "is_init" in {i.name for i in run.get_inputs()}
    for B in (2, 3, 1):
        check(run, module, B, 5)


@pytest.mark.parametrize("kind", [Resets, Dense])
def test_another_number_of_steps_is_right_or_an_error_by_the_old_exporter(name, kind, tmp_path):
    module = kind(name)
    if name == "cudnn" and kind is Resets:
        pytest.skip("declined: the test above")
    run = session(module, False, str(tmp_path / "m.onnx"), free_length=True)
    for T in (1, 4, 6, 10):
        if name == "cudnn":  # torch's own ONNX node of an LSTM
            check(run, module, 3, T)
            continue
        with pytest.raises(Exception, match=r"Split|split|Squeeze|unbind|ONNXRuntimeError"):
            check(run, module, 3, T)


def test_the_dynamo_exporter_leaves_the_number_of_steps_of_vmap_free(tmp_path):
    module = Resets("vmap")
    run = session(module, True, str(tmp_path / "m.onnx"), free_length=True)
    for B, T in [(2, 5), (1, 1), (3, 1), (1, 2), (3, 2), (5, 9)]:
        check(run, module, B, T)


@pytest.mark.parametrize("name", ["cpp", "torchscript"], indirect=True)
def test_the_dynamo_exporter_refuses_a_free_number_of_steps_of_the_others(name, tmp_path):
    with pytest.raises(torch.onnx.OnnxExporterError, match=r"export|ONNX function"):
        session(Resets(name), True, str(tmp_path / "m.onnx"), free_length=True)


@pytest.mark.parametrize("dynamo", [False, True])
def test_an_lstm_without_a_module_around_it(name, dynamo, tmp_path):
    """``dynamo=False`` passes the default of every argument by its position."""
    module, x = Dense(name).lstm.eval(), torch.randn(2, 5, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations in torch and onnxscript
        torch.onnx.export(module, (x,), tmp_path / "m.onnx", dynamo=dynamo, input_names=["x"])
    run = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    output, h, c = map(torch.from_numpy, run.run(None, {"x": (2 * x).numpy()}))
    with torch.no_grad():
        assert_close((output, (h, c)), module(2 * x))
