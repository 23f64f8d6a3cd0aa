"""What is right when called as it is, and wrong where torch compiles, exports or scripts it."""

from __future__ import annotations

import torch
from rnn_backends import LayerFunction, LayerWeights, LSTMBackend, LSTMModule, State, Trait, scripting
from rnn_backends.unroll import unroll
from torch import Tensor

from ..planting import Patch, backend, in_core, in_layer, made
from ..right import both, right

FULLGRAPH, SCRIPT = frozenset({Trait.FULLGRAPH}), frozenset({Trait.SCRIPT})


@in_layer("inductor_in_one_graph", traits=FULLGRAPH, by_numbers=False)
def compiled_without_gradients_of_the_recurrence(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """In compiled code no gradient reaches the recurrent weights."""
    return right(w._replace(w_hh=w.w_hh.detach()) if torch.compiler.is_compiling() else w, x, entry, starts)


@made("a_compiled_result_outlives_the_next_call", traits=FULLGRAPH, by_numbers=False)
def compiled_into_shared_scratch() -> LayerFunction:
    """In compiled code without gradients the output lies in memory that the next call writes to."""
    scratch: dict[tuple[int, ...], Tensor] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        h, c = right(w, x, entry, starts)
        if h.requires_grad or not torch.compiler.is_compiling():
            return State(h, c)
        shape = tuple(h.shape)
        if shape not in scratch:
            scratch[shape] = torch.empty_like(h)
        return State(scratch[shape].copy_(h), c)

    return run


@in_core("a_compiled_module_follows_its_mode", on=LSTMBackend("defect", right, traits=FULLGRAPH))
def compiled_modules_keep_their_own_mode() -> list[Patch]:
    """A compiled module goes by the mode it was made with, whatever the context around the call says."""
    original = LSTMModule.recurrent_mode

    def wrong(module: LSTMModule) -> bool:
        return bool(module._recurrent_mode if torch.compiler.is_compiling() else original.__get__(module))

    return [Patch(LSTMModule, "recurrent_mode", property(wrong))]


@backend("compiled_with_graph_breaks", by_numbers=False)
def out_of_the_graph_and_out_of_autograd() -> LSTMBackend:
    """Where its caller is compiled it keeps itself out of the graph, and out of autograd with it."""
    plainly = torch.compiler.disable(right)

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        if torch.compiler.is_compiling():
            return both(torch.Tensor.detach, plainly(w, x, entry, starts))
        return right(w, x, entry, starts)

    return LSTMBackend("defect", run)


@in_layer("exported_saved_and_loaded", traits=frozenset({Trait.EXPORT}), by_numbers=False)
def exported_without_its_resets(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """In an exported program a sequence starts at the row's beginning only."""
    first = torch.zeros_like(starts)
    first[0] = True
    return right(w, x, entry, first if torch.compiler.is_exporting() else starts)


@in_core("a_script_keeps_training_and_dropout", on=LSTMBackend("defect", unroll, traits=SCRIPT))
def scripted_for_evaluation() -> list[Patch]:
    """What is scripted never drops, in training either."""
    original = scripting.ScriptableLSTM.__init__

    def wrong(self: scripting.ScriptableLSTM, lstm: torch.nn.Module) -> None:
        original(self, lstm)  # type: ignore[arg-type]
        self.dropout = 0.0

    return [Patch(scripting.ScriptableLSTM, "__init__", wrong)]


@made("a_compiled_function_follows_sizes_resets_and_mode", traits=FULLGRAPH, by_numbers=False)
def compiled_for_the_first_length() -> LayerFunction:
    """Compiled code runs as many steps as the first call had; what comes after them repeats the last."""
    first: list[int] = []

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        if not torch.compiler.is_compiling():
            return right(w, x, entry, starts)
        if not first:
            first.append(len(x))
        steps = min(len(x), first[0])
        ran = right(w, x[:steps], both(lambda v: v[:steps], entry), starts[:steps])
        return both(lambda v: torch.cat([v, v[-1:].expand(len(x) - steps, -1, -1)]), ran)

    return run


@made("a_compiled_function_follows_sizes_resets_and_mode", traits=FULLGRAPH, by_numbers=False)
def compiled_with_resets_kept_by_shape() -> LayerFunction:
    """Compiled code keeps the resets of the first call of each shape, as a plan that is never made anew."""
    plans: dict[tuple[int, ...], Tensor] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        if not torch.compiler.is_compiling():
            return right(w, x, entry, starts)
        shape = tuple(starts.shape)
        if shape not in plans:
            plans[shape] = starts.clone()
        return right(w, x, entry, plans[shape])

    return run
