"""The laws over TorchRL's whole ``LSTMModule``: its own layers, directions, dropout and keys, without core. A backend
runs one layer in one direction, so core hides a foreign module's own layers and directions. Here the laws get the whole
module instead: ``python whole_module.py [pad|scan|python] [-k LAW] [--profile smoke]``.
"""

import argparse
import warnings
from functools import partial
from typing import Any

import torch
from rnn_backends import LSTMBackend, State
from rnn_conformance.check import quiet_single_thread
from rnn_conformance.laws.catalogue import LAWS
from rnn_conformance.suite.case import Case
from rnn_conformance.suite.inputs import materialise
from rnn_conformance.suite.runner import PROFILES
from rnn_conformance.suite.search import Findings, search
from rnn_conformance.suite.trial import Trial
from rnn_conformance.suite.verdict import Declined, LawBroken, Outcome
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.modules import LSTMModule, set_recurrent_mode

OPTIONS: dict[str, dict[str, Any]] = {
    "pad": {"recurrent_backend": "pad"},
    "scan": {"recurrent_backend": "scan"},
    "python": {"python_based": True},
}
SUBJECTS = ("values", "resets", "time", "batch", "gradients", "options", "dropout", "purity", "modules")
H_KEY, C_KEY = "recurrent_state_h", "recurrent_state_c"


class Whole(nn.Module):
    """TorchRL's module with the few methods of :class:`rnn_backends.LSTM` and ``LSTMModule`` that laws call."""

    def __init__(self, case: Case, device: str, options: dict[str, Any], recurrent: bool = False) -> None:
        super().__init__()
        s = case.spec
        self.theirs = LSTMModule(
            s.input_size, s.hidden_size, s.num_layers, s.bias, dropout=s.dropout, proj_size=s.proj_size,
            bidirectional=s.bidirectional, in_keys=["observation", H_KEY, C_KEY],
            out_keys=["features", ("next", H_KEY), ("next", C_KEY)], **options,
        ).to(device, case.torch_dtype)  # fmt: skip
        self.recurrent = recurrent

    @property
    def lstm(self) -> nn.Module:
        """The module that holds the weights."""
        return self.theirs.lstm

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        """By torch.nn.LSTM's names."""
        return self.lstm.named_parameters(*args, **kwargs)

    def set_recurrent_mode(self, mode: bool) -> "Whole":
        """From now on."""
        self.recurrent = mode
        return self

    def forward(self, x: Any, hx: tuple[Tensor, Tensor] | None = None, is_init: Tensor | None = None) -> Any:
        """A TensorDict in TorchRL's form, or tensors in torch.nn.LSTM's form, where a start begins from zeros."""
        if isinstance(x, TensorDictBase):
            with set_recurrent_mode(self.recurrent):
                return self.theirs(x)
        starts = torch.zeros(x.shape[:2], dtype=torch.bool) if is_init is None else is_init
        stored = []
        if hx is not None:
            begins = torch.cat([~starts[:1], torch.zeros_like(starts[1:])])[..., None]  # [T, B, 1]
            stored = [State(*(torch.where(begins, s, 0) for s in pair)) for pair in zip(*hx, strict=True)]
        output, states = self.sequences(x, stored, starts)
        return output, (torch.stack([s.h[-1] for s in states]), torch.stack([s.c[-1] for s in states]))

    def sequences(
        self, x: Tensor, entry: list[State], starts: Tensor, every_end: bool = True
    ) -> tuple[Tensor, list[State]]:
        """Each sequence from the state stored at its start (none: zeros); states at ends, zero elsewhere."""
        td = TensorDict({"observation": x.transpose(0, 1), "is_init": starts.T.unsqueeze(-1)}, [x.shape[1], x.shape[0]])
        if entry:
            td[H_KEY] = torch.stack([s.h for s in entry]).permute(2, 1, 0, 3)
            td[C_KEY] = torch.stack([s.c for s in entry]).permute(2, 1, 0, 3)
        output, states = self._recurrent(td)
        return output, states if every_end else [State(s.h[-1], s.c[-1]) for s in states]

    def step(self, x: Tensor, state: State | None, is_init: Tensor | None = None) -> tuple[Tensor, State]:
        """One step in sequential mode: ``x [B, I]``, ``State([L*D, B, P], [L*D, B, H])``."""
        begins = torch.zeros(len(x), dtype=torch.bool) if is_init is None else is_init.reshape(len(x))
        td = TensorDict({"observation": x, "is_init": begins.unsqueeze(-1)}, [len(x)])
        if state is not None:
            td[H_KEY], td[C_KEY] = state.h.transpose(0, 1), state.c.transpose(0, 1)
        with set_recurrent_mode(False):
            out = self.theirs(td)
        return out["features"], State(out["next", H_KEY].transpose(0, 1), out["next", C_KEY].transpose(0, 1))

    def _recurrent(self, td: TensorDict) -> tuple[Tensor, list[State]]:
        with set_recurrent_mode(True):
            out = self.theirs(td)
        h, c = out["next", H_KEY].permute(2, 1, 0, 3), out["next", C_KEY].permute(2, 1, 0, 3)
        return out["features"].transpose(0, 1), [State(*pair) for pair in zip(h, c, strict=True)]


class WholeTrial(Trial):
    """A trial of the whole module in place of a backend."""

    def __init__(self, case: Case, options: dict[str, Any]) -> None:
        super().__init__(LSTMBackend("torchrl", lambda *args: State(*args[2])), case)
        self.options = options

    def lstm(self, case: Case | None = None, batch_first: bool = False) -> Any:
        """With the case's weights."""
        case = case or self.case
        if batch_first:
            raise Declined("it takes TensorDicts")
        try:
            made = Whole(case, self.device, self.options)
        except ValueError as error:
            raise Declined(str(error)) from error
        with torch.no_grad():
            for name, value in materialise(case, self.device).weights.items():
                made.lstm.get_parameter(name).copy_(value)
        return made

    def module(self, hidden_output: str = "ends") -> Any:
        """The same: it is one module."""
        return self.lstm()


def answer(law: str, case: Case, options: dict[str, Any]) -> Outcome:
    """One law over one case. A rejection with a reason counts as declined, also during the call."""
    trial = WholeTrial(case, options)
    try:
        with warnings.catch_warnings(action="ignore"), torch.random.fork_rng(devices=[]):
            LAWS[law].function(trial)
    except (Declined, NotImplementedError) as refusal:
        return Outcome("declined", str(refusal))
    except ValueError as error:
        return Outcome("declined" if "not support" in str(error) else "crashed", str(error))
    except AssertionError as broken:
        return Outcome("failed", str(broken), broken.error_ratio if isinstance(broken, LawBroken) else None)
    except Exception as error:
        return Outcome("crashed", f"{type(error).__name__}: {error}".splitlines()[0])
    return Outcome("passed", error_ratio=trial.error_ratio)


def told(law: str, found: Findings) -> str:
    """One law's result, in a line or two."""
    counts = [outcome.verdict for outcome in found.outcomes.values()]
    worst = found.worst()
    if worst is None:
        return f"{'declined' if set(counts) == {'declined'} else 'passed':<9}{law}  ({len(counts)} cases)"
    case, outcome = worst
    return f"{outcome.verdict:<9}{law}  {case.token}\n         {outcome.message.splitlines()[0][:150]}"


def main() -> None:
    """Print a result for every law that applies to the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="pad, scan, python", default=["pad", "python"])
    parser.add_argument("--profile", default="smoke", choices=tuple(PROFILES))
    parser.add_argument("-k", "--law", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-projection", action="store_true", help="leave projections out, to see other failures")
    asked = parser.parse_args()
    for kind in asked.kinds:
        print(f"{kind}:")
        for name, law in LAWS.items():
            if asked.law not in name or law.subject not in SUBJECTS or law.costly or law.trait:
                continue
            where = {**law.where, "P": (0,)} if asked.no_projection and "P" not in law.where else law.where
            check = partial(answer, name, options=OPTIONS[kind])
            with quiet_single_thread():
                print(told(name, search(check, where, PROFILES[asked.profile], asked.seed)), flush=True)


if __name__ == "__main__":
    main()
