"""``make gpu``: what it runs, what it keeps when a part hangs, and the pages that are filled from its folder."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rnn_backends.crossovers import parse
from rnn_backends_plugins.triton.plan import Plan
from rnn_benchmarks.cases import Shape
from rnn_benchmarks.gpu import measure as gpu_measure
from rnn_benchmarks.gpu import model
from rnn_benchmarks.gpu.__main__ import main
from rnn_benchmarks.gpu.page import BETWEEN, NotOfAGpuError, fill_all, tables
from rnn_benchmarks.gpu.parts import Job, Part, run_all, run_part
from rnn_benchmarks.gpu.plan import PARTS, Choice, parts_of
from rnn_benchmarks.gpu.settings import precision, shape_called
from rnn_benchmarks.groups import Figures, Row
from rnn_benchmarks.timing import Spread

ROOT = Path(__file__).parents[2]
HANGS = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"], stdout=subprocess.PIPE)
child.stdout.readline()
print("child", child.pid, flush=True)
time.sleep(600)
"""  # noqa: E501


def job(name, program):
    return Job(name, (sys.executable, "-c", program))


def alive(pid):
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_part_that_hangs_is_cut_off_with_its_children_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr("rnn_benchmarks.gpu.parts.GRACE", 0.2)
    kept, said = [], []
    parts = [
        Part("hanging", "sleeps", 3.0, lambda: [job("hanging", HANGS), job("waiting", "")]),
        Part("next", "prints", 30.0, lambda: [job("next", "print('here')")]),
    ]
    found = run_all(parts, tmp_path, 66.0, said.append, lambda now: kept.append(list(now)))
    assert [(one["name"], one["status"]) for one in found["hanging"]["jobs"]] == [
        ("hanging", "cut off"),
        ("waiting", "not begun"),
    ]
    assert found["next"]["jobs"][0]["status"] == 0
    assert (tmp_path / "next.log").read_text() == "here\n"
    pid = int((tmp_path / "hanging.log").read_text().split()[1])  # its output so far is kept
    assert not alive(pid)
    assert kept == [["hanging"], ["hanging", "next"]]
    assert any("hanging: 0 of 2 ended well" in line for line in said)


def test_children_of_a_job_that_ended_are_ended_too(tmp_path, monkeypatch):
    monkeypatch.setattr("rnn_benchmarks.gpu.parts.GRACE", 0.2)
    leaves = HANGS.replace('time.sleep(600)\n"""', "").rpartition("time.sleep(600)")[0]
    (ended,) = run_part(Part("one", "", 1.0, lambda: [job("one", leaves)]), tmp_path, 60.0)
    assert ended.status == 0
    assert not alive(int((tmp_path / "one.log").read_text().split()[1]))


def test_a_part_that_cannot_begin_says_why_and_the_others_go_on(tmp_path):
    def broken():
        raise OSError("no such plugin")

    parts = [Part("broken", "", 1.0, broken), Part("next", "", 1.0, lambda: [job("next", "raise SystemExit(3)")])]
    found = run_all(parts, tmp_path, 120.0, lambda line: None)
    assert found["broken"]["jobs"][0]["status"] == "failed: OSError"
    assert "no such plugin" in (tmp_path / "broken.log").read_text()
    assert found["next"]["jobs"][0]["status"] == 3


def test_time_that_a_part_leaves_goes_to_the_next_and_the_whole_is_never_more(tmp_path):
    parts = [Part("a", "", 1.0, lambda: []), Part("b", "", 3.0, lambda: [])]
    found = run_all(parts, tmp_path, 40.0, lambda line: None)
    assert found["a"]["limit"] == pytest.approx(10, abs=1)
    assert found["b"]["limit"] == pytest.approx(40, abs=1)


def test_who_ends_the_command_ends_what_it_started(tmp_path):
    program = f"""
import signal
from pathlib import Path
from rnn_benchmarks.gpu import parts
parts.GRACE = 0.2
signal.signal(signal.SIGTERM, parts.stop)
one = parts.Job("one", ({sys.executable!r}, "-c", {HANGS!r}))
parts.run_part(parts.Part("one", "", 1.0, lambda: [one]), Path({str(tmp_path)!r}), 600.0)
"""
    process = subprocess.Popen([sys.executable, "-c", program])
    log = tmp_path / "one.log"
    while not (log.exists() and "child" in log.read_text()):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert not alive(int(log.read_text().split()[1]))


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """The whole command on a CPU, at tiny shapes and two laws."""
    folder = tmp_path_factory.mktemp("gpu")
    few = ["--backend", "vmap", "--law", "one_row", "--law", "one_step", "--shape", "2,3,2,4", "--acting", "1,1,2,4"]
    command = [sys.executable, "-m", "rnn_benchmarks.gpu", "run", "--device", "cpu", "--minutes", "6"]
    tests = ROOT / "plugins" / "tests" / "test_cuda.py"
    process = subprocess.run(
        [*command, "--out", str(folder), "--tests", str(tests), *few],
        capture_output=True, text=True, timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return folder, process


def test_the_whole_command_on_a_cpu_leaves_one_folder_with_everything(tried):
    folder, process = tried
    assert process.returncode == 0, process.stdout + process.stderr
    run = json.loads((folder / "run.json").read_text())
    assert tuple(run["parts"]) == PARTS
    assert {job["name"]: job["status"] for part in run["parts"].values() for job in part["jobs"]} == dict.fromkeys(
        ("environment", "smoke-vmap", "tests", "figures", "cuts", "products", "crossovers", "quick-vmap"), 0
    )
    for part in PARTS:
        assert f"{part}: " in process.stdout
    here = json.loads((folder / "environment.json").read_text())
    assert here["device"] == "cpu"
    assert here["torch"] == torch.__version__
    for profile in ("smoke", "quick"):
        header, *results, footer = map(json.loads, (folder / f"{profile}-vmap.jsonl").read_text().splitlines())
        assert header["profile"] == profile
        assert {"one_row", "one_step"} <= {row["law"] for row in results}
        assert footer["complete"]
    xml = (folder / "tests.xml").read_text()
    assert 'failures="0"' in xml
    assert ('skipped="0"' in xml) == torch.cuda.is_available()


def test_figures_have_every_kind_and_precision_and_each_was_printed(tried):
    folder, _ = tried
    figures = Figures.load(folder / "figures.json")
    assert {row.title for row in figures.rows} == {"R, TF32", "R, float32", "R, bfloat16", "acting", "Q"}
    assert {row.resets for row in figures.of("R, bfloat16")} == {"0.03", "0.20", "0"}
    assert all(row.seconds for row in figures.rows), [row for row in figures.rows if not row.seconds]
    assert {key.split("/")[0] for key, value in figures.numbers.items() if isinstance(value, float)} == {
        "memory",
        "first call",
    }
    log = (folder / "figures.log").read_text()
    assert log.count("R, bfloat16") == len(figures.of("R, bfloat16"))


def test_crossovers_are_a_table_that_core_reads(tried):
    (table,) = parse((tried[0] / "crossovers.json").read_text())
    assert table.device == "cpu"
    assert table.first_call["vmap"] > 0
    assert [(cell.batch, cell.time, cell.features, cell.hidden) for cell in table.cells] == [(2, 3, 2, 4)]


def test_cuts_are_measured_and_one_that_fails_has_its_reason(tmp_path):
    """In Triton's interpreter: the kernels really run, and this process has Triton without it."""
    pytest.importorskip("triton", reason="the interpreter comes with triton, and it is not installed")
    program = f"""
from pathlib import Path
from rnn_benchmarks.gpu import cuts
real, broken = cuts.candidates, cuts.Plan(3, 2, 4, 4, 4, 4)
cuts.candidates = lambda *given: [*real(*given)[:2], broken]
cuts.measure_cuts("cpu", Path({str(tmp_path)!r}), 60.0, ["2,3,2,4"])
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "cuts.json").read_text())
    assert [(row["precision"], row["by"], "train" in row, "note" in row) for row in rows] == [
        (which, by, right, not right)
        for which in ("TF32", "bfloat16")
        for by, right in (("plan", True), ("other", True), ("other", False))
    ]
    assert all(row["train"] > row["forward"] > 0 for row in rows if "train" in row)
    assert "must be a power of 2" in rows[2]["note"]
    assert done.stdout.count("on paper") == 6


def test_products_are_measured_beside_torchs(tmp_path):
    """In Triton's interpreter."""
    pytest.importorskip("triton", reason="the interpreter comes with triton, and it is not installed")
    command = [sys.executable, "-m", "rnn_benchmarks.gpu", "products", "--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--seconds", "60", "--shape", "2,3,2,4"],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "products.json").read_text())
    assert [(row["precision"], row["kind"]) for row in rows] == [
        (which, kind)
        for which in ("TF32", "float32", "bfloat16")
        for kind in ("inputs", "inputs' gradient", "weights' gradients")
    ]
    assert all(row["ours"] > 0 and row["torch"] > 0 for row in rows)
    assert done.stdout.count(", torch ") == 9


def test_pages_about_gpus_are_not_filled_from_a_cpu(tried, tmp_path):
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    before = (tmp_path / "docs" / "performance.md").read_text()
    with pytest.raises(NotOfAGpuError, match="a run on cpu"):
        fill_all(tried[0], tmp_path / "docs", tmp_path / "crossovers.json")
    assert (tmp_path / "docs" / "performance.md").read_text() == before


def made_up(folder):
    """A folder as a run on a GPU leaves it."""
    folder.mkdir()
    card = {"driver_version": "580.1", "clocks.max.sm": "1980 MHz"}
    here = {
        "date": "2031-02-03", "device": "cuda", "chip": "Made-up GPU", "commit": "abc1234", "cores": 16,
        "python": "3.12.3", "torch": "2.99.0", "triton": "3.99", "tensordict": "0.14.3", "torchrl": "not installed",
        "rnn-backends": "0.1.0", "cuda": "13.0", "cudnn": 91900, "nvidia-smi": card,
    }  # fmt: skip
    (folder / "environment.json").write_text(json.dumps(here))
    spread, shape = Spread(0.002, 0.002, 0.002, 9), str(Shape(4096, 32, 64, 256))
    third, one = Spread(0.3, 0, 1, 9), "B1-T1-I64-H64"
    figures = Figures({}, [
        Row("R, TF32", "nn.LSTM", shape, "0.03", "train", "output", spread, Spread(1, 1, 1, 9), "nn.LSTM"),
        Row("R, TF32", "cudnn", shape, "0.03", "train", "output", spread, Spread(1.37, 1, 2, 9), "nn.LSTM"),
        Row("R, bfloat16", "cudnn", shape, "0.03", "train", "output", note="out of memory"),
        Row("acting", "graph of cudnn", one, "0", "step", "module", spread, third, "nn.LSTM"),
    ], {"memory/cudnn/G1": 1.25, "first call/compile/seconds": "it took longer than 40 s"})  # fmt: skip
    figures.save(folder / "figures.json")
    cut = {"shape": "S1", "precision": "TF32", "by": "plan", "units": 32, "slices": 8, "rows": 16, "piece": 256}
    cuts = [{**cut, "warps": w, "forward": 0.0006, "train": 0.001 * w, "predicted": 0.0015} for w in (4, 8)]
    cuts.append({**cut, "warps": 16, "predicted": 0.001, "note": "OutOfResources: shared memory"})
    (folder / "cuts.json").write_text(json.dumps(cuts))
    products = [
        {"shape": "S1", "precision": "TF32", "kind": kind, "ours": 0.0003, "torch": 0.0006}
        for kind in ("inputs", "inputs' gradient", "weights' gradients")
    ]
    (folder / "products.json").write_text(json.dumps(products))
    law = {"kind": "result", "law": "one_row", "verdict": "failed", "waived": "", "dtypes": ["f32"]}
    header = {"kind": "header", "runs": [{"expected": ["one_row", "one_step", "projection"]}]}
    rows = [header, law, {**law, "law": "one_step", "verdict": "passed"}, {"kind": "footer"}]
    (folder / "smoke-cudnn.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    jobs = [{"name": "smoke-cudnn", "status": 1, "seconds": 9.0}, {"name": "quick-cudnn", "status": "cut off"}]
    (folder / "run.json").write_text(json.dumps({"parts": {"laws": {"jobs": jobs}}}))
    cell = {"hidden": 64, "mode": "train", "resets": "0.03", "batch": 16, "time": 64, "features": 64, "cell": "lstm"}
    measured = {
        "date": "2031-02-03",
        "processor": "Made-up GPU",
        "threads": "",
        "torch": "2.99.0",
        "rnn-backends": "0.1.0",
    }
    table = {"device": "cuda", "where": measured, "first_call": {}, "allow_compile": False}
    table["cells"] = [{**cell, "seconds": {"cudnn": 0.001, "vmap": 0.1}}]
    (folder / "crossovers.json").write_text(json.dumps({"format": 1, "tables": [table]}))
    return folder


def test_pages_and_crossovers_are_filled_with_chip_date_and_versions_and_twice_is_once(tmp_path):
    folder, docs, shipped = made_up(tmp_path / "run"), tmp_path / "docs", tmp_path / "crossovers.json"
    shutil.copytree(ROOT / "docs", docs)
    shutil.copy(ROOT / "core" / "rnn_backends" / "crossovers.json", shipped)
    others = [table for table in parse(shipped.read_text()) if table.device != "cuda"]
    written = fill_all(folder, docs, shipped)
    texts = [path.read_text() for path in written]
    assert [path.name for path in written] == ["performance.md", "conformance.md", "crossovers.json"]
    for text in texts[:2]:
        assert "Measured on 2031-02-03: Made-up GPU, 1980 MHz at most, driver 580.1" in text
        assert "torch 2.99.0, CUDA 13.0, cuDNN 91900, Triton 3.99" in text
        assert "at commit abc1234" in text
    assert "| TF32, G1, 3 % | 2 ms | 2 ms (1.37) |" in texts[0]
    assert "| bfloat16, G1, 3 % | - | - |" in texts[0]
    assert "| B1, H64 | 2 ms (0.30) |" in texts[0]
    assert "| S1, TF32 | plan | 8, 32, 16, 256, 4 | 600 us | 4 ms | 1.5 ms | fastest |" in texts[0]
    assert "| S1, TF32 | 300 us (0.50) | 300 us (0.50) | 300 us (0.50) |" in texts[0]
    assert "| S1, TF32 | plan | 8, 32, 16, 256, 16 | - | - | 1 ms | OutOfResources: shared memory |" in texts[0]
    assert "Did not end with exit status 0: smoke-cudnn (1), quick-cudnn (cut off)." in texts[0]
    assert "| cudnn, smoke | 1 | 0 | 1 | 1 | f32 2 | `one_row` |" in texts[1]
    found = {table.device: table for table in parse(texts[2], shipped=True)}
    assert found["cuda"].origin() == "the shipped table of 2031-02-03, Made-up GPU, torch 2.99.0"
    assert [table.cells for table in others] == [found[table.device].cells for table in others]
    fill_all(folder, docs, shipped)
    assert [path.read_text() for path in written] == texts


def test_the_pages_have_a_marker_for_every_table(tmp_path):
    folder = made_up(tmp_path / "run")
    names = tables(folder, json.loads((folder / "environment.json").read_text()))
    pages = [(ROOT / "docs" / f"{name}.md").read_text() for name in ("performance", "conformance")]
    assert sorted(found[2] for page in pages for found in BETWEEN.finditer(page)) == sorted(names)


@pytest.mark.parametrize("name", ["TF32", "float32", "bfloat16"])
def test_a_precision_allows_tf32_in_one_lane_and_in_recurrent_networks_alone_and_puts_it_back(name):
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with precision(name):
        assert torch.backends.cudnn.allow_tf32 is (name == "TF32")
        assert not torch.backends.cuda.matmul.allow_tf32
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


def test_the_model_of_the_triton_kernels_is_on_the_page_and_explains_what_was_measured():
    page = (ROOT / "docs" / "performance.md").read_text()
    assert {found[2]: found[0] for found in model.BETWEEN.finditer(page)} == {
        name: f"<!-- model: {name} -->\n{text}\n<!-- end -->" for name, text in model.tables().items()
    }, "python -m rnn_benchmarks.gpu model"
    for row in model.MEASURED:
        took, said = model.step_us(row)
        assert 0.5 < said / took < 1.5
    assert all(price > 0 for price in vars(model.prices(backward=False)).values())


def test_the_model_counts_what_a_step_moves():
    step = model.step_of(64, 256, 4, Plan(32, 8, 16, 256, 256, 4), 4, backward=False)
    assert step.instructions == 16 * 4 * 32 * 256 // (16 * 8 * 8)  # m16n8k8
    assert step.shared == 4 * 32 * 256 * 4
    assert step.l2 == 16 * 256 * 4 + 16 * 32 * 4  # the whole h in, its own units out
    assert step.memory == 64 * 256 * 10 * 4
    back = model.step_of(64, 256, 4, Plan(32, 8, 16, 256, 256, 4), 4, backward=True)
    assert back.l2 == 16 * 256 * 4 + 8 * 16 * 32 * 4  # its part of all units out, all parts of its own in
    assert model.step_of(64, 256, 4, Plan(256, 1, 16, 256, 256, 4), 4, backward=False).waits == 0
    read_again = model.step_of(64, 256, 4, Plan(32, 8, 16, 256, 64, 4, resident=False), 4, backward=False)
    assert read_again.l2 - step.l2 == step.shared


def test_what_fails_to_be_measured_has_its_reason_and_the_others_go_on(monkeypatch, tmp_path):
    def fails(contestant):
        raise RuntimeError("CUDA out of memory\nand more")

    monkeypatch.setattr(gpu_measure, "build", fails)
    monkeypatch.setattr(gpu_measure.Step.__init__, "__defaults__", ("TF32", fails))
    monkeypatch.setattr(gpu_measure, "first_call", lambda *args, **more: {"seconds": 1.0})
    said = []
    figures = gpu_measure.measure("cpu", tmp_path, 60.0, ["vmap"], ["2,3,2,4"], ["1,1,2,4"], said.append)
    notes = {row.note for row in figures.of("R, TF32")}
    assert notes == {"RuntimeError: CUDA out of memory"}
    assert all(row.seconds for row in figures.of("acting"))
    assert figures.numbers["first call/vmap/seconds"] == 1.0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "--device", "cpu", "--parts", "laws,lwas"], "there is no part 'lwas'"),
        (["run", "--device", "warp"], "--device: "),
        (["figures", "--device", "cpu", "--shape", "S9"], "one of S1, S2, S3, S4, S5, G1; got 'S9'"),
        (["run", "--device", "cpu", "--backend", "nosuch"], "unknown LSTM backend 'nosuch'"),
        (["page", "nowhere"], "No such file"),
        (["page", "{cpu}"], "of a run on cpu; these pages are about GPUs"),
    ],
)
def test_bad_usage_is_refused_in_words_before_anything_runs(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "environment.json").write_text('{"device": "cpu"}')
    with pytest.raises(SystemExit, match="2"):
        main([word.replace("{cpu}", str(tmp_path)) for word in words])
    assert says in capsys.readouterr().err


def test_help_teaches_the_parts_and_their_order(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "environment, laws, tests, figures, cuts, products, crossovers, quick" in capsys.readouterr().out


def test_without_a_gpu_the_command_says_how_to_try_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        main(["run", "--out", str(tmp_path)])
    assert "--device cpu --minutes 1" in capsys.readouterr().err


def test_a_run_has_the_parts_that_are_asked_for_in_their_order(tmp_path):
    choice = Choice("cpu", tmp_path, ("quick", "environment"), ("vmap", "cudnn"))
    environment, quick = parts_of(choice)
    assert (environment.name, quick.name) == ("environment", "quick")
    assert [job.name for job in quick.jobs()] == ["quick-vmap", "quick-cudnn"]
    assert shape_called("G1") == Shape(4096, 32, 64, 256)


def lines_of(capsys, *words):
    main(list(words))
    return [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["host", "--tree", "nowhere"], "nowhere is no checkout of this project: it has no folder core/rnn_backends"),
        (["compile", "--tree", "nowhere"], "nowhere is no checkout"),
        (["host", "--rounds", "0"], "at least 1, got '0'"),
        (["host", "--backend", "vmap"], "invalid choice: 'vmap'"),
        (["compile", "--precision", "float8"], "one of TF32, float32, bfloat16, got 'float8'"),
        (["compile", "--shape", "S9"], "a shape is four numbers"),
    ],
)
def test_wrong_words_are_named_before_anything_is_measured(capsys, words, reason):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert reason in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["triton", "cudnn"])
def test_the_host_is_measured_without_a_gpu(capsys, backend):
    if backend == "triton":
        pytest.importorskip("triton", reason="it is the host of triton's kernels, and triton is not installed")
    heads, _, *lines = lines_of(capsys, "host", "--backend", backend, "--shape", "2,3,4,5", "--rounds", "1")
    assert heads == [f"{backend}, B2-T3-I4-H5", "us", "operators", "of which launch", "peak, MiB"]
    of = ["layer", "LSTM", "LSTMModule"]
    if backend == "cudnn":
        of = ["nn.LSTM", *of, "LSTM 2 layers", "LSTM 2 directions", "LSTM from a state"]
    assert [line[0].partition(", ")[0] for line in lines[::2]] == of
    for _, us, operators, launching, peak in lines:
        assert float(us) > 0
        assert float(peak) >= 0
        assert int(operators) > int(launching) > 0


def test_memory_is_counted_without_a_gpu(capsys):
    pytest.importorskip("triton", reason="it is the memory of triton's calls, and triton is not installed")
    heads, _, line = lines_of(capsys, "memory", "--shape", "S4", "--precision", "bfloat16")
    assert heads == ["MiB, ratio", "bfloat16"]
    name, numbers = line
    ours, least, ratio = (float(number) for number in re.fullmatch(r"(.+) / (.+) = (.+)", numbers).groups())
    assert name == "S4"
    assert least >= 6 * 1024 * 32 * 128 * 2 / 2**20  # output, gates and cell state
    assert ratio == pytest.approx(ours / least, abs=0.01)


@pytest.mark.slow
def test_compiling_is_measured_without_a_gpu_and_without_triton_s_cache(capsys):
    pytest.importorskip("triton", reason="its compiler is measured, and triton is not installed")
    heads, _, line = lines_of(capsys, "compile", "--shape", "2,3,4,5", "--precision", "TF32")
    found = dict(zip(heads, line, strict=True))
    assert found.pop("seconds") == "B2-T3-I4-H5, TF32"
    assert found.pop("kernels") == "5 + 0 + 1"  # forward, backward, three products; none for other sizes; a step
    assert all(float(value) > 0 for value in found.values())
