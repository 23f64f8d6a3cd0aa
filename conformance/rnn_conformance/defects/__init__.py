"""Planted defects and correct variants: the suite is tested by what it must catch, and by what it must let pass."""

from .catalogue import DEFECTS
from .planting import Defect
from .similar import similar_defect

__all__ = ["DEFECTS", "Defect", "similar_defect"]
