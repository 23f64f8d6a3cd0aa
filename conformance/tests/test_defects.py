"""Tests of the suite: every planted defect dies by the laws that it names, every law has a defect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from rnn_backends import recurrent_mode
from rnn_conformance.check import check_backend
from rnn_conformance.cli.defects import defects_command
from rnn_conformance.defects import DEFECTS, planted, similar_defect
from rnn_conformance.defects.catalogue import PLANTED, killers
from rnn_conformance.defects.doubles import doubles
from rnn_conformance.defects.kill import named_kills, survives
from rnn_conformance.defects.planting import Defect
from rnn_conformance.defects.rounds import ROUNDS
from rnn_conformance.defects.uncovered import UNCOVERED
from rnn_conformance.laws.catalogue import LAWS, SUBJECTS


@pytest.mark.filterwarnings("ignore:dropout option adds dropout:UserWarning")
@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_killed_by_every_law_that_it_names(name):
    defect = DEFECTS[name]
    kills = named_kills(defect, [1])
    said = "; ".join(f"{kill.law} says {kill.verdicts[0]}: {kill.message}" for kill in kills if not kill.killed)
    assert not survives(defect, kills), f"{defect.sentence} {said}"
    if defect.why_not:
        assert said, f"{name} dies: remove its reason"


def test_names_of_defects_differ():
    written = [v.name for module in PLANTED for v in vars(module).values() if isinstance(v, Defect)]
    assert len(written) == len(set(written)) >= 100


def test_every_subject_of_the_laws_has_its_file_of_defects():
    subjects = [module.__name__.rpartition(".")[2] for module in SUBJECTS]
    assert [module.__name__.rpartition(".")[2] for module in PLANTED] == subjects
    assert {defect.subject for defect in DEFECTS.values()} == set(subjects)


def test_no_defect_is_planted_twice():
    assert doubles(Path(planted.__file__).parent) == []


def test_defects_that_differ_in_names_and_words_alone_are_doubles(tmp_path):
    one = "@made()\ndef one() -> int:\n    'A.'\n    kept: int = modes.stack()\n    return kept\n"
    two = "@made()\ndef two():\n    'B.'\n    old = stack()\n    return old\n"
    three = two.replace("two", "three").replace("stack", "other")
    (tmp_path / "one.py").write_text(one)
    (tmp_path / "others.py").write_text(two + three)
    assert doubles(tmp_path) == [["one", "two"]]


def test_a_defect_lies_with_the_first_law_that_kills_it():
    elsewhere = {d.name: d.subject for d in DEFECTS.values() if d.subject != LAWS[d.killed_by[0]].subject}
    assert elsewhere == {}


@pytest.mark.parametrize("name", [defect.name for defect in DEFECTS.values() if defect.patches is not list])
def test_a_patched_attribute_exists(name):
    """A renamed private name of core fails here at once, instead of in a long run."""
    for owner, attribute, _ in DEFECTS[name].patches():
        assert hasattr(owner, attribute), f"{owner!r} has no {attribute!r}"


def test_defects_name_laws_that_exist():
    assert {law for defect in DEFECTS.values() for law in defect.killed_by} <= set(LAWS)
    assert all(defect.sentence.endswith(".") and defect.killed_by for defect in DEFECTS.values())


def test_every_law_is_named_by_a_defect_or_excused():
    assert set(LAWS) - set(killers()) == set(UNCOVERED)


def test_rounds_are_counted_as_they_were_run():
    assert [one.number for one in ROUNDS] == list(range(1, len(ROUNDS) + 1))
    assert [len(one.defects) for one in ROUNDS] == [20, 20, 20, 12, 12, 12, 12, 31, 20, 20]
    assert [len(one.died) for one in ROUNDS] == [16, 13, 6, 4, 5, 2, 6, 5, 10, 14]
    assert all(set(defect.survived) <= set(defect.rounds) for defect in DEFECTS.values())


def test_a_wrong_context_leaves_no_mode_behind():
    with DEFECTS["mode_before_kept_on_the_instance"].plant() as backend:
        (result,) = check_backend(backend, laws=["a_context_may_be_entered_within_itself"], seed=1).results
    assert result.verdict == "failed"
    assert recurrent_mode() is None


def test_looks_like_finds_the_defect_with_the_same_numbers():
    with DEFECTS["peephole"].plant() as backend:
        (result,) = check_backend(backend, laws=["output_equals_reference"], seed=3).results
    assert similar_defect(result) == DEFECTS["peephole"].sentence


def test_looks_like_says_nothing_where_no_defect_fits():
    with DEFECTS["a_tuned_kernel_after_64_calls"].plant() as backend:
        (result,) = check_backend(backend, laws=["edited_weights_are_seen"], profile="full", seed=3).results
    assert result.verdict == "failed"
    assert similar_defect(result) is None


def test_command_runs_one_defect_and_writes_json():
    ran = CliRunner().invoke(defects_command, ["g_and_o_swapped", "--seeds", "1", "--json"])
    assert ran.exit_code == 0, ran.output
    said = json.loads(ran.stdout)
    assert said["surviving"] == []
    assert all(kill["killed"] for kill in said["defects"]["g_and_o_swapped"])


def test_command_knows_no_other_name():
    ran = CliRunner().invoke(defects_command, ["g_and_o_swappd"])
    assert ran.exit_code == 2
    assert "g_and_o_swapped" in ran.output


def test_a_stopped_run_goes_on_where_it_was(tmp_path):
    log = tmp_path / "kills.jsonl"
    command = ["one_step_late", "--seeds", "1", "--profile", "smoke", "--resume", str(log), "--json"]
    first = CliRunner().invoke(defects_command, command)
    assert first.exit_code == 0, first.output
    settings, result = log.read_text().splitlines()
    log.write_text(f"{settings}\n{result.replace('differs first', 'was read from the file')}\n")
    again = CliRunner().invoke(defects_command, command)
    assert "was read from the file" in again.stdout
    assert len(log.read_text().splitlines()) == 2


def test_results_of_another_run_are_not_taken_over(tmp_path):
    log = tmp_path / "kills.jsonl"
    log.write_text(json.dumps({"profile": "quick", "seeds": 5, "drawn_only": False, "commit": "older"}) + "\n")
    ran = CliRunner().invoke(defects_command, ["one_step_late", "--resume", str(log)])
    assert ran.exit_code == 2
    assert "another run" in ran.output
