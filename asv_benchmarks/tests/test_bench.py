"""``rnn-backends bench`` and the figures: their behaviour, never measured times."""

import gc
import json
import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from click.testing import CliRunner, Result
from rich.console import Console
from rnn_backends import names
from rnn_benchmarks import figures, goals, one_step, plots, quick, schedule
from rnn_benchmarks import page as bench_page
from rnn_benchmarks.cases import DENSE, MASKS, OPTIONS, PACKED, READS, SHAPES, Contestant, Shape, build, masks
from rnn_benchmarks.figures import error, memory_over_dense
from rnn_benchmarks.groups import Figures, Group, Row, run
from rnn_benchmarks.tables import seconds
from rnn_benchmarks.timing import Spread, interleaved, peak_bytes, ratio
from rnn_conformance.cli.main import cli

TINY = Shape(3, 5, 2, 4)
DOCS = Path(__file__).parents[2] / "docs"


class Clock:
    """A clock that only calls advance."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def call(self, takes: float) -> Callable[[int], None]:
        def spend(k: int) -> None:
            self.now += takes

        return spend


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["bench", *arguments], env={"COLUMNS": "200"}, catch_exceptions=False)


def test_contestants_take_turns_and_slow_ones_are_called_once() -> None:
    clock, turns = Clock(), []
    calls = {"quick": clock.call(0.1), "twice": clock.call(0.2), "slow": clock.call(30.0)}
    found = interleaved(calls, 1.0, rounds=(2, 4), slow=5.0, tick=turns.append, clock=clock)
    assert found["slow"] == [30.0]
    assert found["quick"] == pytest.approx([0.1, 0.1])
    assert turns[3:] == ["quick", "twice", "twice", "quick"]  # no contestant is always first
    assert ratio(found["twice"], found["quick"]).median == pytest.approx(2)
    assert ratio(found["slow"], found["quick"]).median == pytest.approx(300)


def test_short_calls_are_repeated_until_the_clock_does_not_count() -> None:
    clock = Clock()
    found = interleaved({"short": clock.call(1e-4)}, 0.0, rounds=(3, 3), clock=clock)
    assert found["short"] == pytest.approx([1e-4] * 3)
    assert clock.now == pytest.approx(1e-4 * (2 + 3 * 50))


def test_no_clock_runs_while_a_call_gets_ready() -> None:
    class Prepared:
        clock, ready = Clock(), 0

        def prepare(self, calls: int) -> None:
            self.clock.now += 10.0
            self.ready = calls

        def __call__(self, k: int) -> None:
            self.clock.now += 1e-3
            self.ready -= 1
            assert self.ready >= 0

    call = Prepared()
    assert interleaved({"short": call}, 0.0, rounds=(3, 3), clock=call.clock)["short"] == pytest.approx([1e-3] * 3)


@pytest.mark.parametrize("who", ["vmap", "torchrl-pad"])
@pytest.mark.parametrize("ready", [0, 2])
def test_every_step_has_a_tensordict_of_its_own(who: str, ready: int) -> None:
    step = build(Contestant(who, Shape(2, 1, 3, 4), mode="step"))
    step.prepare(ready)  # type: ignore[attr-defined]
    seen = [step(k) for k in range(3)]
    assert len({id(td) for td in seen}) == 3
    assert all(("next", "recurrent_state_h") in td for td in seen)
    assert "next" not in step.td  # type: ignore[attr-defined]
    assert not seen[0]["features"].requires_grad


def test_a_long_title_stays_in_the_picture() -> None:
    longest = "LSTMModule, B = 32, H = 128, 3 % resets, forward + backward (AMD EPYC, 2 threads)"
    figure, ax = plots.axes(longest, "x", "y")
    ax.plot([1, 2], label="torchrl-scan")
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.draw_without_rendering()
    box, whole = ax.title.get_window_extent(), figure.bbox
    box = max((box, ax._left_title.get_window_extent()), key=lambda found: found.width)
    assert whole.x0 <= box.x0
    assert box.x1 <= whole.x1


def test_spread_has_quartiles() -> None:
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(3.0, 2.0, 4.0, 5)
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0, 1)


@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("who", [name for name in names() if name not in ("compile", "triton")])  # not on a CPU
def test_every_backend_computes_the_same_case(who: str, reads: str) -> None:
    mine, others = (build(Contestant(name, TINY, "0.20", "train", reads))(1) for name in (who, "vmap"))
    assert len(mine) == 5
    for a, b in zip(mine, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # TorchRL's scan
@pytest.mark.parametrize("who", ["torchrl-pad", "torchrl-scan"])
def test_torchrl_computes_the_same_case(who: str) -> None:
    pytest.importorskip("torchrl")
    mine, theirs = (build(Contestant(name, TINY, "0.20", "train", "module"))(1) for name in ("vmap", who))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_packed_rows_compute_the_same_as_dense_ones() -> None:
    dense, packed = (build(Contestant(who, TINY, "0", "train"))(1) for who in (DENSE, PACKED))
    for one, other in zip(dense, packed, strict=True):
        torch.testing.assert_close(other, one)


def test_what_cannot_be_measured_says_why() -> None:
    with pytest.raises(NotImplementedError, match="over whole rows"):
        build(Contestant(PACKED, TINY, mode="step"))
    with pytest.raises(NotImplementedError, match="no-such"):
        build(Contestant("no-such", TINY))


def test_masks_differ_from_call_to_call_and_once_is_once() -> None:
    found = masks(SHAPES["S2"], "0.03")
    assert len({mask.numpy().tobytes() for mask in found}) == MASKS
    assert all(mask.sum(0).eq(1).all() and not mask[0].any() for mask in masks(SHAPES["S2"], "once"))
    assert masks(TINY._replace(T=1), "once")[0].all()


def test_shapes_are_read() -> None:
    assert Shape.parse("S5") == Shape.parse("8,64,16,64") == Shape.parse("B8-T64-I16-H64") == SHAPES["S5"]
    with pytest.raises(ValueError, match="four numbers"):
        Shape.parse("1,2,3")


def test_memory_is_counted_exactly() -> None:
    assert peak_bytes(lambda k: torch.zeros(1000) + torch.zeros(1000)) == 12000
    assert memory_over_dense("cudnn", TINY, "0") >= 1


@pytest.mark.parametrize("who", ["cudnn", "vmap"])
def test_error_is_against_float64(who: str) -> None:
    assert 0 < error(who, TINY, "0.20") < 1e-5


def test_command_prints_and_writes(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    said = bench("vmap", "--vs", "cudnn", "--shape", "2,3,2,4", "--resets", "0.1", "--seconds", "0", "--json", str(out))
    assert said.exit_code == 0, said.output
    assert "cudnn" in said.output
    assert "quartiles" in said.output
    rows = json.loads(out.read_text())["rows"]
    assert [row["label"] for row in rows] == ["vmap", "cudnn"]
    assert {row["base"] for row in rows} == {"cudnn"}
    assert Figures.load(out).rows[0].seconds.samples >= 3


def test_command_acts(tmp_path: Path) -> None:
    said = bench("vmap", "--vs", "nn.LSTM", "--mode", "step", "--shape", "1,1,2,4", "--seconds", "0")
    assert said.exit_code == 0, said.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nobody",), "unknown: 'nobody'"),
        (("vmap", "--vs", "nobody"), "unknown: 'nobody'"),
        (("vmap", "--shape", "1,2"), "four numbers"),
        (("vmap", "--resets", "often"), "shares between 0 and 1"),
        (("vmap", "--json", "no/such/folder.json"), "no folder"),
        (("vmap", "--png", "picture.txt"), ".png, .svg, .pdf"),
        (("vmap", "--mode", "step", "--resets", "0.1"), "has no resets"),
        (("vmap", "--mode", "step", "--shape", "2,3,4,5"), "T = 1"),
    ],
)
def test_command_refuses(arguments: tuple[str, ...], says: str) -> None:
    said = bench(*arguments)
    assert said.exit_code == 2
    assert says in said.output


def test_png_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import util

    monkeypatch.setattr(util, "find_spec", lambda name: None)
    said = bench("vmap", "--png", "x.png")
    assert said.exit_code == 2
    assert "rnn-backends[bench]" in said.output


def test_png_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "x.png"
    said = bench("vmap", "--vs", "cudnn", "--shape", "2,3,2,4", "--seconds", "0", "--png", str(file))
    assert said.exit_code == 0, said.output
    assert file.read_bytes().startswith(b"\x89PNG")


def fake(groups: list[Group], seconds: float = 1e9) -> Figures:
    """Figures for the whole schedule without a measurement."""
    clock = Clock()
    figures = Figures({"date": "-", "processor": "-", "cores": 2, "threads": 2, "python": "-", "torch": "-"})
    figures.where["torchrl"] = "-"
    made: dict[str, Any] = {"make": lambda contestant: clock.call(0.1), "rounds": (1, 1)}
    with patch.object(gc, "collect"):  # a large heap takes it half a second, and there are 150 groups
        schedule.run_all(groups, figures, seconds, clock=clock, **made)
    return figures


def test_what_the_time_does_not_reach_is_noted_and_can_be_resumed() -> None:
    groups = list(schedule.quick())
    figures = fake(groups, seconds=0.0)
    measured = [row for row in figures.rows if row.note != schedule.TIME_UP]
    assert len(measured) == len(groups[0].contestants)  # a group that has begun is finished
    assert len(figures.rows) == sum(len(group.contestants) for group in groups)
    calls: list[Contestant] = []

    def make(contestant: Contestant) -> Callable[[int], None]:
        calls.append(contestant)
        return lambda k: None

    schedule.run_all(groups[:2], figures, 1e9, make=make, rounds=(1, 1))
    assert calls == list(groups[1].contestants.values())
    assert not any(row.note == schedule.TIME_UP for row in figures.rows)


def test_page_is_filled_and_drawn(tmp_path: Path) -> None:
    figures = fake(list(schedule.full()))
    figures.numbers = {"memory/vmap/S1": 1.5, "error/vmap/S1": 1e-7, "compile/first call/T = 16": "no compiler"}
    figures.numbers |= {"products/bare products/S1": 0.6, "critics/vmap/S2": 2.5}
    figures.numbers |= {
        "peak/cudnn/S2": 0.4,
        "peak/cudnn/S1": 0.5,
        "costs/a step, in cells/H = 128": 7.0,
        "costs/a step, in cells/H = 64": 9.0,
    }
    figures.save(tmp_path / "figures.json")
    figures = Figures.load(tmp_path / "figures.json")
    page = tmp_path / "performance.md"
    page.write_text((DOCS / "performance.md").read_text())
    bench_page.fill(figures, page)
    text = page.read_text()
    assert "Not measured yet" not in text.partition("## On a GPU")[0]
    assert "| S5 B8-T64-I16-H64, 3 % | " in text
    assert "| backend | S1 | S2 |\n| --- | ---: | ---: |\n| cudnn | 50% | 40% |" in text
    assert "| what | H = 64 | H = 128 |\n| --- | ---: | ---: |\n| a step, in cells | 9.0 | 7.0 |" in text
    bench_page.fill(figures, page)
    assert page.read_text() == text  # filling twice changes nothing
    pytest.importorskip("matplotlib")
    bench_page.draw(figures, tmp_path / "plots")
    assert {"resets.png", "shapes_cpp.png", "shapes_cudnn.png", "time.png", "plan.png"} <= {
        file.name for file in (tmp_path / "plots").iterdir()
    }


def test_goals_that_are_missed_are_bold() -> None:
    def row(title: str, label: str, shape: str, resets: str, over: float) -> Row:
        spread = Spread(over, over, over, 3)
        return Row(title, label, shape, resets, "train", "output", spread, spread, "base")

    s1, s2 = (str(SHAPES[name]) for name in ("S1", "S2"))
    figures = Figures({}, [row("R", "cpp", s1, "0.03", 1.154), row("R", "cpp", s2, "0.03", 1.156)])
    figures.rows += [row("Q", peer, s1, "0.03", Q) for peer, Q in (("torchrl-pad", 30.0), ("torchrl-scan", 20.0))]
    figures.rows += [row("Q", "torchrl-pad", s2, "0.03", 4.99), row("acting", "auto", "B1-T1", "0", 0.3)]
    figures.numbers = {"compile/first call/T = 16": {"seconds": 10.0}, "compile/first call/T = 512": {"seconds": 13.0}}
    assert goals.lines(figures) == [
        ["R, 3 %", "<= 1.15", "1.15 (S1), **1.16** (S2)"],
        ["Q, 3 %", ">= 5", "20.00 (S1), **4.99** (S2)"],
        ["Q, 3 %, geometric mean", ">= 10", "**9.99**"],
        ["acting, over TorchRL", "<= 0.3", "0.30 (B1-T1)"],
        ["`compile`, first call in seconds", "<= 15", "10.00 (T = 16), 13.00 (T = 512)"],
        ["`compile`, first call, T = 512 over T = 16", "<= 1.2", "**1.30**"],
    ]


def test_one_part_measured_anew_leaves_the_others(tmp_path: Path) -> None:
    figures = fake(list(schedule.full()))
    figures.numbers = {"memory/vmap/S1": 1.5}
    file = tmp_path / "figures.json"
    figures.save(file)
    begun = bench_page._begun(file, resume=False, only=[schedule.Q])
    assert not begun.of(schedule.Q)
    assert begun.of(schedule.R) == figures.of(schedule.R)
    assert begun.numbers == figures.numbers
    assert not bench_page._begun(file, resume=False, only=["numbers"]).numbers
    assert not bench_page._begun(file, resume=False, only=[]).rows
    assert bench_page._begun(file, resume=True, only=[]).rows == figures.rows


def test_the_map_names_the_fastest(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from rnn_backends.crossovers import Cell
    from rnn_benchmarks.plots import draw_map

    times = {"cudnn": 1e-3, "vmap": 4e-3}
    cells = [Cell(64, mode, resets, 8, 64, 16, times) for mode, resets in (("train", "0.03"), ("step", "0"))]
    draw_map(cells, tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("option", [name for name in OPTIONS if name])
def test_every_option_is_measured_beside_torch_with_the_same_weights(option: str) -> None:
    """Without resets and dropout both give the same output: the same LSTM is measured."""
    outputs = [
        build(Contestant(who, Shape(2, 5, 3, 4), "0", "forward", option=option))(0) for who in ("vmap", "nn.LSTM")
    ]
    assert outputs[0].shape == outputs[1].shape
    assert outputs[0].dtype == outputs[1].dtype
    if "dropout" not in option:
        tolerance = 0.02 if option == "bfloat16" else 1e-5
        torch.testing.assert_close(*outputs, rtol=tolerance, atol=tolerance)


def test_critics_and_products_give_ratios() -> None:
    shape = Shape(2, 3, 2, 4)
    assert figures.critics("vmap", shape, "0.03", count=2, seconds=0.0) > 0
    assert figures.products_over_dense(shape, seconds=0.0) > 0


def test_the_share_of_the_peak_follows_from_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "interleaved", lambda calls, seconds: {one: times[one] for one in calls})
    shape = Shape(64, 128, 64, 256)
    work = 24 * 128 * 64 * 256 * (64 + 256) / (2 * 1024**3)  # in products
    times = {"vmap": [4 * work * 0.01], "product": [0.01]}
    assert figures.share_of_peak("vmap", shape, "0.03") == pytest.approx(1 / 4)


def test_costs_follow_from_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def times(calls: dict[str, object], seconds: float) -> dict[str, list[float]]:
        sizes = {name: tuple(map(int, name.split())) for name in calls}
        return {name: [2e-6 * (T * B + 5 * T + 300)] for name, (B, T) in sizes.items()}

    monkeypatch.setattr(figures, "interleaved", times)
    assert figures.kernel_costs(16) == pytest.approx({"cell": 2.0, "step": 5.0, "call": 300.0})


def test_quick_table_has_ratios_and_reasons() -> None:
    figures = fake(list(schedule.quick()))
    figures.rows.append(Row("R", "gone", "B1-T1-I1-H1", "0", "train", "output", note="it is not installed"))
    console = Console(width=200, record=True, file=StringIO())
    quick.show(figures, console)
    said = console.export_text()
    assert "S3, 3 %" in said
    assert "Q 1.00" in said
    assert "it is not installed" in said


def test_a_contestant_that_is_refused_keeps_its_reason() -> None:
    group = Group("x", {"no-such": Contestant("no-such", TINY), DENSE: Contestant(DENSE, TINY)}, DENSE, 0.0)
    gone, dense = run(group, rounds=(1, 1))
    assert gone.seconds is None
    assert "no-such" in gone.note
    assert dense.over is not None


@pytest.mark.parametrize(("value", "text"), [(1.5, "1.5 s"), (0.0123, "12.3 ms"), (2e-6, "2 us"), (0.9999, "1000 ms")])
def test_times_have_units(value: float, text: str) -> None:
    assert seconds(value) == text


def test_a_loop_of_steps_is_measured_beside_torchs() -> None:
    said = one_step.measure(H=4, B=2, I=3, steps=2, seconds=0.01, backends=["vmap", "cudnn"])
    assert re.fullmatch(r"H 4, B 2: nn\.LSTM \d+ us a step; vmap [\d.]+ \(.+ to .+\), cudnn [\d.]+ \(.+\)", said)


def test_a_loop_of_steps_has_gradients() -> None:
    lstm = torch.nn.LSTM(3, 4)
    seen = []
    lstm.weight_hh_l0.register_hook(lambda gradient: seen.append(gradient.abs().max() > 0))
    one_step.loop(lstm, 2, 3, 4, 3)(0)
    assert seen == [True]


def test_an_unknown_backend_ends_before_anything_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    with patch("sys.argv", ["one_step", "--backends", "nosuch"]), pytest.raises(SystemExit):
        one_step.main()
    assert "--backends nosuch: unknown LSTM backend 'nosuch'" in capsys.readouterr().err
