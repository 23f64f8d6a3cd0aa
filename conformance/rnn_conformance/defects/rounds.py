"""What was invented after the suite was written, without touching it: the honest figure of what it catches.

The first round is by who wrote the suite. The others are by people who had read the contract and core, and neither the
laws nor the planted defects. What survived the first run of the quick profile got a law of its own, or a wider one, and
belongs to the catalogue from then on.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from . import (
    invented,
    invented_again,
    invented_core,
    invented_core_blind,
    invented_core_more,
    invented_kernels,
    invented_kernels_again,
    invented_plugins,
)
from .catalogue import DEFECTS
from .planting import Defect


@dataclass(frozen=True)
class Round:
    """Defects that were invented together.

    Attributes:
        what: of what and by whom, in words.
        unnamed: those that died of some law in the first run; no law is named for them still.
        survived: names of those that did not.
    """

    what: str
    unnamed: dict[str, Defect]
    survived: tuple[str, ...]

    @property
    def count(self) -> int:
        """All of them."""
        return len(self.unnamed) + len(self.survived)


def _round(what: str, *modules: ModuleType, survived: tuple[str, ...] | None = None) -> Round:
    found = {v.name: v for module in modules for v in vars(module).values() if isinstance(v, Defect)}
    unnamed = {name: defect for name, defect in found.items() if not defect.killed_by}
    return Round(what, unnamed, tuple(n for n in found if n not in unnamed) if survived is None else survived)


ROUNDS = (
    _round("by who wrote the suite", invented, survived=invented.SURVIVED),
    _round("in kernels, by somebody who had not read it", invented_kernels),
    _round("in core, by somebody who had not read it", invented_core),
    _round("in core, by a third, after laws for what survived the second", invented_again),
    _round(
        "in kernels and plugins, by a fourth who had seen the laws' names", invented_plugins, invented_kernels_again
    ),
    _round("in core, by a fifth who had seen them and looked for gaps", invented_core_more),
    _round("in core, by a sixth who had not", invented_core_blind),
)
INVENTED: dict[str, Defect] = {name: defect for one in ROUNDS for name, defect in one.unnamed.items()}
"""Those that no law names."""

assert not set(INVENTED) & set(DEFECTS)
