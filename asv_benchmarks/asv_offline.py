"""An asv plugin: the site of ``asv publish`` works without a network, and its front page shows its plots.

asv's page loads ten files from content networks; ``vendor/`` has them, from asv's own sources (vendor/README.md). Its
front page requests a plot of every benchmark in the folder, measured or not, and draws lines only: of one commit,
nothing. So benchmarks without results are left out, and points are drawn too.
"""

import re
import shutil
from pathlib import Path

from asv.console import log
from asv.publishing import OutputPublisher

HERE = Path(__file__).resolve().parent
VENDORED = {
    "jquery-3.3.1.min.js": "jquery-3.3.1.min.js",
    "jquery.flot.min.js": "jquery.flot-0.8.3.min.js",
    "jquery.flot.time.min.js": "jquery.flot-0.8.3.time.min.js",
    "jquery.flot.selection.min.js": "jquery.flot-0.8.3.selection.min.js",
    "jquery.flot.categories.min.js": "jquery.flot-0.8.3.categories.min.js",
    "jquery.flot.orderBars.js": "jquery.flot.orderBars.js",
    "stupidtable.min.js": "stupidtable.js",
    "md5.min.js": "md5.js",
    "bootstrap.min.js": "bootstrap-3.1.0.min.js",
    "bootstrap.min.css": "bootstrap-3.1.0.min.css",
}
REMOTE = re.compile(r'<(script|link)\b[^>]*\b(?:src|href)="https://[^"]+/([^"/]+\.(?:js|css))"[^>]*>')


def local_tag(found: re.Match[str]) -> str:
    """The tag that loads the vendored file. A KeyError: this asv loads a file that ``vendor/`` does not have."""
    file = f"vendor/{VENDORED[found[2]]}"
    if found[1] == "script":
        return f'<script src="{file}" onerror="js_load_failure()">'
    return f'<link rel="stylesheet" href="{file}">'


LINES = re.compile(r"lines: \{\s*show: true,\s*lineWidth: 2\s*\},")
"""The options of the front page's plots, in summarygrid.js."""


class Offline(OutputPublisher):
    """Runs last, before asv writes index.json."""

    name = "offline"
    order = 99

    @classmethod
    def publish(cls, conf, repo, benchmarks, graphs, revisions):
        """Copy the vendored files beside the page, which then loads them; correct the front page."""
        site = Path(conf.html_dir)
        mend_front_page(site, benchmarks)
        shutil.copytree(HERE / "vendor", site / "vendor", dirs_exist_ok=True)
        page = site / "index.html"
        text, count = REMOTE.subn(local_tag, page.read_text(encoding="utf-8"))
        page.write_text(text, encoding="utf-8")
        log.info(f"{count} files are loaded from the site itself")


def mend_front_page(site, benchmarks):
    """Leave benchmarks without results out of ``benchmarks``, which becomes index.json, and draw points too.

    Raises:
        RuntimeError: this asv's summarygrid.js has other plot options.
    """
    for name in [name for name in benchmarks if not (site / "graphs" / "summary" / f"{name}.json").exists()]:
        del benchmarks[name]
    script = site / "summarygrid.js"
    text, count = LINES.subn(lambda found: f"{found[0]} points: {{show: true, radius: 2}},", script.read_text())
    if count != 1:
        raise RuntimeError(f"{script}: the options of the front page's plots are not where they were")
    script.write_text(text)
