"""The rounds in which defects were invented after the suite was written: a fair measure of the suite.

A defect names its rounds, and those whose first run of the quick profile it survived; after that a law was written or
widened. Two people may invent the same defect.
"""

from __future__ import annotations

from typing import NamedTuple

from .catalogue import DEFECTS
from .planting import Defect


class Round(NamedTuple):
    """Defects that were invented together.

    Attributes:
        number: 1, 2, ..., in order of time.
        of: the place of the errors: kernels, core or plugins.
        by: the author, and the author's knowledge of the project.
    """

    number: int
    of: str
    by: str

    @property
    def defects(self) -> tuple[Defect, ...]:
        """All of them."""
        return tuple(defect for defect in DEFECTS.values() if self.number in defect.rounds)

    @property
    def died(self) -> tuple[Defect, ...]:
        """The defects that a law killed in the first run of the quick profile."""
        return tuple(defect for defect in self.defects if self.number not in defect.survived)


ROUNDS = (
    Round(1, "kernels and core", "the author of the suite"),
    Round(2, "kernels", "a second author, who had read the contract and core"),
    Round(3, "core", "the same author, after round 2"),
    Round(4, "core", "a third author, who had read the contract and core, after laws for the survivors"),
    Round(5, "kernels and plugins", "a fourth author, who had read core, the plugins and the laws' names"),
    Round(6, "core", "a fifth author, who had read core and the laws' sentences and looked for gaps"),
    Round(7, "core", "a sixth author, who had read only core"),
    Round(
        8, "kernels, core and settings", "the author of the laws that followed, who knew which kinds of defects survive"
    ),
    Round(
        9,
        "kernels and core",
        "a seventh author, who had read core, the plugins and the page about the suite, but no law",
    ),
    Round(
        10, "kernels", "an eighth author, who had read core, the plugins and the page on writing a backend, but no law"
    ),
)
