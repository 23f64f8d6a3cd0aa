"""The registry: lazy listing, guarded loading, plugins that break only themselves.

Fake distributions are folders on ``sys.path`` with the files that an installer writes.
"""

import importlib
import re
import subprocess
import sys
import textwrap
import threading

import pytest
import rnn_backends
from rnn_backends import BrokenBackendError, ContractError, LSTMBackend, UnknownBackendError
from rnn_backends.registry import DISABLE_VARIABLE, Registry
from rnn_backends.unroll import unroll

BUILT_IN = ("compile", "cpp", "cudnn", "torchscript", "triton", "vmap")
IMPORTS = "from rnn_backends import LSTMBackend, hookimpl\nfrom rnn_backends.unroll import unroll\n"
GOOD = IMPORTS + "contract_version = 1\n@hookimpl\ndef lstm_backend():\n    return LSTMBackend('good', unroll)\n"


class Site:
    """A folder on ``sys.path``; ``install`` acts like an installer."""

    def __init__(self, path):
        self.path, self.modules = path, []

    def install(self, distribution, plugins, version="1.0", metadata=True):
        """``plugins``: entry-point name -> source of its module; each module has a unique name."""
        folder = self.path / f"{distribution}-{version}.dist-info"
        folder.mkdir()
        if metadata:
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        lines = ["[rnn_backends]"]
        for name, source in plugins.items():
            module = f"fake_{distribution}_{name}"
            (self.path / f"{module}.py").write_text(textwrap.dedent(source))
            self.modules.append(module)
            lines.append(f"{name} = {module}")
        (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")

    def registry(self):
        importlib.invalidate_caches()
        return Registry()


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    site = Site(tmp_path)
    yield site
    for module in site.modules:
        sys.modules.pop(module, None)


def reason_of(registry, name):
    return next(row.reason for row in registry.listings(load=True) if row.name == name)


def test_the_built_in_backends_are_installed_as_entry_points():
    assert set(BUILT_IN) <= set(rnn_backends.names())
    rows = {row.name: row for row in rnn_backends.list_backends()}
    assert all(rows[name].distribution.startswith("rnn-backends ") for name in BUILT_IN)


LAZY = """
import sys
sys.path.insert(0, {path!r})
import rnn_backends
def loaded():
    return sorted(m for m in sys.modules if m.startswith(("rnn_backends_plugins.", "fake_")))
assert {{"vmap", "good", "bad"}} <= set(rnn_backends.names()), rnn_backends.names()
rows = {{row.name: row for row in rnn_backends.list_backends()}}
assert loaded() == [], loaded()
assert not any(row.loaded or row.reason for row in rows.values()), rows
assert rnn_backends.get_backend("good").name == "good"
assert loaded() == ["fake_dist_good"], loaded()
rows = {{row.name: row for row in rnn_backends.list_backends()}}
assert rows["good"].loaded and not rows["vmap"].loaded and rows["bad"].reason is None
"""


def test_listing_imports_no_plugin_and_getting_one_loads_only_that_one(site):
    site.install("dist", {"good": GOOD, "bad": "raise ImportError('never seen')"})
    program = LAZY.format(path=str(site.path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_kernel_library", "ModuleNotFoundError: No module named 'no_such_kernel_library'"),
        ("raise RuntimeError('needs a newer driver\\nsecond line')", "RuntimeError: needs a newer driver"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("syntax error here", "SyntaxError: "),
        (GOOD.replace("return LSTMBackend('good', unroll)", "raise ImportError('no GPU')"), "ImportError: no GPU"),
        (GOOD.replace("contract_version = 1", "contract_version = 2"), "contract version 2; this rnn-backends has"),
        (GOOD.replace("contract_version = 1", "contract_version = 0"), "contract version 0; this rnn-backends has"),
        (
            GOOD.replace("contract_version = 1", ""),
            "has no contract_version; this rnn-backends has contract version 1",
        ),
        (GOOD.replace("@hookimpl", ""), "lstm_backend() must return one rnn_backends.LSTMBackend, but it is missing"),
        (GOOD.replace("lstm_backend", "lstm_backnd"), "unknown hook 'lstm_backnd'"),
        (GOOD.replace("lstm_backend()", "lstm_backend(device)"), "Argument(s) {'device'}"),
        (GOOD.replace("return LSTMBackend('good', unroll)", "return unroll"), "but it returned function"),
        (GOOD.replace("return LSTMBackend('good', unroll)", "return None"), "is missing or returned None"),
        (GOOD.replace("'good'", "'other'"), "its LSTMBackend is named 'other' and its entry point 'good'"),
    ],
)
def test_a_broken_plugin_hides_itself_only_and_shows_its_reason(site, source, reason):
    site.install("broken", {"good": source})
    registry = site.registry()
    assert reason in reason_of(registry, "good")
    assert "plugin of broken 1.0" in reason_of(registry, "good")
    with pytest.raises(BrokenBackendError, match="LSTM backend 'good' cannot be loaded") as caught:
        registry.get("good")
    assert reason in str(caught.value)
    assert caught.value.__cause__ is not None
    assert registry.get("vmap").name == "vmap"
    assert reason_of(registry, "vmap") is None


def test_a_version_mismatch_names_both_versions(site):
    site.install("old", {"good": GOOD.replace("contract_version = 1", "contract_version = 7")})
    reason = reason_of(site.registry(), "good")
    assert "contract version 7" in reason
    assert f"contract version {rnn_backends.CONTRACT_VERSION}" in reason


def test_a_broken_plugin_is_tried_once_until_refresh(site):
    tries = site.path / "tries"
    source = f"with open({str(tries)!r}, 'a') as tries:\n    tries.write('x')\nraise ImportError('half installed')"
    site.install("broken", {"good": source})
    registry = site.registry()
    for _ in range(2):
        assert "half installed" in reason_of(registry, "good")
    assert tries.read_text() == "x"
    (site.path / "fake_broken_good.py").write_text(GOOD)
    assert "half installed" in reason_of(registry, "good")
    registry.refresh()
    assert reason_of(registry, "good") is None


def test_two_plugins_of_one_name_are_an_error_that_names_both_distributions(site):
    site.install("first", {"good": GOOD})
    site.install("second", {"good": GOOD}, version="2.5")
    registry = site.registry()
    listed = next(row for row in registry.listings() if row.name == "good")  # known without loading
    for text in (listed.distribution, listed.reason, reason_of(registry, "good")):
        assert "first 1.0" in text
        assert "second 2.5" in text
    with pytest.raises(BrokenBackendError, match=r"two plugins .*: uninstall one"):
        registry.get("good")
    assert not any(module in sys.modules for module in site.modules)


def test_a_failed_plugin_leaves_nothing_behind_for_the_next(site):
    """Two entry points on one module: the one with the backend's name works, in any order of lookup."""
    site.install("dist", {"good": GOOD})
    (site.path / "dist-1.0.dist-info/entry_points.txt").write_text(
        "[rnn_backends]\nfirst = fake_dist_good\ngood = fake_dist_good\n"
    )
    registry = site.registry()
    assert "its LSTMBackend is named 'good'" in reason_of(registry, "first")
    assert registry.get("good").name == "good"


@pytest.mark.parametrize("name", ["auto", "torch", "torchrl"])
def test_reserved_names_cannot_be_installed_or_registered(site, name):
    with pytest.raises(ContractError, match="taken"):
        Registry().register(LSTMBackend(name, unroll))
    site.install("greedy", {name: GOOD.replace("'good'", repr(name))})
    registry = site.registry()
    assert name not in registry.names()
    assert f"the name {name!r} is reserved (plugin of greedy 1.0)" in reason_of(registry, name)


@pytest.mark.parametrize("metadata", [None, b"Name: \xff\xfe"])
def test_damaged_metadata_hides_nobody(site, metadata):
    site.install("nameless", {"good": GOOD}, metadata=False)
    if metadata:
        (site.path / "nameless-1.0.dist-info/METADATA").write_bytes(metadata)
    rows = {row.name: row for row in site.registry().listings(load=True)}
    assert rows["good"].distribution == "an unnamed distribution"
    assert rows["good"].reason is rows["vmap"].reason is None


def test_names_are_exact_and_the_nearest_is_suggested():
    for near, name in [("Vmap", "vmap"), ("CUDNN", "cudnn"), ("torch_script", "torchscript"), ("torch-rl", "torchrl")]:
        with pytest.raises(UnknownBackendError, match=f"unknown LSTM backend '{near}'.*Did you mean '{name}'"):
            rnn_backends.get_backend(near)
    with pytest.raises(UnknownBackendError) as caught:
        rnn_backends.get_backend("zzz")
    assert "Did you mean" not in str(caught.value)
    assert all(name in str(caught.value) for name in BUILT_IN)
    assert caught.value.installed == rnn_backends.names()


def test_underscore_and_hyphen_are_different_names(site):
    site.install("dist", {"my_fast": GOOD.replace("'good'", "'my_fast'")})
    registry = site.registry()
    assert registry.get("my_fast").name == "my_fast"
    with pytest.raises(UnknownBackendError, match="Did you mean 'my_fast'"):
        registry.get("my-fast")


def test_aliases_are_the_backends_they_name(monkeypatch):
    assert rnn_backends.get_backend("torchrl") is rnn_backends.get_backend("vmap")
    monkeypatch.setenv(DISABLE_VARIABLE, "torch")
    with pytest.raises(UnknownBackendError, match=f"'cudnn' .'torch' is its alias, disabled by {DISABLE_VARIABLE}"):
        rnn_backends.get_backend("torch")
    assert "cudnn" not in rnn_backends.names()


def test_disabled_plugins_are_listed_with_that_reason_and_not_imported(site, monkeypatch):
    site.install("dist", {"good": GOOD})
    monkeypatch.setenv(DISABLE_VARIABLE, "good, compile")
    registry = site.registry()
    assert {"good", "compile"}.isdisjoint(registry.names())
    assert reason_of(registry, "good") == f"disabled by {DISABLE_VARIABLE}"
    with pytest.raises(UnknownBackendError, match=f"'good' .disabled by {DISABLE_VARIABLE}"):
        registry.get("good")
    assert "fake_dist_good" not in sys.modules
    monkeypatch.delenv(DISABLE_VARIABLE)
    assert registry.get("good").name == "good"


def test_disabling_what_is_not_installed_warns(monkeypatch):
    for given, seen in [
        ("vmapp", "'vmapp' (did you mean 'vmap'?)"),
        ("VMAP", "'VMAP' (did you mean 'vmap'?)"),
        ("surely nothing", "'surely nothing'. It takes names separated by commas, of c"),
    ]:
        monkeypatch.setenv(DISABLE_VARIABLE, given)
        with pytest.warns(UserWarning, match=re.escape(f"{DISABLE_VARIABLE} names no installed backend: {seen}")):
            rnn_backends.names()


def test_register_and_unregister():
    mine = LSTMBackend("mine", unroll)
    registry = Registry()
    assert registry.register(mine) is mine
    assert registry.get("mine") is mine
    assert "mine" in registry.names()
    row = next(row for row in registry.listings() if row.name == "mine")
    assert (row.distribution, row.loaded, row.reason) == ("this process", True, None)
    for taken in (mine, LSTMBackend("vmap", unroll)):
        with pytest.raises(ContractError, match="taken"):
            registry.register(taken)
    with pytest.raises(ContractError, match=r"takes a rnn_backends\.LSTMBackend, got function"):
        registry.register(unroll)
    registry.refresh()  # forgets plugins, not what this process added
    assert registry.get("mine") is mine
    registry.unregister("mine")
    assert "mine" not in registry.names()
    for name in ("mine", "vmap"):
        with pytest.raises(UnknownBackendError, match="takes what register"):
            registry.unregister(name)


def test_disabling_is_for_plugins_and_not_for_what_the_program_registers(monkeypatch):
    registry = Registry()
    registry.register(LSTMBackend("mine", unroll))
    monkeypatch.setenv(DISABLE_VARIABLE, "vmap")
    assert "mine" in registry.names()
    assert registry.get("mine").name == "mine"


def test_threads_that_ask_at_once_build_once(site):
    slow = GOOD.replace("    return", "    import time; built.append(1); time.sleep(0.2)\n    return") + "built = []\n"
    site.install("dist", {"good": slow})
    registry = site.registry()
    got = []
    threads = [threading.Thread(target=lambda: got.append(registry.get("good"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4
    assert all(backend is got[0] for backend in got)
    assert sys.modules["fake_dist_good"].built == [1]


def test_refresh_finds_what_was_installed_meanwhile(site):
    try:
        assert "good" not in rnn_backends.names()
        site.install("dist", {"good": GOOD})
        rnn_backends.refresh()
        assert "good" in rnn_backends.names()
        assert rnn_backends.LSTM(2, 3, lstm_backend="good").lstm_backend == "good"
    finally:
        sys.path.remove(str(site.path))
        rnn_backends.refresh()
    assert "good" not in rnn_backends.names()


def test_refresh_drops_the_import_caches(monkeypatch):
    """Import caches use the file system's clock, so a module written a moment ago may be missed."""
    dropped = []
    monkeypatch.setattr(importlib, "invalidate_caches", lambda: dropped.append(True))
    registry = Registry()
    assert not dropped  # not at import, where it would cost every program
    registry.refresh()
    assert dropped


def test_a_name_is_looked_up_for_a_kind_of_cell():
    assert rnn_backends.get_backend("vmap", cell="lstm") is rnn_backends.get_backend("vmap")
    with pytest.raises(rnn_backends.InputError, match="backends for the cells lstm, and none for 'gru'"):
        rnn_backends.get_backend("vmap", cell="gru")
