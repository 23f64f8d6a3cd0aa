"""Planted defects and correct variants: the suite is tested by what it must catch, and by what it must let pass."""

from .catalogue import DEFECTS
from .looks import looks_like
from .planting import Defect

__all__ = ["DEFECTS", "Defect", "looks_like"]
