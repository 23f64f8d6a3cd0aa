"""The border to C++: a ``Layer`` with wrong sizes, strides or pointers gives a status with a message, in each function.
The buffers have the right sizes and only their description is wrong, so that without the check the kernel would run to
its end.
"""

import ctypes
import re
import subprocess

import pytest
import torch
from rnn_backends_plugins.cpp import build, kernel

pytestmark = pytest.mark.skipif(build.unable() is not None, reason=str(build.unable()))

T, B, I, H, P = 3, 2, 5, 7, 4  # noqa: E741
DONE, INVALID, HUGE = 0, kernel.INVALID, 2**62
READ = ("x", "w_ih", "w_hh", "b_ih", "b_hh", "w_hr", "entry_h", "entry_c", "starts")
GRADIENTS = ("grad_x", "grad_w_ih", "grad_w_hh", "grad_bias", "grad_w_hr", "grad_entry_h", "grad_entry_c")
USED = {
    "forward": (*READ, "h", "c", "gates", "scratch"),
    "backward": (*READ, "h", "c", "gates", "grad_h", "grad_c", *GRADIENTS, "scratch"),
    "step": (*READ[:-1], "h", "c", "gates", "is_init"),
    "step_backward": (*READ[:-1], "h", "c", "gates", "grad_h", "grad_c", *GRADIENTS, "is_init"),
}
OPTIONAL = {"b_ih", "b_hh", "w_hr", "starts", "is_init", "gates", "grad_h", "grad_c", *GRADIENTS}


def made(function, wide):
    """A valid ``Layer``, and the tensors that it points at."""
    steps, dtype = (1 if function.startswith("step") else T), (torch.float64 if wide else torch.float32)
    shapes = {
        "x": (steps, B, I), "w_ih": (4 * H, I), "w_hh": (4 * H, P), "b_ih": (4 * H,), "b_hh": (4 * H,), "w_hr": (P, H),
        "entry_h": (steps, B, P), "entry_c": (steps, B, H), "h": (steps, B, P), "c": (steps, B, H),
        "gates": (steps, B, *kernel.gates_of(H, dtype)), "grad_h": (steps, B, P), "grad_c": (steps, B, H),
        "grad_x": (steps, B, I), "grad_w_ih": (4 * H, I), "grad_w_hh": (4 * H, P), "grad_bias": (4 * H,),
        "grad_w_hr": (P, H), "grad_entry_h": (steps, B, P), "grad_entry_c": (steps, B, H),
    }  # fmt: skip
    tensors = {name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items() if name in USED[function]}
    masks = {"starts": torch.ones(steps, B, dtype=torch.bool), "is_init": torch.zeros(B, dtype=torch.bool)}
    tensors |= {name: mask for name, mask in masks.items() if name in USED[function]}
    layer = kernel.Layer(steps, B, I, H, P, 1)
    layer.is_init_b = 1
    for name, value in tensors.items():
        setattr(layer, name, value.data_ptr())
        setattr(layer, f"room_{name}", value.untyped_storage().nbytes() // value.itemsize)
        for axis, stride in zip("tb", value.stride(), strict=False):
            if hasattr(layer, f"{name}_{axis}") and name != "is_init":
                setattr(layer, f"{name}_{axis}", stride)
    if "scratch" in USED[function]:
        needed = kernel.kernel().scratch(ctypes.byref(layer), wide, function == "backward")
        tensors["scratch"] = torch.zeros(needed + 64, dtype=torch.uint8)
        layer.scratch = (tensors["scratch"].data_ptr() + 63) // 64 * 64
        layer.room_scratch = needed
    return layer, tensors


def called(library, function, layer, wide):
    run = getattr(library, f"rnn_{function}")
    run.argtypes, run.restype = [ctypes.c_void_p, ctypes.c_bool], ctypes.c_int32
    library.rnn_message.restype = ctypes.c_char_p
    status = run(ctypes.addressof(layer), wide)
    return status, library.rnn_message().decode()


@pytest.fixture(params=[False, True], ids=["float32", "float64"])
def wide(request):
    return request.param


@pytest.mark.parametrize("function", list(USED))
def test_what_fits_is_done(function, wide):
    layer, _held = made(function, wide)
    assert called(build.library(), function, layer, wide)[0] == DONE


BUFFERS = [(function, name) for function, names in USED.items() for name in names]


def lacking(function, name, wide, room):
    layer, held = made(function, wide)
    setattr(layer, f"room_{name}", getattr(layer, f"room_{name}") - 1 if room is None else room)
    return layer, held


@pytest.mark.parametrize("room", [None, 0, -1, -HUGE], ids=["one element less", "none", "negative", "far below"])
@pytest.mark.parametrize(("function", "name"), BUFFERS)
def test_a_buffer_that_is_too_small_is_named(function, name, wide, room):
    layer, _held = lacking(function, name, wide, room)
    status, words = called(build.library(), function, layer, wide)
    assert status == INVALID
    assert re.match(rf"{name} needs \d+ elements and has", words)


@pytest.mark.parametrize(
    ("function", "name"),
    [case for case in BUFFERS if case[1] not in OPTIONAL or (case[1] == "gates" and "backward" in case[0])],
)
def test_a_buffer_without_memory_is_named(function, name, wide):
    layer, _held = made(function, wide)
    setattr(layer, name, None)
    assert called(build.library(), function, layer, wide) == (INVALID, called_words(name, function, wide))


def called_words(name, function, wide):
    layer, _held = made(function, wide)
    room = getattr(layer, f"room_{name}")
    return f"{name} needs {room} elements and has no memory"


@pytest.mark.parametrize("value", [-1, -HUGE, HUGE])
@pytest.mark.parametrize("field", ["T", "B", "I", "H", "P"])
@pytest.mark.parametrize("function", list(USED))
def test_sizes_that_cannot_be(function, field, value, wide):
    layer, _held = made(function, wide)
    setattr(layer, field, value)
    status, words = called(build.library(), function, layer, wide)
    assert status == INVALID
    assert words


STRIDES = [f"{name}_{axis}" for name in ("x", "entry_h", "entry_c", "starts") for axis in "tb"]


@pytest.mark.parametrize("value", [-1, HUGE, 10**6])
@pytest.mark.parametrize("field", [*STRIDES, "grad_h_t", "grad_h_b", "grad_c_t", "grad_c_b"])
def test_strides_that_lead_outside(field, value, wide):
    function = "backward" if field.startswith("grad") else "forward"
    layer, _held = made(function, wide)
    setattr(layer, field, value)
    assert called(build.library(), function, layer, wide)[0] == INVALID


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"threads": 0}, "one thread at least"),
        ({"threads": -3}, "one thread at least"),
        ({"starts": None}, "more than one step needs starts"),
        ({"b_ih": None}, "b_hh comes with b_ih"),
        ({"w_hr": None}, "without a projection P must be H"),
    ],
)
def test_what_does_not_fit_together(changes, words, wide):
    for function in ("forward", "backward"):
        layer, _held = made(function, wide)
        for field, value in changes.items():
            setattr(layer, field, value)
        status, said = called(build.library(), function, layer, wide)
        assert (status, words in said) == (INVALID, True)


def test_a_step_of_several_steps(wide):
    layer, _held = made("step", wide)
    layer.T = 2
    assert called(build.library(), "step", layer, wide)[0] == INVALID


@pytest.mark.slow
def test_without_the_check_the_same_calls_would_go_on(tmp_path):
    """The defect that these tests detect, planted in a copy of the sources."""
    for source in build.SOURCES.glob("*.[hc]*"):
        text = source.read_text()
        if source.name == "border.h":
            text, number = re.subn(r"if \(need == 0 \|\| \(buffer && need <= room\)\) return;", "return;", text)
            assert number == 1
        (tmp_path / source.name).write_text(text)
    command = ["g++", "-std=c++17", "-O0", "-march=native", "-fopenmp", "-shared", "-fPIC", "lstm.cpp", "-o", "l.so"]
    subprocess.run(command, check=True, cwd=tmp_path)
    unchecked = ctypes.CDLL(str(tmp_path / "l.so"))
    for function, name in BUFFERS:
        layer, _held = lacking(function, name, False, None)
        assert called(unchecked, function, layer, False)[0] == DONE, (function, name)
