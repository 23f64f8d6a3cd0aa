"""The asv benchmarks, without asv: all import, and a method of every kind in every class runs at a tiny size."""

import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from rnn_benchmarks import cases, figures, groups, schedule

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
TINY = cases.Shape(2, 3, 2, 4)
KINDS = ("timeraw_", "time_", "track_")


def suite(name: str) -> ModuleType:
    """A module of the folder ``benchmarks``, imported under a name that no installed package has."""
    if "asv_suite" not in sys.modules:
        spec = importlib.util.spec_from_file_location("asv_suite", FOLDER / "__init__.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules["asv_suite"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["asv_suite"])
    path = list(sys.path)
    try:
        return importlib.import_module(f"asv_suite.{name}")
    finally:
        sys.path[:] = path


def benchmarks() -> dict[str, type]:
    found = {}
    for file in sorted(FOLDER.glob("[!_]*.py")):
        module = suite(file.stem)
        for name, value in vars(module).items():
            if inspect.isclass(value) and value.__module__ == module.__name__ and methods(value):
                found[f"{file.stem}.{name}"] = value
    return found


def methods(benchmark: type) -> list[str]:
    return [name for name in dir(benchmark) if name.startswith(KINDS)]


BENCHMARKS = benchmarks()


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny shapes, the fewest rounds."""
    common = suite("common")
    one_step = TINY._replace(T=1)
    monkeypatch.setattr(common, "shape_of", lambda text: one_step if text in cases.STEPS else TINY)
    monkeypatch.setattr(figures, "SECONDS", 0.0)
    monkeypatch.setattr(common, "_threads", lambda: None)
    common.case.cache_clear()
    common.refuse.cache_clear()


def parameters(benchmark: type) -> list[str]:
    """The first value of every list; a backend that needs no compiler."""
    return ["vmap" if name == "backend" else values[0] for name, values in zip(*axes(benchmark), strict=True)]


def axes(benchmark: type) -> tuple[tuple[str, ...], tuple[list[str], ...]]:
    return getattr(benchmark, "param_names", ()), getattr(benchmark, "params", ())


def test_asv_finds_the_benchmarks_of_every_kind() -> None:
    names = {name for benchmark in BENCHMARKS.values() for name in methods(benchmark)}
    assert {kind for kind in KINDS for name in names if name.startswith(kind)} == set(KINDS)
    assert {"times.Acting", "figures.R", "figures.Q"} <= set(BENCHMARKS)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # TorchRL's scan
@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_of_each_class_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "figures.Q":
        pytest.importorskip("torchrl")
    chosen = methods(BENCHMARKS[name]) if name != "figures.Compiling" else ["track_first_call_T16"]  # seconds each
    for method in chosen:
        benchmark, values = BENCHMARKS[name](), parameters(BENCHMARKS[name])
        if hasattr(benchmark, "setup"):
            benchmark.setup(*values)
        result = getattr(benchmark, method)(*values)
        if method.startswith("track_"):
            assert isinstance(result, float)
            assert result > 0
        elif method.startswith("timeraw_"):
            for statement in [result] if isinstance(result, str) else result:
                exec(statement, {})


@pytest.mark.parametrize("name", BENCHMARKS)
def test_parameters_are_lists_of_short_strings_with_a_name_each(name: str) -> None:
    names, lists = axes(BENCHMARKS[name])
    assert len(names) == len(lists)
    for values in lists:
        assert isinstance(values, list)
        assert len(set(values)) == len(values)
        assert all(isinstance(value, str) and len(value) < 30 for value in values)
    for method in methods(BENCHMARKS[name]):
        assert list(inspect.signature(getattr(BENCHMARKS[name], method)).parameters)[1:] == list(names)


def test_every_shape_and_step_is_read_from_its_name() -> None:
    common = importlib.reload(suite("common"))
    assert [common.shape_of(text) for text in common.SHAPES] == list(cases.SHAPES.values())
    assert [common.shape_of(text) for text in common.STEPS] == list(cases.STEPS.values())


def test_what_cannot_be_measured_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotImplementedError, match="no-such"):
        BENCHMARKS["figures.R"]().setup("no-such", "S1", "output only")
    monkeypatch.setattr(suite("common"), "DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(NotImplementedError, match="no CUDA device"):
        BENCHMARKS["figures.R"]().setup("vmap", "S1", "output only")


def test_the_page_and_asv_measure_R_and_Q_by_the_same_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group of the page and one of asv differ only in the number of contestants and in seconds."""
    seen: list[groups.Group] = []

    def measured(group: groups.Group) -> list[groups.Row]:
        seen.append(group)
        two = groups.Spread(2.0, 2.0, 2.0, 1)
        about = ("0.03", "train", "output")
        return [groups.Row(group.title, label, "", *about, two, two, group.base) for label in group.contestants]

    monkeypatch.setattr(figures, "run", measured)
    shape = cases.SHAPES["S2"]
    assert figures.measure_R("vmap", shape, "0.03") == 2
    assert figures.measure_Q("auto", shape, "0.03", schedule.THEIRS) == 2
    page = [group for group in schedule.full() if group.first.shape == shape and group.first.resets == "0.03"]
    for mine, title in zip(seen, (schedule.R, schedule.Q), strict=True):
        [theirs] = [group for group in page if group.title == title]
        assert mine.base == theirs.base
        assert mine.contestants.items() <= theirs.contestants.items()
