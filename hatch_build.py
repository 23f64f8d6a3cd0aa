"""A hatchling metadata hook: the README of a package page, whose links work outside the repository.

The README links its neighbours by relative paths, which work in a clone and on a code host, and on no package page.
With `Repository` in `[project.urls]` they become absolute. Without it they become words with the file's name, because a
broken link is worse than none.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(!?)\[([^\]]+)\]\((?!https?:|#|mailto:)([^)\s]+)\)")


def for_a_package_page(text: str, repository: str | None) -> str:
    """The README with every relative link made absolute, or made words where no address is known."""

    def link(found: re.Match[str]) -> str:
        picture, words, target = found.groups()
        if repository:
            return f"{picture}[{words}]({repository.rstrip('/')}/{'raw' if picture else 'blob'}/main/{target})"
        return f"{words} (`{target.split('#')[0]}`)"

    note = "" if repository else "\nThe files named in brackets are part of the source distribution.\n"
    return LINK.sub(link, text) + note


class ReadmeHook(MetadataHookInterface):
    """Sets the field `readme`, which `pyproject.toml` declares as dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Read README.md and put the changed text into the metadata."""
        text = (Path(self.root) / "README.md").read_text()
        page = for_a_package_page(text, metadata.get("urls", {}).get("Repository"))
        metadata["readme"] = {"content-type": "text/markdown", "text": page}
