"""The calls between the modules of this repository in a run: `python tools/walk.py`.

An import allows a module to call another. This program runs some commands and calls under a profile hook and records
the calls that take place. A *climb* is a call from a module to one that imports it, directly or through others: a
reader who follows the code from top to bottom has to go back up there. Core calls a plugin through the contract, and
these calls are counted separately. torch, tensordict and click may lie between the two functions of a call.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType

import import_graph

NAMES = tuple(import_graph.PACKAGES)
PLUGINS = "rnn_backends_plugins"


def above() -> dict[str, set[str]]:
    """For each module of the repository the modules that import it, directly or through others."""
    direct: dict[str, set[str]] = {}
    for found in import_graph.all_imports():
        direct.setdefault(found.imported, set()).add(found.importer)
    known: dict[str, set[str]] = {}
    for name in direct:
        todo, seen = [name], set()
        while todo:
            for importer in direct.get(todo.pop(), ()):
                if importer not in seen:
                    seen.add(importer)
                    todo.append(importer)
        known[name] = seen
    return known


def calls(run: Callable[[], object]) -> dict[tuple[str, str], str]:
    """The calls from module to module while ``run()`` runs, each with the names of the first pair of functions."""
    found: dict[tuple[str, str], str] = {}

    def note(frame: FrameType, event: str, argument: object) -> None:
        callee = _module(frame)
        if event != "call" or callee is None:
            return
        back = frame.f_back
        while back is not None and _module(back) is None:  # torch, tensordict or click between the two
            back = back.f_back
        caller = back and _module(back)
        if back is not None and caller is not None and caller != callee:
            found.setdefault((caller, callee), f"{back.f_code.co_qualname} -> {frame.f_code.co_qualname}")

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return found


def _module(frame: FrameType) -> str | None:
    name = frame.f_globals.get("__name__", "")
    return name if name.startswith(NAMES) else None


def walks() -> dict[str, Callable[[], object]]:
    """Calls of modules in each mode, the choice of a backend, copies, and the commands ``doctor`` and ``check``."""
    import copy
    import pickle

    import torch
    from rnn_backends import LSTM, LSTMModule, LSTMNet, LSTMSpec, explain, set_recurrent_mode
    from rnn_backends.testing import diagnose
    from rnn_conformance.cli.main import cli
    from rnn_conformance.doctor_example import make_env, make_policy
    from tensordict import TensorDict

    module = LSTMModule(3, 4, in_key="x", out_key="y", lstm_backend="vmap")
    one = TensorDict({"x": torch.randn(2, 3), "is_init": torch.zeros(2, 1, dtype=torch.bool)}, [2])
    row = TensorDict({"x": torch.randn(2, 5, 3), "is_init": torch.zeros(2, 5, 1, dtype=torch.bool)}, [2, 5])
    check = ["check", "vmap", "--profile", "smoke", "--seed", "1", "-k", "output_equals_reference"]
    lstm, policy = module.lstm, make_policy()
    return {
        "LSTM, on cpp, trained": lambda: lstm.with_backend("cpp")(torch.randn(2, 5, 3))[0].sum().backward(),
        "LSTM, copies": lambda: [
            copy.deepcopy(lstm),
            pickle.loads(pickle.dumps(lstm)),
            LSTM.from_torch(lstm.to_torch()),
        ],
        "LSTMNet": lambda: LSTMNet(2, {"input_size": 3, "hidden_size": 4}, {"out_features": 3})(torch.randn(2, 5, 7)),
        "set_recurrent_mode": lambda: set_recurrent_mode(True)(lambda: module(row))(),
        "diagnose": lambda: diagnose(policy, make_env(policy)),
        "LSTMModule, construction": lambda: LSTMModule(3, 4, in_key="x", out_key="y"),
        "LSTMModule, one step": lambda: module(one),
        "LSTMModule, over time": lambda: module.set_recurrent_mode(True)(row),
        "explain": lambda: explain(LSTMSpec(3, 4)),
        "rnn-backends check": lambda: cli(check, standalone_mode=False),
    }


def main() -> None:
    """Print the figures of each walk, and its climbs."""
    higher = above()
    for title, run in walks().items():
        found = calls(run)
        upward = {pair: names for pair, names in found.items() if pair[1] in higher.get(pair[0], ())}
        climbs = {
            pair: n for pair, n in upward.items() if pair[0].startswith(PLUGINS) or not pair[1].startswith(PLUGINS)
        }
        modules = {name for pair in found for name in pair}
        into = len(upward) - len(climbs)
        print(f"{title}: {len(modules)} modules, {len(found)} calls, {into} of core into plugins, {len(climbs)} climbs")
        for (caller, callee), names in climbs.items():
            print(f"    {caller} -> {callee}: {names}")


if __name__ == "__main__":
    main()
