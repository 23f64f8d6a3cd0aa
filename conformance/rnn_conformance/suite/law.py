"""The type of a law: a plain function over one trial, and its sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rnn_backends import LSTMBackend, Trait

if TYPE_CHECKING:
    from .trial import Trial

LawFunction = Callable[["Trial"], None]


@dataclass(frozen=True)
class Law:
    """One law.

    Attributes:
        name: the function's name.
        sentence: the law in one sentence, the docstring's first line.
        subject: its file.
        function: raises :class:`~.verdict.LawBroken` if the law does not hold for a trial.
        where: constraints on its cases: the allowed values of each field.
        trait: the capability it tests; the law also runs where it is not claimed.
        tries_unclaimed: whether it runs on a backend that does not claim the trait.
        costly: whether it compiles something: it then runs on few fixed cases, outside the example loop.
        rollouts: whether it runs over recorded rollouts.
        drawn: whether it runs over drawn cases.
        since: the contract version that added it; it is declined for a backend made for an older one.
        profiles: the profiles it belongs to; a law of full belongs to deep too.
        once: whether one case is enough in every profile, because the law itself tries many things.
        wide: whether it draws all cases of the profile; the other laws draw a quarter, because sizes and options, which
            wide laws vary too, matter less to them.
        time_limit: in seconds; the law then runs in its own process. ``None``: it runs in this process, without limit.
    """

    name: str
    sentence: str
    subject: str
    function: LawFunction
    where: Mapping[str, Any] = field(default_factory=dict)
    trait: Trait | None = None
    tries_unclaimed: bool = True
    costly: bool = False
    rollouts: bool = False
    profiles: tuple[str, ...] = ("smoke", "quick", "full")
    time_limit: float | None = None
    drawn: bool = True
    since: int = 1
    once: bool = False
    wide: bool = False

    def not_yet(self, backend: LSTMBackend) -> str | None:
        """Why the backend is not held to this law: it is made for an older contract version; else ``None``."""
        if self.since <= backend.contract_version:
            return None
        return f"a law since contract version {self.since}; the backend is made for {backend.contract_version}"

    def belongs(self, profile: str) -> bool:
        """Whether it runs in this profile."""
        return ("full" if profile == "deep" else profile) in self.profiles


def sentence_of(function: Callable[..., object]) -> str:
    """Its docstring's first line, or its name if Python drops docstrings (``-OO``, ``PYTHONOPTIMIZE=2``)."""
    return (function.__doc__ or function.__name__.replace("_", " ")).strip().splitlines()[0]


def law(
    trait: Trait | None = None,
    tries_unclaimed: bool = True,
    costly: bool = False,
    rollouts: bool = False,
    profiles: tuple[str, ...] = ("smoke", "quick", "full"),
    time_limit: float | None = None,
    drawn: bool = True,
    since: int = 1,
    once: bool = False,
    wide: bool = False,
    **where: Any,
) -> Callable[[LawFunction], Law]:
    """Make a function a law. Further keywords constrain its cases: ``T=(1,)``, ``dtype=("f32",)``."""

    def decorate(function: LawFunction) -> Law:
        sentence = sentence_of(function)
        subject = function.__module__.rpartition(".")[2]
        return Law(
            function.__name__, sentence, subject, function, where, trait, tries_unclaimed,
            costly or time_limit is not None, rollouts, profiles, time_limit, drawn, since, once, wide,
        )  # fmt: skip

    return decorate
