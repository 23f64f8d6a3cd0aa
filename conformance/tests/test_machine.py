"""The rollout state machine: right backends pass, and a failure lists a short program."""

from __future__ import annotations

import pytest
from rnn_backends import LSTMBackend, State, get_backend
from rnn_conformance.laws._shared import registered
from rnn_conformance.suite.case import Case
from rnn_conformance.suite.state_machine import play
from rnn_conformance.suite.state_model import PLAIN
from rnn_conformance.suite.trial import Trial
from rnn_conformance.suite.verdict import LawBroken

right = get_backend("vmap").layer
CASE = Case.parse("T1.B2.I2.H3.L2.f64.s4")


def story_of(layer):
    backend = LSTMBackend("teller", layer)
    with registered(backend), registered(PLAIN):
        play(Trial(backend, CASE), programs=20, steps=12)


def test_right_backends_survive():
    play(Trial(get_backend("cudnn"), CASE), programs=4, steps=10)
    story_of(right)


def test_stale_weights_are_told_in_a_short_story():
    packed = {}

    def stale(w, x, entry, starts):
        key = (w.w_ih.shape, x.dtype, w.w_ih.data_ptr())
        _, old = packed.setdefault(key, (w.w_ih, w.w_ih.detach().clone()))  # held: no other weight gets its address
        return right(w._replace(w_ih=old), x, entry, starts)

    with pytest.raises(LawBroken, match=r"^after a step with resets 11, .*(in place|optimizer|load_state_dict)"):
        story_of(stale)


def test_a_state_kept_between_calls_is_seen():
    kept = {}

    def remembers(w, x, entry, starts):
        h = kept.get(entry.h.shape, entry.h).to(x.dtype)
        found = right(w, x, State(entry.h + 0.1 * (h - entry.h), entry.c), starts)
        kept[entry.h.shape] = entry.h.detach()
        return found

    with pytest.raises(LawBroken, match=r"^after .*a step"):
        story_of(remembers)


def test_a_start_in_the_middle_of_a_row_is_part_of_the_story():
    def from_the_first(w, x, entry, starts):
        return right(w, x, State(*(v[:1].expand_as(v) for v in entry)), starts)

    with pytest.raises(LawBroken, match=r"^after .*steps in recurrent mode .* with resets 0*1"):
        story_of(from_the_first)


def test_what_happens_on_another_backend_is_part_of_the_story():
    def packed(w, x, entry, starts):
        old = kept.setdefault(w.w_hh.data_ptr(), w.w_hh.detach().clone())
        kept[w.w_hh.data_ptr()] = w.w_hh.detach().clone()
        return right(w._replace(w_hh=old), x, entry, starts)

    kept = {}
    with pytest.raises(LawBroken, match=r"^after .*another backend, its weights|^after .*(in place|optimizer|load)"):
        story_of(packed)
