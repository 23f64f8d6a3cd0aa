"""An asv plugin: after ``asv publish``, the site holds everything it needs, so that it works without a network.

asv's page asks ten files of content networks; ``vendor/`` has them, from asv's own sources (vendor/README.md).
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
ASKS = re.compile(r'<(script|link)\b[^>]*\b(?:src|href)="https://[^"]+/([^"/]+\.(?:js|css))"[^>]*>')


def local_tag(found: re.Match[str]) -> str:
    """The tag that takes the vendored file. A KeyError: this asv asks for a file that ``vendor/`` does not have."""
    file = f"vendor/{VENDORED[found[2]]}"
    if found[1] == "script":
        return f'<script src="{file}" onerror="js_load_failure()">'
    return f'<link rel="stylesheet" href="{file}">'


class Offline(OutputPublisher):
    """Runs last."""

    name = "offline"
    order = 99

    @classmethod
    def publish(cls, conf, repo, benchmarks, graphs, revisions):
        """Copy the vendored files beside the page and let it ask for those."""
        site = Path(conf.html_dir)
        shutil.copytree(HERE / "vendor", site / "vendor", dirs_exist_ok=True)
        page = site / "index.html"
        text, asked = ASKS.subn(local_tag, page.read_text(encoding="utf-8"))
        page.write_text(text, encoding="utf-8")
        log.info(f"{asked} files are the site's own now")
