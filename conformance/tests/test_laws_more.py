"""Planted defects for the laws of dropout, precision, memory, threads, lifecycle and dispatch: each is detected."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from rnn_backends import LayerWeights, LSTMBackend, State, get_backend
from rnn_conformance.check import check_backend
from rnn_conformance.defects import right as d
from rnn_conformance.laws import page as contract_page
from rnn_conformance.laws.catalogue import LAWS


def map_weights(w, change):
    return LayerWeights(*(None if v is None else change(v) for v in w))


def doubles_gradients(w, x, entry, starts):
    return d.right(map_weights(w, lambda v: 2 * v - v.detach()), x, entry, starts)


def mixes_rows(w, x, entry, starts):
    return d.right(w, x + 1e-3 * (x - x.mean(1, keepdim=True)), entry, starts)


def drops_itself(w, x, entry, starts):
    return d.right(w, torch.nn.functional.dropout(x, 0.3), entry, starts)


def default_dtype(w, x, entry, starts):
    zeros = torch.zeros(x.shape[1], w.w_hh.shape[1])
    found = d.right(w, x, entry, starts)
    return State(found.h + zeros[..., : found.h.shape[-1]], found.c)


def default_device(w, x, entry, starts):
    found = d.right(w, x, entry, starts)
    return State(found.h + torch.zeros(1, dtype=x.dtype), found.c)


def exponential_tanh(w, x, state):
    i, f, g, o = d.gates_of(w, x, state.h)
    e = torch.exp(2 * g)
    c = f.sigmoid() * state.c + i.sigmoid() * ((e - 1) / (e + 1))
    h = o.sigmoid() * c.tanh()
    return State(h if w.w_hr is None else h @ w.w_hr.T, c)


def flushes_subnormals(w, x, entry, starts):
    return d.right(w, torch.where(x.abs() < torch.finfo(x.dtype).tiny, float("nan"), x), entry, starts)


def noisy(w, x, entry, starts):
    found = d.right(w, x, entry, starts)
    eps = 3e-6 if x.dtype == torch.float32 else 0
    return State(found.h * (1 + eps), found.c)


def half_always(w, x, entry, starts):
    found = d.right(map_weights(w, lambda v: v.bfloat16()), x.bfloat16(), State(*(e.bfloat16() for e in entry)), starts)
    return State(found.h.to(x.dtype), found.c.to(torch.bfloat16))


def at_most_128(w, x, entry, starts):
    found = d.right(w, x, entry, starts)
    keep = torch.arange(found.h.shape[-1]) < 128
    return State(found.h * keep, found.c)


def at_most_65536_rows(w, x, entry, starts):
    found = d.right(w, x, entry, starts)
    keep = torch.arange(x.shape[1]).unsqueeze(-1) < 65_536
    return State(torch.where(keep, found.h, 0), found.c)


def at_most_1024_steps(w, x, entry, starts):
    found = d.right(w, x, entry, starts)
    return State(torch.where(torch.arange(len(x)).view(-1, 1, 1) < 1024, found.h, 0), found.c)


def squeezed(w, x, entry, starts):
    found = d.right(w, x, entry, starts)
    return State(found.h.squeeze(), found.c.squeeze()) if x.shape[1] == 1 else found


def unwritten(w, x, entry, starts):
    found = d.right(w, x, entry, starts)
    scratch = torch.empty_like(found.h.detach())
    scratch[..., 1:] = found.h.detach()[..., 1:]
    return State(found.h + 0 * scratch, found.c)


def keeps_results():
    kept = []

    def run(w, x, entry, starts):
        found = d.right(w, x, entry, starts)
        kept.append(found)
        return found

    return run


def one_storage(w, x, entry, starts):
    found = d.right(w, x, entry, starts)
    return State(found.h, found.c.new_zeros(1, *found.c.shape[1:]).expand_as(found.c) + found.c[-1:] * 0 + found.c)


def shared_between_threads():
    scratch = {}

    def run(w, x, entry, starts):
        scratch["x"] = x
        time.sleep(0.002)
        return d.right(w, scratch["x"] if scratch["x"].shape == x.shape else x, entry, starts)

    return run


def hands_over(w, x, entry, starts):
    return get_backend("vmap").layer(w, x, entry, starts)


def hands_over_in_silence(w, x, entry, starts):
    try:
        return get_backend("cudnn").layer(w, x, entry, starts)
    except Exception:
        return d.right(w, x, entry, starts)


def packed_once():
    packed = {}

    def run(w, x, entry, starts):
        old = packed.setdefault((w.w_ih.shape, x.dtype), w.w_ih.detach().clone())
        return d.right(w._replace(w_ih=w.w_ih * 0 + old), x, entry, starts)

    return run


def packed_by_dtype():
    packed = {}

    def run(w, x, entry, starts):
        if w.w_hh.requires_grad:
            packed.setdefault(w.w_hh.shape, map_weights(w, lambda v: v.detach().clone()))
        return d.right(map_weights(packed.get(w.w_hh.shape, w), lambda v: v.to(x.dtype)), x, entry, starts)

    return run


def counts_calls():
    calls = []

    def run(w, x, entry, starts):
        calls.append(1)
        found = d.right(w, x, entry, starts)
        return State(found.h * (1 if len(calls) < 12 else 1.1), found.c)

    return run


def writes_to_observation(w, x, entry, starts):
    found = d.right(w, x.clone(), entry, starts)
    x.detach().mul_(1.5)
    return found


def bytes_of_starts(w, x, entry, starts):
    return d.right(w, x, entry, starts.flip(1))


DEFECTS = {
    "the backend drops by itself": (drops_itself, "training_and_evaluation_follow_the_module"),
    "the backend drops by itself, and more than once": (drops_itself, "dropout_is_torchs_between_layers"),
    "gradient of dropped values": (doubles_gradients,
                                     "dropout_goes_backward_through_the_same_mask"),
    "zeros of the default dtype": (default_dtype, "the_default_dtype_does_not_matter"),
    "zeros on the default device": (default_device, "the_default_device_does_not_matter"),
    "tanh by exponentials": (d.layer(exponential_tanh), "large_input_saturates"),
    "tanh by exponentials, at infinity": (d.layer(exponential_tanh), "infinite_input_saturates"),
    "tanh by exponentials, going backward": (d.layer(exponential_tanh), "gradients_of_large_input_are_finite"),
    "subnormals are not numbers": (flushes_subnormals, "subnormal_input_is_read"),
    "rounding worse than torch's": (noisy, "no_worse_than_torch"),
    "bfloat16 whatever the dtype": (half_always, "everything_has_the_weights_dtype"),
    "bfloat16 in float16": (half_always, "output_equals_reference_in_float16"),
    "bfloat16 after autocast": (half_always, "autocast_ends_with_its_context"),
    "units beyond 128 dropped": (at_most_128, "any_hidden_size"),
    "rows beyond 65536 dropped": (at_most_65536_rows, "many_rows"),
    "steps beyond 1024 dropped": (at_most_1024_steps, "long_rows"),
    "scratch that is not written": (unwritten, "scratch_memory_is_written_before_it_is_read"),
    "results kept": (keeps_results, "a_call_keeps_nothing"),
    "scratch shared between threads": (shared_between_threads, "two_threads_do_not_mix"),
    "handed to vmap": (hands_over, "only_the_named_backend_works"),
    "handed to cudnn, errors swallowed": (hands_over_in_silence, "only_the_named_backend_works"),
    "weights packed once, functional_call": (packed_once, "functional_call_uses_the_weights_it_is_given"),
    "weights packed once, optimizer": (packed_once, "an_optimizer_step_takes_effect"),
    "weights packed once, loaded through a copy": (packed_once, "copies_in_another_mode_share_the_weights"),
    "weights packed once, in a story": (packed_once, "any_program_agrees_with_the_model"),
    "packed weights of the dtype before": (packed_by_dtype, "moved_to_another_dtype_and_back"),
    "wrong after a dozen calls": (counts_calls, "any_program_agrees_with_the_model"),
    "rows mixed": (mixes_rows, "more_batch_dimensions_keep_their_order"),
    "resets of another row, nested": (bytes_of_starts, "nested_keys"),
    "resets of another row, lazy stack": (bytes_of_starts, "lazily_stacked_tensordicts_are_read_and_written"),
    "writes to the input": (writes_to_observation, "only_its_own_keys_are_written"),
}  # fmt: skip
FACTORIES = {keeps_results, shared_between_threads, packed_once, packed_by_dtype, counts_calls}


@pytest.mark.parametrize("name", DEFECTS)
def test_defect_is_killed_by_the_law_named_beforehand(name):
    layer, law = DEFECTS[name]
    backend = LSTMBackend("defect", layer() if layer in FACTORIES else layer)
    (result,) = check_backend(backend, laws=[law], seed=1, shrink=False).results
    assert result.verdict == "failed", f"{name}: {law} says {result.verdict}: {result.message}"


def test_a_hand_over_is_its_own_verdict_and_leaves_the_others_whole():
    before = get_backend("vmap").layer
    (result,) = check_backend(
        LSTMBackend("lazy", hands_over), laws=["only_the_named_backend_works"], shrink=False
    ).results
    assert result.message.startswith("'lazy' was requested, and layer of 'vmap' did work in its place")
    assert get_backend("vmap").layer is before


def test_a_dtype_a_spec_refused_too_late_is_seen():
    def picky(spec, device, dtype):
        return "" if spec.bidirectional else None

    law = "rejections_are_errors_at_construction"
    (result,) = check_backend(LSTMBackend("picky", d.right, picky), laws=[law]).results
    assert result.verdict == "failed"
    assert "expected None or a reason as text" in result.message


def test_moods_are_seen():
    answers = iter(range(10**6))
    moody = LSTMBackend("moody", d.right, lambda spec, device, dtype: "no" if next(answers) % 2 else None)
    (result,) = check_backend(moody, laws=["rejects_is_deterministic"]).results
    assert result.verdict == "failed"


def test_dropout_is_the_same_for_results_that_are_not_contiguous():
    def batch_major(w, x, entry, starts):
        return State(*(v.transpose(0, 1).contiguous().transpose(0, 1) for v in d.right(w, x, entry, starts)))

    (result,) = check_backend(LSTMBackend("v", batch_major), laws=["dropout_is_torchs_between_layers"]).results
    assert result.verdict == "passed", result


def test_the_contracts_page_is_up_to_date():
    page = contract_page.PAGE.read_text(encoding="utf-8")
    assert contract_page.renewed(page) == page, "run python -m rnn_conformance.laws.page"
    assert all(f"`{name}`" in page for name in LAWS)


def test_no_thread_is_left_over():
    check_backend("vmap", laws=["the_mode_stays_in_its_thread"], profile="smoke")
    assert threading.active_count() < 10
