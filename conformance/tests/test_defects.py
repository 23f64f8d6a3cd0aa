"""The suite is tested: every planted defect dies by the laws that it names beforehand, every law has one."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from click.testing import CliRunner
from rnn_backends import recurrent_mode
from rnn_conformance.cli.defects import defects_command
from rnn_conformance.defects import DEFECTS, looks_like
from rnn_conformance.defects.catalogue import FAMILIES, killers
from rnn_conformance.defects.kill import named_kills, survives
from rnn_conformance.defects.planting import Defect
from rnn_conformance.defects.rounds import INVENTED, ROUNDS
from rnn_conformance.defects.uncovered import UNCOVERED
from rnn_conformance.laws.catalogue import LAWS
from rnn_conformance.suite.runner import check_backend


@pytest.mark.filterwarnings("ignore:dropout option adds dropout:UserWarning")
@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_killed_by_every_law_that_it_names(name):
    defect = DEFECTS[name]
    kills = named_kills(defect, [1])
    said = "; ".join(f"{kill.law} says {kill.verdicts[0]}: {kill.message}" for kill in kills if not kill.killed)
    assert not survives(defect, kills), f"{defect.sentence} {said}"
    if defect.why_not:
        assert said, f"{name} dies: take its reason away"


def test_names_of_defects_differ():
    names = Counter(v.name for family in FAMILIES for v in vars(family).values() if isinstance(v, Defect))
    assert [name for name, n in names.items() if n > 1] == []
    assert len(DEFECTS) >= 100


def test_defects_name_laws_that_exist():
    assert {law for defect in DEFECTS.values() for law in defect.killed_by} <= set(LAWS)
    assert all(defect.sentence.endswith(".") and defect.killed_by for defect in DEFECTS.values())


def test_every_law_is_named_by_a_defect_or_excused():
    assert set(LAWS) - set(killers()) == set(UNCOVERED)


def test_what_is_invented_names_no_law():
    assert [one.count for one in ROUNDS] == [20, 20, 20, 12, 12, 12, 12]
    assert {name for one in ROUNDS for name in one.survived} <= set(DEFECTS)
    assert all(not defect.killed_by and defect.name not in DEFECTS for defect in INVENTED.values())


def test_a_wrong_context_leaves_no_mode_behind():
    with DEFECTS["mode_before_kept_on_the_instance"].plant() as backend:
        (result,) = check_backend(backend, laws=["a_context_may_be_entered_within_itself"], seed=1).results
    assert result.verdict == "failed"
    assert recurrent_mode() is None


def test_looks_like_finds_the_defect_with_the_same_numbers():
    with DEFECTS["peephole"].plant() as backend:
        (result,) = check_backend(backend, laws=["output_equals_reference"], seed=3).results
    assert looks_like(result) == DEFECTS["peephole"].sentence


def test_looks_like_says_nothing_where_no_defect_fits():
    with INVENTED["warm_up_answers"].plant() as backend:
        (result,) = check_backend(backend, laws=["edited_weights_are_seen"], profile="full", seed=3).results
    assert result.verdict == "failed"
    assert looks_like(result) is None


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
