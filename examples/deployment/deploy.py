"""A trained LSTM saved for programs without this project, run from Python and from C++, and compared.

python examples/deployment/deploy.py --out FOLDER

1. torch.export with the backend `cpp`: the program calls its operator, so it needs Python and this project.
2. AOTInductor with the backend `vmap`: the program has torch's own operators, so C++ needs torch alone.
3. TorchScript with the backend `torchscript`: C++ needs torch alone.

Batch size and number of steps are free in each.

2 and 3 are run by run.cpp, which is compiled here with CXX (else g++) against the installed torch. Each line has the
largest difference from the LSTM's results for all steps at once; a difference above 1e-5 is an error. The state is
carried from call to call, and resets are at any step. It takes a minute, most of it in compilers.
"""

import argparse
import os
import subprocess
import warnings
from pathlib import Path

import torch
from rnn_backends import LSTM
from torch.utils import cpp_extension

warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
HERE = Path(__file__).parent
STEPS, ROWS, INPUTS, LAYERS, HIDDEN = 12, 3, 4, 2, 16
PIECES = (1, 2, 5, STEPS)
FREE = torch.export.Dim.DYNAMIC


class Deployed(torch.nn.Module):
    """A module with tensors as arguments and results, which each of the three ways can save."""

    def __init__(self, lstm):
        super().__init__()
        self.lstm = lstm

    def forward(self, x, h, c, is_init):
        """``x [B, T, I]``, ``h`` and ``c [L, B, H]``, ``is_init [B, T]`` bool -> ``output [B, T, H]``, ``h``, ``c``."""
        output, (h, c) = self.lstm(x, (h, c), is_init=is_init)
        return output, h, c


def exported(lstm):
    """The program for any batch size and number of steps; the example's must be 2 or more."""
    inputs = torch.randn(2, 6, INPUTS), *torch.zeros(2, LAYERS, 2, HIDDEN), torch.zeros(2, 6, dtype=torch.bool)
    shapes = {0: FREE, 1: FREE}, {1: FREE}, {1: FREE}, {0: FREE, 1: FREE}
    return torch.export.export(Deployed(lstm).eval(), inputs, dynamic_shapes=shapes)


def run_python(name, program, rows, piece):
    """Run over all steps in pieces, carrying the state, and print the largest difference from the expected results."""
    x, is_init, expected = rows
    h, c, outputs = *torch.zeros(2, LAYERS, ROWS, HIDDEN), []
    for start in range(0, STEPS, piece):
        now = slice(start, start + piece)
        output, h, c = program(x[:, now].contiguous(), h, c, is_init[:, now].contiguous())
        outputs.append(output)
    error = (torch.cat(outputs, 1) - expected).abs().max().item()
    print(f"{name}, from Python: pieces of {piece}: largest difference {error:.1e}", flush=True)
    assert error < 1e-5


def compiled(folder):
    """The program of run.cpp, linked against the libraries of the torch that is installed."""
    program, libraries = folder / "run", cpp_extension.library_paths()
    command = [*os.environ.get("CXX", "g++").split(), "-std=c++20", str(HERE / "run.cpp"), "-o", str(program)]
    command += [f"-I{path}" for path in cpp_extension.include_paths()]
    command += [part for path in libraries for part in (f"-L{path}", f"-Wl,-rpath,{path}")]
    subprocess.run([*command, "-ltorch", "-ltorch_cpu", "-lc10"], check=True)
    return program


def main():
    """Save, load and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the saved programs and numbers")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)

    lstm = LSTM(INPUTS, HIDDEN, LAYERS, batch_first=True, lstm_backend="cudnn").eval()  # trained, on any backend
    x, is_init = torch.randn(ROWS, STEPS, INPUTS), torch.rand(ROWS, STEPS) < 0.3
    with torch.no_grad():
        rows = x, is_init, lstm(x, is_init=is_init)[0]
        for name, value in zip(("x", "is_init", "expected"), rows, strict=True):
            (folder / f"{name}.bin").write_bytes(value.float().contiguous().numpy().tobytes())

        torch.export.save(exported(lstm.with_backend("cpp")), folder / "exported.pt2")
        package = str(folder / "compiled.pt2")
        torch._inductor.aoti_compile_and_package(exported(lstm.with_backend("vmap")), package_path=package)
        for piece in PIECES:
            run_python("torch.export", torch.export.load(folder / "exported.pt2").module(), rows, piece)
            run_python("AOTInductor", torch._inductor.aoti_load_package(package), rows, piece)

    torch.jit.script(lstm.with_backend("torchscript")).save(str(folder / "lstm.pt"))
    program = compiled(folder)
    sizes = [str(size) for size in (STEPS, ROWS, INPUTS, LAYERS, HIDDEN)]
    for file in ("compiled.pt2", "lstm.pt"):
        for piece in PIECES:
            subprocess.run([program, folder / file, folder, *sizes, str(piece)], check=True)


if __name__ == "__main__":
    main()
