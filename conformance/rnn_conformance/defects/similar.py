"""``similar_defect``: the planted defect that gives the same wrong numbers as a failure, if there is one."""

from __future__ import annotations

import math
import re

from rnn_backends import LSTMBackend

from ..check import replay
from ..suite.verdict import LawResult
from .catalogue import DEFECTS
from .kill import KILLS
from .planting import Defect
from .right import right

_NUMBER = r"([-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|inf|nan))"
_DIFFERS = re.compile(rf"^(.*) differs first at (\[.*?\]): actual {_NUMBER}, expected (?:exactly )?{_NUMBER}")


def similar_defect(result: LawResult, device: str = "cpu") -> str | None:
    """The sentence of a defect that gives the same first wrong number on the same case, or ``None``.

    Args:
        result: of a law that failed, with the token of its case.
        device: where the case runs.
    """
    wanted = _DIFFERS.match(result.message)
    if wanted is None or result.token is None or ":" in result.token or result.verdict not in KILLS:
        return None
    if _same(wanted, _differs(LSTMBackend("right", right), result.law, result.token, device)):
        return None  # a right backend fails too: the fault is in core or in the law
    for defect in DEFECTS.values():
        if defect.by_numbers and _same(wanted, _replayed(defect, result.law, result.token, device)):
            return defect.sentence
    return None


def _replayed(defect: Defect, law: str, token: str, device: str) -> re.Match[str] | None:
    with defect.plant() as backend:
        return _differs(backend, law, token, device)


def _differs(backend: LSTMBackend, law: str, token: str, device: str) -> re.Match[str] | None:
    """The place and the numbers of the law's failure on the case, if it fails."""
    try:
        result = replay(backend, law, token, device)
    except ValueError:  # a law or a token that this version does not know
        return None
    return _DIFFERS.match(result.message) if result.verdict in KILLS else None


def _same(one: re.Match[str], other: re.Match[str] | None) -> bool:
    """The same tensor, the same place, the same numbers up to rounding."""
    if other is None or one.group(1, 2) != other.group(1, 2):
        return False
    pairs = zip(one.group(3, 4), other.group(3, 4), strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=1e-5) or a == b for a, b in pairs)
