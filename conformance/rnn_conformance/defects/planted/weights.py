"""Defects that the laws of ``laws/weights.py`` kill first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from rnn_backends import LSTM, LayerFunction, LayerWeights, State
from rnn_backends.authoring import is_plain
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..planting import Patch, in_core, in_layer, made
from ..right import each, right


@in_core("state_dict_is_torchs")
def state_dict_by_other_names() -> list[Patch]:
    """The state_dict has other names than torch.nn.LSTM."""
    original = nn.Module.state_dict

    def replacement(self: nn.Module, *args: Any, **options: Any) -> Any:
        result = original(self, *args, **options)
        return {k.replace("weight", "kernel"): v for k, v in result.items()} if isinstance(self, LSTM) else result

    return [Patch(nn.Module, "state_dict", replacement)]


@in_core("state_dict_is_torchs")
def state_dict_in_another_order() -> list[Patch]:
    """The state_dict lists biases before weights."""
    original = nn.Module.state_dict

    def replacement(self: nn.Module, *args: Any, **options: Any) -> Any:
        result = original(self, *args, **options)
        return dict(sorted(result.items())) if isinstance(self, LSTM) else result

    return [Patch(nn.Module, "state_dict", replacement)]


@in_core("the_same_seed_draws_the_same_weights")
def initial_weights_from_a_normal_distribution() -> list[Patch]:
    """Initial weights are drawn from a normal distribution."""

    def replacement(self: nn.RNNBase) -> None:
        for value in self.parameters():
            nn.init.normal_(value)

    original = nn.RNNBase.reset_parameters
    chosen = lambda self: replacement(self) if isinstance(self, LSTM) else original(self)  # noqa: E731
    return [Patch(nn.RNNBase, "reset_parameters", chosen)]


@in_core("the_same_seed_draws_the_same_weights")
def forget_bias_of_one() -> list[Patch]:
    """The forget gate's bias starts at one."""
    original = nn.RNNBase.reset_parameters

    def replacement(self: nn.RNNBase) -> None:
        original(self)
        for name, value in self.named_parameters():
            if isinstance(self, LSTM):
                with torch.no_grad():
                    H = self.hidden_size
                    value[H : 2 * H] += 1 if "bias" in name else 0

    return [Patch(nn.RNNBase, "reset_parameters", replacement)]


@in_core("the_same_seed_draws_the_same_weights")
def initial_weights_in_another_order() -> list[Patch]:
    """Initial weights are drawn in another order than in torch.nn.LSTM."""
    original = nn.RNNBase.reset_parameters

    def replacement(self: nn.RNNBase) -> None:
        if not isinstance(self, LSTM):
            return original(self)
        bound = self.hidden_size**-0.5
        for value in reversed(list(self.parameters())):
            nn.init.uniform_(value, -bound, bound)
        return None

    return [Patch(nn.RNNBase, "reset_parameters", replacement)]


@made("edited_weights_are_seen")
def results_cached_by_input() -> LayerFunction:
    """Results are cached by the input's memory and returned again, even with other weights."""
    cache: dict[int, tuple[Tensor, State]] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        old = cache.get(x.data_ptr())
        if old is not None and old[0].shape == x.shape and torch.equal(old[0], x):
            return old[1]
        result = right(w, x, entry, starts)
        cache[x.data_ptr()] = (x.clone(), result)
        return result

    return run


def _packed(key: Any) -> LayerFunction:
    """A layer that packs weights once for each key: the first value is kept alive, so no id comes twice."""
    cache: dict[Any, tuple[LayerWeights, LayerWeights]] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        if any(v is not None and v.requires_grad for v in w):
            result = cache.setdefault(key(w), (w, each(lambda v: v.detach().clone(), w)))[1]
            return right(result, x, entry, starts)
        return right(w, x, entry, starts)

    return run


@made("edited_weights_are_seen", "a_copy_is_independent")
def packed_once() -> LayerFunction:
    """Weights are packed at the first call and never again."""
    return _packed(lambda w: w.w_ih.shape)


@made("edited_weights_are_seen")
def packed_by_memory() -> LayerFunction:
    """Packed weights are cached by address: an edit in place has no effect."""
    return _packed(lambda w: w.w_ih.data_ptr())


@made("edited_weights_are_seen")
def packed_by_one_version() -> LayerFunction:
    """Packed weights are cached by identity and version counter: an assignment to .data has no effect."""
    return _packed(lambda w: (id(w.w_ih), w.w_ih._version))


@made("edited_weights_are_seen")
def packed_recurrent_weights_only() -> LayerFunction:
    """Only the recurrent weights are packed, at the first call."""
    cache: dict[int, tuple[Tensor, Tensor]] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        old = cache.setdefault(id(w.w_hh), (w.w_hh, w.w_hh.detach().clone()))[1]
        return right(w._replace(w_hh=old), x, entry, starts)

    return run


@in_core("edited_weights_are_seen")
def weights_of_the_first_call() -> list[Patch]:
    """Core keeps copies of the weights from the first call: later edits have no effect."""
    original, cache = LSTM.layer_weights, dict[int, tuple[LSTM, list[LayerWeights]]]()

    def replacement(self: LSTM) -> list[LayerWeights]:
        result = cache.setdefault(id(self), (self, [each(torch.clone, w) for w in original(self)]))
        return result[1]

    return [Patch(LSTM, "layer_weights", replacement)]


@made("edited_weights_are_seen_while_acting", round=2, survived=2)
def packed_until_the_next_training_call() -> LayerFunction:
    """Weights packed for acting are cached until a call with gradients: an edit in place has no effect."""
    packs: dict[Any, tuple[Any, LayerWeights]] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        key = tuple(None if v is None else (v.data_ptr(), v.shape, v.dtype) for v in w)
        if torch.is_grad_enabled():
            packs.pop(key, None)
            return right(w, x, entry, starts)
        if key not in packs:
            packs[key] = (each(Tensor.detach, w), each(lambda v: v.detach().clone(), w))
        return right(packs[key][1], x, entry, starts)

    return run


@in_core("parametrized_weights_are_read", round=3, survived=3)
def weights_read_past_parametrizations() -> list[Patch]:
    """Weights are read from the parameter registry: for a parametrized weight the original is used."""

    def replacement(self: LSTM) -> list[LayerWeights]:
        held = dict(self.named_parameters(remove_duplicate=False))

        def result(name: str) -> Tensor:
            return held[name] if name in held else held[f"parametrizations.{name}.original"]

        weights = []
        for names in self._all_weights:
            w = [result(name) for name in names]
            b_ih, b_hh = w[2:4] if self.bias else (None, None)
            weights.append(LayerWeights(w[0], w[1], b_ih, b_hh, w[-1] if self.proj_size else None))
        return weights

    return [Patch(LSTM, "layer_weights", replacement)]


def _add_deepcopy(replacement: Any) -> list[Patch]:
    setattr(LSTM, "__deepcopy__", None)  # noqa: B010
    return [Patch(LSTM, "__deepcopy__", replacement)]


@in_core("a_copy_is_independent")
def a_copy_shares_its_parameters() -> list[Patch]:
    """A deepcopy shares its parameters with the original."""

    def replacement(self: LSTM, memo: dict[int, object]) -> LSTM:
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        return new

    return [Patch(LSTM, "__deepcopy__", replacement)] if hasattr(LSTM, "__deepcopy__") else _add_deepcopy(replacement)


@made("two_modules_do_not_mix")
def packed_by_shape() -> LayerFunction:
    """Packed weights are cached by shape: two modules of the same sizes share them."""
    cache: dict[Any, LayerWeights] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        key = (tuple(w.w_ih.shape), w.w_hr is None, w.b_ih is None, tuple(w.w_hh.shape), len(x))
        return right(cache.setdefault(key, each(lambda v: v.detach().clone(), w)), x, entry, starts)

    return run


@in_core("each_weight_may_be_replaced_alone", round=6, survived=6)
def weights_are_known_by_the_first() -> list[Patch]:
    """The list of weights is cached while weight_ih_l0 is the same object: replacing another weight has no effect."""
    cache: Any = WeakKeyDictionary()
    look = LSTM.layer_weights

    def layer_weights(self: Any) -> Any:
        result = cache.get(self)
        if result is None or result[0].w_ih is not self.weight_ih_l0:
            result = cache[self] = look(self)
        return result

    return [Patch(LSTM, "layer_weights", layer_weights)]


@in_core("loading_is_strict_by_default", round=8, survived=8)
def load_state_dict_is_never_strict() -> list[Patch]:
    """load_state_dict ignores strict=True: missing and unexpected keys pass silently."""
    original = LSTM.load_state_dict

    def replacement(self: LSTM, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        return original(self, state_dict, strict=False, assign=assign)

    return [Patch(LSTM, "load_state_dict", replacement)]


@in_core("loading_is_strict_by_default", round=8, survived=8)
def load_state_dict_is_always_strict() -> list[Patch]:
    """load_state_dict ignores strict=False: a part of a state_dict is rejected."""
    original = LSTM.load_state_dict

    def replacement(self: LSTM, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        return original(self, state_dict, strict=True, assign=assign)

    return [Patch(LSTM, "load_state_dict", replacement)]


@in_core("loading_is_strict_by_default", round=8, survived=8)
def unexpected_keys_dropped_before_loading() -> list[Patch]:
    """Unexpected keys of a state_dict are dropped before they are reported."""
    original = LSTM._load_from_state_dict

    def replacement(self: LSTM, state_dict: Any, prefix: str, *rest: Any) -> None:
        own = {prefix + name for name in self._parameters}
        for key in [key for key in state_dict if key.startswith(prefix) and key not in own]:
            del state_dict[key]
        original(self, state_dict, prefix, *rest)

    return [Patch(LSTM, "_load_from_state_dict", replacement)]


@in_layer("weights_without_bias_may_be_views_of_one_vector")
def memory_behind_weights_is_read_as_biases(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
    """Without bias, the numbers in memory behind the recurrent weights are read as biases, if there are enough."""
    memory, H = w.w_hh.untyped_storage(), len(w.w_hh) // 4
    begin = w.w_hh.storage_offset() + w.w_hh.numel()
    if w.b_ih is not None or memory.nbytes() // w.w_hh.element_size() < begin + 8 * H:
        return right(w, x, entry, starts)
    bias = x.new_empty(0).set_(memory, begin, (2, 4 * H), (4 * H, 1)).clone()
    return right(w._replace(b_ih=bias[0], b_hh=bias[1]), x, entry, starts)


@in_core("a_weight_of_another_shape_is_not_loaded", round=9, survived=9)
def a_checkpoint_of_another_shape_spread_out() -> list[Patch]:
    """A stored weight of another shape is broadcast to the parameter's shape if possible."""
    original = LSTM._load_from_state_dict

    def replacement(self: LSTM, state_dict: Any, prefix: str, *args: Any) -> Any:
        for name, parameter in self._parameters.items():
            value = state_dict.get(prefix + name)
            if parameter is None or value is None or value.shape == parameter.shape:
                continue
            try:
                state_dict[prefix + name] = value.expand_as(parameter)
            except RuntimeError:
                continue
        return original(self, state_dict, prefix, *args)

    return [Patch(LSTM, "_load_from_state_dict", replacement)]


@in_core("a_weight_of_another_shape_is_not_loaded")
def a_transposed_weight_transposed_when_loaded() -> list[Patch]:
    """A stored matrix of the transposed shape is transposed, as if from a framework with that layout."""
    return [_loading(lambda value, like: value.T if value.ndim == 2 and value.T.shape == like.shape else value)]


@in_core("a_weight_of_another_shape_is_not_loaded")
def rows_beyond_the_weights_cut_when_loaded() -> list[Patch]:
    """A stored weight with more rows than the parameter is cut to its size."""

    def cut(value: Tensor, like: Tensor) -> Tensor:
        return value[: len(like)] if value.ndim == like.ndim and len(value) > len(like) else value

    return [_loading(cut)]


def _loading(change: Callable[[Tensor, Tensor], Tensor]) -> Patch:
    """Stored weights are changed before they are loaded: ``change(value, parameter)``."""
    original = LSTM._load_from_state_dict

    def replacement(self: LSTM, state_dict: Any, prefix: str, *args: Any) -> Any:
        for name, parameter in self._parameters.items():
            if parameter is not None and prefix + name in state_dict:
                state_dict[prefix + name] = change(state_dict[prefix + name], parameter)
        return original(self, state_dict, prefix, *args)

    return Patch(LSTM, "_load_from_state_dict", replacement)


@in_core("copies_on_a_backend_follow_parametrizations")
def a_copy_lists_its_parameters_when_it_is_made() -> list[Patch]:
    """A copy on another backend keeps a list of the parameters of its construction."""
    original = LSTM.with_backend

    def replacement(self: LSTM, *args: Any) -> LSTM:
        new = original(self, *args)
        new.__dict__["_parameters"] = dict(new._parameters)
        return new

    return [Patch(LSTM, "with_backend", replacement)]


def _kept_by(version_of: str, part: Callable[[LayerWeights], LayerWeights]) -> LayerFunction:
    """Without gradients ``part`` of the weights is made once, and again when the weight ``version_of`` changes."""
    kept: dict[int, tuple[Any, LayerWeights, LayerWeights]] = {}

    def run(w: LayerWeights, x: Tensor, entry: State, starts: Tensor) -> State:
        seen = getattr(w, version_of)
        if seen is None or torch.is_grad_enabled() or not is_plain(w) or seen.is_inference():
            return right(w, x, entry, starts)
        now, there = (seen.data_ptr(), seen._version, seen.dtype), kept.get(id(seen))
        if there is None or there[0] != now or any(a is not b for a, b in zip(there[1], w, strict=True)):
            with torch.inference_mode(False):
                there = kept[id(seen)] = now, w, part(w)
        return right(there[2], x, entry, starts)

    return run


@made("edited_weights_are_seen_while_acting", round=10)
def the_sum_of_biases_renewed_for_one_of_them() -> LayerFunction:
    """Without gradients the sum of the biases is cached until b_ih changes: an edit of b_hh has no effect."""
    return _kept_by("b_ih", lambda w: w._replace(b_hh=None if w.b_hh is None else w.b_hh.detach().clone()))


@made("edited_weights_are_seen_while_acting")
def the_recurrent_weight_repacked_for_the_input_weight() -> LayerFunction:
    """Without gradients w_hh is packed once, and again when w_ih changes: an edit of w_hh has no effect."""
    return _kept_by("w_ih", lambda w: w._replace(w_hh=w.w_hh.detach().clone()))


def _originals(when: Callable[[], bool]) -> list[Patch]:
    """Parametrized weights are read as their originals where ``when()`` is true."""
    read = LSTM.layer_weights

    def replacement(self: LSTM) -> list[LayerWeights]:
        if not parametrize.is_parametrized(self) or not when():
            return read(self)
        originals: Any = {name: part.original for name, part in self.parametrizations.items()}
        every = iter([originals[name] for names in self._weight_names for name in names])
        return [each(lambda _: next(every), w) for w in read(self)]

    return [Patch(LSTM, "layer_weights", replacement)]


@in_core("parametrized_weights_are_read")
def parametrized_weights_raw_without_gradients() -> list[Patch]:
    """Without gradients a parametrized weight is read as its original."""
    return _originals(lambda: not torch.is_grad_enabled())


@in_core("parametrized_weights_are_read")
def parametrized_weights_raw_in_a_step() -> list[Patch]:
    """A step reads a parametrized weight as its original."""
    inside = [False]
    original = LSTM.step_batch_first

    def step(self: LSTM, *given: Any) -> Any:
        inside[0] = True
        try:
            return original(self, *given)
        finally:
            inside[0] = False

    return [*_originals(lambda: inside[0]), Patch(LSTM, "step_batch_first", step)]


@in_core("parametrized_weights_are_read")
def parametrized_weights_kept_without_gradients() -> list[Patch]:
    """Without gradients the values of parametrized weights are kept from the first call."""
    original, kept = LSTM.layer_weights, dict[int, tuple[LSTM, list[LayerWeights]]]()

    def replacement(self: LSTM) -> list[LayerWeights]:
        if torch.is_grad_enabled() or not parametrize.is_parametrized(self):
            return original(self)
        return kept.setdefault(id(self), (self, original(self)))[1]

    return [Patch(LSTM, "layer_weights", replacement)]
