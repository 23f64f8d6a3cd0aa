"""placeholder"""

from .results import Results


def page(results: Results) -> str:
    return ""
