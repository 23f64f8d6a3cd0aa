"""Everything that only a GPU can show, by one command: laws, tests, figures, and the times that auto uses.

  python -m rnn_benchmarks.gpu run                      on the GPU, at most 6 minutes, into gpu-results/
  python -m rnn_benchmarks.gpu run --minutes 3 --parts environment,figures
  python -m rnn_benchmarks.gpu run --device cpu --minutes 1     the same way on a CPU, to try it out
  python -m rnn_benchmarks.gpu page gpu-results         fill the GPU parts of docs/ and the shipped crossovers from it
  python -m rnn_benchmarks.gpu model                    what the Triton kernels should cost, on paper, into docs/
  python -m rnn_benchmarks.gpu compile                  without a GPU: what triton's first calls take to compile
  python -m rnn_benchmarks.gpu memory                   without a GPU: the memory of its training calls
  python -m rnn_benchmarks.gpu host --tree ../other     without a GPU: what its calls take around the kernels, and there

The parts, in order: environment, laws, tests, figures, cuts, products, crossovers, quick. Each has a share of the time
and what earlier ones left over, is stopped with all that it started when that is up, and has written down by then what
it has: environment.json, smoke-NAME.jsonl, tests.xml, figures.json, cuts.json, products.json, crossovers.json,
quick-NAME.jsonl, a log of every process, and run.json, which says how each part ended. In place of run, environment,
figures, cuts, products and crossovers are that part alone.
"""

from __future__ import annotations

import json
import signal
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

from rnn_backends.paths import write_whole

OUT = Path("gpu-results")


def _parser() -> ArgumentParser:
    parser = ArgumentParser("rnn_benchmarks.gpu", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    words = parser.add_subparsers(dest="what", required=True)
    run = words.add_parser("run", help="all parts within a limit")
    run.add_argument("--minutes", type=float, default=6.0, help="for all of it; default: %(default)s")
    run.add_argument("--parts", default="", help="names with commas between; default: all")
    run.add_argument("--tests", type=Path, help="the folder of the tests that need CUDA; default: no such part")
    run.add_argument("--law", action="append", default=[], help="only laws with this in their name")
    parts = [run]
    for what in ("environment", "figures", "cuts", "products", "crossovers"):
        one = words.add_parser(what, help="this part alone")
        one.add_argument("--seconds", type=float, default=120.0, help="its limit; default: %(default)s")
        parts.append(one)
    for one in parts:
        one.add_argument("--device", default="cuda", help="default: %(default)s")
        one.add_argument("--out", type=Path, default=OUT, help="the folder for all of it; default: %(default)s")
        one.add_argument("--backend", type=_backend, action="append", default=[], help="only this one; may be repeated")
        one.add_argument(
            "--shape", type=_shape, action="append", default=[], help="B,T,I,H or S1 to S5, G1; may be repeated"
        )
        one.add_argument(
            "--acting", type=_shape, action="append", default=[], help="B,1,I,H of single steps; may be repeated"
        )
    page = words.add_parser("page", help="fill the documentation from a folder")
    page.add_argument("folder", type=Path, nargs="?", default=OUT)
    page.add_argument("--docs", type=Path, default=Path("docs"), help="default: %(default)s")
    page.add_argument("--crossovers", type=Path, default=Path("core/rnn_backends/crossovers.json"))
    model = words.add_parser("model", help="fill the documentation's model of the Triton kernels' cost")
    model.add_argument("--docs", type=Path, default=Path("docs"), help="default: %(default)s")
    for what, says in (
        ("compile", "how long the kernels of first calls take to compile, without a GPU"),
        ("host", "how long calls take on the host, with launches that go nowhere"),
        ("memory", "the memory of triton's training calls, over the least that torch.nn.LSTM's take"),
    ):
        one = words.add_parser(what, help=says)
        one.add_argument(
            "--shape", type=_shape, action="append", default=[], help="B,T,I,H or S1 to S5, G1; may be repeated"
        )
        if what != "memory":
            one.add_argument("--tree", type=_tree, help="another checkout to measure beside this one")
        if what != "host":
            one.add_argument(
                "--precision",
                type=_precision,
                action="append",
                default=[],
                help="TF32, float32 or bfloat16; may be repeated",
            )
        else:
            one.add_argument("--backend", choices=["triton", "cudnn"], default="triton", help="default: %(default)s")
            one.add_argument("--rounds", type=_count, default=3, help="processes of each; default: %(default)s")
    return parser


def _backend(name: str) -> str:
    """The name of a backend."""
    from rnn_backends import RNNBackendsError, get_backend

    try:
        get_backend(name)
    except RNNBackendsError as error:
        raise ArgumentTypeError(str(error)) from None
    return name


def _tree(text: str) -> Path:
    """The folder of a checkout."""
    found = Path(text)
    missing = [name for name in ("core/rnn_backends", "plugins/rnn_backends_plugins") if not (found / name).is_dir()]
    if missing:
        raise ArgumentTypeError(f"{text} is no checkout of this project: it has no folder {missing[0]}")
    return found.resolve()


def _count(text: str) -> int:
    """A number of at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"it must be a whole number of at least 1, got {text!r}")
    return int(text)


def _precision(text: str) -> str:
    """The name of a precision."""
    from .settings import PRECISIONS

    if text not in PRECISIONS:
        raise ArgumentTypeError(f"it must be one of {', '.join(PRECISIONS)}, got {text!r}")
    return text


def _shape(text: str) -> str:
    """The text of a shape."""
    from .settings import shape_called

    try:
        shape_called(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None
    return text


def main(words: list[str] | None = None) -> None:
    """Run one of the words; those of the command line where none are given."""
    parser = _parser()
    options = parser.parse_args(words)
    if options.what == "page":
        from .page import NotOfAGpuError, fill_all

        try:
            written = fill_all(options.folder, options.docs, options.crossovers)
        except (NotOfAGpuError, FileNotFoundError) as error:
            parser.error(str(error))
        for path in written:
            print(f"filled {path}")
        return
    if options.what == "model":
        from .model import fill

        print(f"filled {fill(options.docs)}")
        return
    if options.what in ("compile", "host", "memory"):
        _without_a_gpu(options)
        return
    _device(options, parser)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.what == "run":
        raise SystemExit(_run(options, parser))
    _one(options)


def _without_a_gpu(options: Namespace) -> None:
    from . import compiling, host, memory
    from .settings import GPU_SHAPES, PRECISIONS, chosen

    if options.what == "compile":
        compiling.show(
            chosen(options.shape, GPU_SHAPES.values()), options.precision or list(PRECISIONS), options.tree, _say
        )
    if options.what == "memory":
        memory.show(chosen(options.shape, GPU_SHAPES.values()), options.precision or list(PRECISIONS), _say)
    for shape in chosen(options.shape, [host.SHAPE]) if options.what == "host" else []:
        host.show(options.backend, shape, options.rounds, options.tree, _say)


def _device(options: Namespace, parser: ArgumentParser) -> None:
    import torch

    try:
        kind = torch.device(options.device).type
    except RuntimeError as error:
        parser.error(f"--device: {error}")
    if kind == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here. To try the command out on a CPU: --device cpu --minutes 1")


def _run(options: Namespace, parser: ArgumentParser) -> int:
    from .parts import run_all, stop
    from .plan import PARTS, Choice, parts_of

    names = tuple(name.strip() for name in options.parts.split(",") if name.strip()) or PARTS
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"--parts: there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    choice = Choice(
        options.device, options.out.resolve(), names, tuple(options.backend), tuple(options.law),
        options.tests.resolve() if options.tests else None, tuple(options.shape), tuple(options.acting),
    )  # fmt: skip
    signal.signal(signal.SIGTERM, stop)  # the end of this process ends the processes that it started

    def keep(found: dict[str, Any]) -> None:
        about = {"device": options.device, "minutes": options.minutes, "parts": found}
        write_whole(choice.folder / "run.json", json.dumps(about, indent=1) + "\n")

    found = run_all(parts_of(choice), choice.folder, 60 * options.minutes, _say, keep)
    print(f"everything is in {options.out}; from it: python -m rnn_benchmarks.gpu page {options.out}")
    return int(any(job["status"] != 0 for part in found.values() for job in part["jobs"]))


def _say(line: str) -> None:
    print(line, flush=True)


def _one(options: Namespace) -> None:
    if options.what == "environment":
        from .environment import environment

        found = environment(options.device)
        write_whole(options.out / "environment.json", json.dumps(found, indent=1) + "\n")
        print(json.dumps(found, indent=1))
    elif options.what == "figures":
        from .measure import measure

        measure(options.device, options.out, options.seconds, options.backend, options.shape, options.acting, _say)
    elif options.what == "cuts":
        from .cuts import measure_cuts

        measure_cuts(options.device, options.out, options.seconds, options.shape, _say)
    elif options.what == "products":
        from .products import measure_products

        measure_products(options.device, options.out, options.seconds, options.shape, _say)
    else:
        from .crossovers import measure_crossovers

        measure_crossovers(options.device, options.out, options.seconds, options.backend, options.shape, _say)


if __name__ == "__main__":
    main()
