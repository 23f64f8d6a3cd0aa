"""The site in a real browser, without a network: it loads, shows every backend, draws, and logs no error."""

import functools
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BENCHMARK = "times.Construction.time_lstm_module"
BACKENDS = ("cpp", "cudnn", "vmap", "compile", "torchscript", "auto")

pytest.importorskip("asv", reason="asv is not installed: pip install -e '.[bench]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.skipif(not os.environ.get("RNN_BENCH_BROWSER"), reason="minutes long: make dashboard-check runs it"),
]


MISSING: list[str] = []
"""The paths that the browser requested and that are missing on the site."""


class Silent(SimpleHTTPRequestHandler):
    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        MISSING.append(f"{code} {self.path}")
        super().send_error(code, message, explain)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One quick benchmark of this commit in this environment, published and served."""
    folder = tmp_path_factory.mktemp("asv")
    conf = (HERE / "asv.conf.json").read_text()
    for name, at in (("repo", HERE.parent), ("benchmark_dir", HERE / "benchmarks")):
        old = {"repo": '"repo": ".."', "benchmark_dir": '"benchmark_dir": "benchmarks"'}[name]
        assert old in conf
        conf = conf.replace(old, f'"{name}": "{at}"')
    for name in ("share_base.py", "asv_offline.py"):
        shutil.copy(HERE / name, folder / name)
    shutil.copytree(HERE / "vendor", folder / "vendor")
    (folder / "asv.conf.json").write_text(conf.replace('"../.asv/', '"out/'))
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=HERE, text=True).strip()
    asv(folder, "machine", "--yes", "--machine", "test")
    which = ("-E", f"existing:{sys.executable}", "--set-commit-hash", head, "--machine", "test")
    asv(folder, "run", *which, "--quick", "--bench", BENCHMARK)
    asv(folder, "publish", "HEAD^!")
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=folder / "out" / "html")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def asv(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "asv", *arguments]
    home = {**os.environ, "HOME": str(folder), "MPLBACKEND": "agg"}
    done = subprocess.run(command, cwd=folder, env=home, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr


def browse(address: str, folder: Path) -> tuple[str, str]:
    """The page's DOM after its scripts have run, and the console's messages. No name except 127.0.0.1 resolves."""
    MISSING.clear()
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder / 'profile'}",
        "--host-resolver-rules=MAP * ~NOTFOUND,EXCLUDE 127.0.0.1",
        "--enable-logging=stderr",
        "--window-size=1400,4000",  # the front page loads only plots in view
        "--virtual-time-budget=20000",
        "--dump-dom",
        address,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def test_nothing_is_asked_of_the_network(site: str, tmp_path: Path) -> None:
    page, said = browse(f"{site}/#/", tmp_path)
    assert 'src="https://' not in page
    assert BENCHMARK in page
    assert not said
    assert not MISSING


def test_the_front_page_draws_a_plot_for_every_benchmark_that_was_measured(site: str, tmp_path: Path) -> None:
    page, said = browse(f"{site}/#/", tmp_path)
    assert page.count('class="benchmark-plot"') == page.count('class="flot-base"') == 1
    assert not MISSING, f"the front page requests {MISSING}"
    assert not said


def test_a_graph_draws_a_bar_for_every_backend(site: str, tmp_path: Path) -> None:
    page, said = browse(f"{site}/#{BENCHMARK}?x-axis=backend", tmp_path)
    assert 'class="flot-base"' in page
    missing = [name for name in BACKENDS if f">{name}</div>" not in page]
    assert not missing, f"no bar for {missing}"
    assert not said


def test_the_list_names_every_backend(site: str, tmp_path: Path) -> None:
    page, said = browse(f"{site}/#/summarylist", tmp_path)
    assert all(name in page for name in BACKENDS)
    assert not said
