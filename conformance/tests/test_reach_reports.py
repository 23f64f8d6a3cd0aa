"""Reports state the dtypes of the laws, that they show little, and the limit of an error in float32."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from rnn_backends import LSTMBackend, State, get_backend, register, unregister
from rnn_conformance.check import check_backend, replay
from rnn_conformance.cli.main import cli
from rnn_conformance.defects.kill import dies_under, kills_of, matters_under
from rnn_conformance.defects.planted import precision, values
from rnn_conformance.defects.right import right
from rnn_conformance.defects.variants import RESTRICTED
from rnn_conformance.report.html import page
from rnn_conformance.report.model import BackendRun, Header, LawInfo, Report, Results
from rnn_conformance.report.terminal import closing, print_results
from rnn_conformance.suite import device, trial
from rnn_conformance.suite.case import Case
from rnn_conformance.suite.strategies import rich
from rnn_conformance.suite.tolerances import TF32, TF32_UNIT, worst_row
from rnn_conformance.suite.trial import Trial
from rnn_conformance.suite.verdict import NO_DEVICE, LawBroken, LawResult

LAWS = tuple(f"law_{n}" for n in range(20))
INFO = {name: LawInfo("values", f"{name} holds.") for name in LAWS}


def results(declined: int, strict: bool = False, device: str = "cpu", message: str = "too large") -> Results:
    """Twenty laws, the first of them declined, most of the others in float64."""
    rows = [
        LawResult("mine", law, "declined", declined=3, message=message)
        if n < declined
        else LawResult("mine", law, "passed", 9, dtypes=("f32",) if n >= 18 else ("f64",), out_of_reach=n // 19 * 7)
        for n, law in enumerate(LAWS)
    ]
    report = Report(Header("mine", device, "quick", 7, LAWS, {"torch": "2"}, strict=strict), rows)
    return Results(
        "quick", 7, INFO, LAWS, (BackendRun("mine", report, device=device),), strict, versions={"torch": "2"}
    )


def printed(found: Results) -> str:
    written = Console(record=True, width=200, file=io.StringIO())
    print_results(found, written, "CartPole-v1")
    return written.export_text()


@pytest.mark.parametrize(("declined", "says"), [(0, False), (2, False), (3, True), (19, True)])
@pytest.mark.parametrize("strict", [False, True])
def test_more_than_a_tenth_declined_shows_little_and_is_incomplete_if_strict(declined, says, strict):
    found = results(declined, strict)
    words = f"{declined} of 20 laws were declined: this report shows little"
    assert printed(found).strip().splitlines()[-1].endswith(words) == says
    incomplete = strict and says
    assert found.status == (3 if incomplete else 0)
    assert found.complete == (not incomplete)
    assert found.runs[0].report.ok == (not incomplete)
    assert (f"? mine: {words}" in printed(found)) == incomplete


@pytest.mark.parametrize("strict", [False, True])
def test_a_report_that_shows_little_can_be_read_again(strict):
    found = results(11, strict)
    assert Results.from_json(found.to_json()) == found


def test_a_run_without_its_device_is_still_no_report_to_read():
    with pytest.raises(ValueError, match="incomplete"):
        Results.from_json(results(20, message=NO_DEVICE, device="cuda").to_json())


def test_of_several_runs_the_one_that_shows_little_is_named():
    one, other = results(0), results(5)
    both = replace(one, runs=(*one.runs, replace(other.runs[0], name="thin", device="cuda")))
    assert closing(both).endswith("; thin on cuda: 5 of 20 laws were declined: this report shows little")


def test_the_terminal_says_the_dtypes_and_what_is_out_of_reach():
    assert "dtypes f64 in 16 laws, f32 in 2; 7 drawn cases out of the backend's reach" in printed(results(2))
    assert "dtypes f64 in 18 laws, f32 in 2" in printed(results(0))
    assert "dtypes" not in printed(results(20))


def test_details_of_a_law_have_its_dtypes_and_what_is_out_of_reach():
    data = json.loads(page(results(2)).partition('id="details">')[2].partition("</script>")[0])
    said = {name: text for name, text, _ in data["0:law_19"]["rows"]}
    assert said["dtypes"] == "f32"
    assert said["cases"] == "9 run, 0 declined, 7 out of the backend's reach"
    assert "dtypes" not in {name for name, *_ in data["0:law_0"]["rows"]}


def test_the_command_ends_with_status_3_where_strict_shows_little():
    register(
        LSTMBackend("thin", right, rejects=lambda spec, device, dtype: (dtype.itemsize == 2 and "not today") or None)
    )
    try:
        options = ["check", "thin", "--profile", "smoke", "-k", "in_float16", "-k", "in_bfloat16"]
        usual = CliRunner().invoke(cli, options)
        strict = CliRunner().invoke(cli, [*options, "--strict"])
    finally:
        unregister("thin")
    assert (usual.exit_code, strict.exit_code) == (0, 3)
    for ran in (usual, strict):
        assert "laws were declined: this report shows little" in ran.output.strip().splitlines()[-1]


def test_an_interrupt_keeps_the_results_so_far(tmp_path, monkeypatch):
    from rnn_conformance import check

    done, original = [], check.run_law

    def interrupted(law, run):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(law.name)
        return original(law, run)

    monkeypatch.setattr(check, "run_law", interrupted)
    file = tmp_path / "report.jsonl"
    options = ["check", "vmap", "torchscript", "--profile", "smoke", "-k", "one", "--json", str(file)]
    ran = CliRunner().invoke(cli, options)
    assert ran.exit_code == 3
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["law"] for row in rows if row["kind"] == "result"] == done
    assert not rows[-1]["complete"]
    assert "? vmap: interrupted" in ran.output
    assert "? torchscript: interrupted" in ran.output


def wrong(w, x, entry, starts):
    h, c = right(w, x, entry, starts)
    return State(h * 1.01, c)


def values_agree(one):
    one.agree("output", one.run(one.lstm()).output, one.expected.output)


def gradients_agree(one):
    one.agree_gradients(one.gradients(one.loss), one.expected_gradients(one.loss))


@pytest.mark.parametrize("judge", [values_agree, gradients_agree])
@pytest.mark.parametrize("coarse", [False, True])
def test_an_error_on_an_accelerator_says_which_limit_it_was(monkeypatch, coarse, judge):
    original = trial.torch_per_trajectory

    def torchs_own(*args):
        found = original(*args)
        off = {name: getattr(found, name) * (1 + 1e-5) for name in ("output", "end_h", "end_c")}
        return found._replace(**off) if coarse else found

    monkeypatch.setattr(trial, "is_accelerator", lambda device: True)
    monkeypatch.setattr(trial, "torch_per_trajectory", torchs_own)
    own = "4 times torch.nn.LSTM's own error on cpu"
    says = f"({own})" if coarse else f"(the table's for float32; {own} is less)"
    with pytest.raises(LawBroken, match=re.escape(says)):
        judge(Trial(LSTMBackend("mine", wrong), Case.parse("T2.B1.I1.H1.f32.s0")))


def test_on_a_cpu_an_error_names_no_other_limit():
    result = replay(LSTMBackend("mine", wrong), "output_equals_reference_in_float32", "T2.B1.I1.H1.f32.s0")
    assert result.message.endswith("times its tolerance of 5e-06")


def rounded(value, bits=13):
    """To TF32's ten bits, or fewer."""
    half = 1 << (bits - 1)
    return ((value.contiguous().view(torch.int32) + half) & ~((1 << bits) - 1)).view(torch.float32)


def test_tf32_is_declined_but_on_cuda():
    report = check_backend("vmap", laws=["output_equals_reference_in_tf32"], rollouts=())
    assert [(result.verdict, result.message) for result in report.results] == [("declined", "only CUDA has TF32")]


@pytest.mark.parametrize(("bits", "holds"), [(13, True), (19, False)])
def test_the_lane_of_tf32_holds_for_ten_bits_and_not_for_four(monkeypatch, bits, holds):
    seen = []

    def kernel(w, x, entry, starts):
        seen.append(torch.backends.cudnn.allow_tf32)
        w = type(w)(*(v if v is None or v.dim() == 1 else rounded(v, bits) for v in w))
        return right(w, rounded(x, bits), entry, starts)

    monkeypatch.setattr(device, "has_tf32", lambda where: True)
    before = torch.backends.cudnn.allow_tf32
    report = check_backend(
        LSTMBackend("mine", kernel), laws=["output_equals_reference_in_tf32"], seed=1, rollouts=(), shrink=False
    )
    assert all(seen)
    assert torch.backends.cudnn.allow_tf32 is before
    assert report.ok == holds, report.results
    if not holds:
        assert "(TF32's)" in report.results[0].message


def test_tf32_rounds_as_its_unit_says():
    value = torch.rand(1000) + 1
    assert worst_row(rounded(value), value.double(), None) <= TF32_UNIT / 2
    assert TF32.values > 4 * 9.5e-4


@pytest.mark.parametrize("variant", RESTRICTED)
def test_defects_that_are_no_error_in_what_a_variant_takes_are_left_out(variant):
    assert matters_under(values.float32_inside_float64, variant) is False
    assert matters_under(precision.eight_bits_in_float16, variant) is False
    assert matters_under(values.gates_in_eight_levels, variant) == (variant != "float32_alone")
    assert matters_under(values.time_reversed, variant) is True
    assert matters_under(precision.streamed_output_in_float32, variant) is False  # a defect of core, not of a kernel


@pytest.mark.parametrize("name", ["time_reversed", "resets_of_every_eighth_step_missed", "sequences_counted_to_four"])
def test_kernel_defects_die_under_a_backend_of_float32_alone(name):
    assert dies_under(kills_of(getattr(values, name), [1, 2], under="float32_alone"))


def test_the_command_plants_kernel_defects_under_a_restricted_backend():
    ran = CliRunner().invoke(cli, ["defects", "one_unit_squeezed", "--under", "float32_alone", "--seeds", "1"])
    assert ran.exit_code == 0, ran.output
    assert "1 of 1 kernel defects die under float32_alone (100.0%)" in ran.output
    unknown = CliRunner().invoke(cli, ["defects", "one_unit_squeezed", "--under", "float32"])
    assert unknown.exit_code == 2
    assert "'float32_alone'" in unknown.output


def test_cases_that_run_first_keep_their_sizes_where_a_backend_takes_them_all():
    from rnn_conformance.suite.reach import Reach

    for backend in (get_backend("vmap"), RESTRICTED["float32_alone"](LSTMBackend("mine", right))):
        allowed = Reach(backend, "cpu").within({"bidirectional": (True,)})
        assert {case.H for case in rich(allowed.where)} == {4, 5, 3, 6, 9, 8, 15}
