"""Planted defects and correct variants: tests of the suite, which must catch the former and accept the latter."""

from .catalogue import DEFECTS
from .planting import Defect
from .similar import similar_defect

__all__ = ["DEFECTS", "Defect", "similar_defect"]
