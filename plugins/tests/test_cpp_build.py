"""The kernel of ``cpp``: compiled, stored, found again, verified and refused. Each test breaks the real thing. The
compilers here are scripts that copy an already compiled kernel, so that a test takes less than a second.
"""

import hashlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from rnn_backends import LSTM, LSTMSpec, UnsupportedError, choose, explain, refresh
from rnn_backends_plugins import cpp as plugin
from rnn_backends_plugins.cpp import build, compiler, kernel, lock, trust

CPU = torch.device("cpu")
NOBODY = 65534

# If there is a compiler and it fails, everything here fails: wrong C++ must not look like a missing compiler.
pytestmark = pytest.mark.skipif(build.unable() is not None, reason=str(build.unable()))

COPY = """#!/bin/sh
echo "$$ $*" >> {log}
{before}
while [ "$1" != -o ]; do shift; done
cp {there} "$2"
{after}
"""


def forget() -> None:
    refresh()  # forgets the preparation
    for known in (build._built, kernel.kernel):
        known.cache_clear()


class Place:
    """A new cache folder and folder for temporary files, and a compiler that counts its calls."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, there: Path) -> None:
        self.folder, self.patch, self.there, self.log = folder, monkeypatch, there, folder / "calls"
        self.cache, self.temporary = folder / "cache" / "rnn_backends", folder / "tmp"
        self.temporary.mkdir()
        self.at(folder / "cache")
        self.compiler()

    def at(self, cache: Path) -> None:
        self.cache = cache / "rnn_backends"
        self.patch.setenv("XDG_CACHE_HOME", str(cache))
        self.patch.setenv("TMPDIR", str(self.temporary))
        self.patch.setattr(tempfile, "tempdir", str(self.temporary))
        forget()

    def compiler(self, before: str = "", after: str = "", text: str = COPY) -> Path:
        """Use this script as the compiler."""
        script = self.folder / "c++"
        script.write_text(text.format(log=self.log, there=self.there, before=before, after=after))
        script.chmod(0o755)
        self.patch.setenv("CXX", str(script))
        forget()
        return script

    def calls(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0

    def kept(self) -> Path:
        """The only kernel in the cache or in the fallback folder."""
        return next(iter([*self.cache.glob("lstm-*.so"), *self.temporary.glob("rnn_backends-*/lstm-*.so")]))

    def load(self) -> Path:
        """Load the kernel as a new process does; return the loaded file."""
        forget()
        assert build.why_not() is None
        return Path(build.library()._name)

    def other_process(self, program: str = "", *wrapped: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [*wrapped, sys.executable, "-c", program or LOADS]
        environment = {**os.environ, **variables}
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)


LOADS = """
import torch
from rnn_backends import LSTM
from rnn_backends_plugins.cpp import build
print(build.library()._name)
assert LSTM(3, 4, lstm_backend="cpp")(torch.ones(2, 1, 3))[0].isfinite().all()
"""


@pytest.fixture(scope="session")
def there(tmp_path_factory) -> Path:
    """A compiled kernel."""
    copy = tmp_path_factory.mktemp("there") / "there.so"
    shutil.copy(build.library()._name, copy)
    return copy


@pytest.fixture
def place(tmp_path, monkeypatch, there):
    yield Place(tmp_path, monkeypatch, there)
    forget()


@pytest.fixture
def mount(tmp_path):
    """``mount(options)``: a small file system."""
    mounted: list[Path] = []

    def at(options: str) -> Path:
        folder = tmp_path / f"mounted{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    try:
        yield at
    finally:
        for folder in mounted:
            subprocess.run(["umount", "-l", folder], check=True)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can be another user")


# Compiled once and stored


def test_it_is_compiled_once_and_kept(place):
    first = place.load()
    assert first.parent == place.cache
    assert place.load() == first
    assert place.calls() == 1


def test_another_process_finds_what_is_kept(place):
    first = place.load()
    done = place.other_process()
    assert done.stdout.strip() == str(first), done.stderr
    assert place.calls() == 1


def test_compiled_for_real_it_works_and_nothing_else_is_left(place, monkeypatch, case, run):
    monkeypatch.delenv("CXX")
    file = place.load()
    args = case(P=2)
    for found, wanted in zip(run("cpp", args)[0], run("vmap", args)[0], strict=True):
        torch.testing.assert_close(found, wanted)
    assert {path.name for path in place.cache.iterdir()} == {file.name, f"{file.name}.sha256", "lstm.lock"}


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o002])
def test_folders_are_this_users_and_the_kernel_is_readable(place, mask):
    before = os.umask(mask)
    try:
        file = place.load()
    finally:
        os.umask(before)
    assert [mode(folder) for folder in (place.cache.parent, place.cache)] == [0o700, 0o700]
    assert [mode(file), mode(file.with_name(f"{file.name}.sha256"))] == [0o644, 0o644]


def test_the_digest_is_as_sha256sum_writes_it(place):
    file = place.load()
    words = file.with_name(f"{file.name}.sha256").read_text().split()
    assert words == [hashlib.sha256(file.read_bytes()).hexdigest(), file.name]


def test_the_name_changes_with_the_sources_the_flags_and_the_processor(place, monkeypatch, tmp_path):
    names = {build._machine(), build._machine()}
    assert len(names) == 1
    copies = tmp_path / "copies"
    copies.mkdir()
    for file in build.SOURCES.glob("*.[ch]*"):
        shutil.copy(file, copies)
    (copies / "products.h").write_text("// another")
    with monkeypatch.context() as other:
        other.setattr(build, "SOURCES", copies)
        names.add(build._machine())
    with monkeypatch.context() as other:
        other.setattr(build, "FLAGS", (*build.FLAGS, "-DANOTHER"))
        names.add(build._machine())
    with monkeypatch.context() as other:
        other.setattr(build, "_processor", lambda: "another")
        names.add(build._machine())
    monkeypatch.setattr(build, "_openmp", lambda: ["libgomp-other.so.1"])
    assert len({*names, build._machine()}) == 5


def test_another_compiler_compiles_its_own(place):
    first = place.load()
    place.compiler(before="true")
    assert place.load() != first
    assert place.calls() == 2


def test_many_processes_at_once_compile_once(place):
    place.compiler(before="sleep 1")
    programs = [
        subprocess.Popen([sys.executable, "-c", LOADS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = [program.communicate(timeout=200) for program in programs]
    assert {program.returncode for program in programs} == {0}, said
    assert len({out for out, _ in said}) == 1
    assert place.calls() == 1
    assert sum("compiling" in errors for _, errors in said) == 1


def test_threads_at_once_compile_once(place):
    place.compiler(before="sleep 0.3")
    found = []
    threads = [threading.Thread(target=lambda: found.append(build.library())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(library) for library in found}) == 1
    assert place.calls() == 1


# Files that must not be loaded


def damages():
    yield "empty", lambda file: os.truncate(file, 0)
    yield "truncated", lambda file: os.truncate(file, 100_000)
    yield "longer", lambda file: file.write_bytes(file.read_bytes() + b"\0")
    yield "a bit", lambda file: file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    yield "text", lambda file: file.write_text("not a library")
    yield "no digest", lambda file: file.with_name(f"{file.name}.sha256").unlink()
    yield "digest of zeros", lambda file: file.with_name(f"{file.name}.sha256").write_text(f"{'0' * 64}  {file.name}\n")
    yield "digest is noise", lambda file: file.with_name(f"{file.name}.sha256").write_bytes(b"\xff\xfe\0")
    yield "other name", lambda file: file.with_name(f"{file.name}.sha256").write_text(build._digest(file, "lstm-x.so"))
    yield "half", lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    yield "hole", lambda file: (os.truncate(file, 9000), os.truncate(file, 250_000))
    yield "loop", lambda file: (file.unlink(), file.symlink_to(file))
    yield "dangling", lambda file: (file.unlink(), file.symlink_to("/nowhere/lstm.so"))
    yield "writable", lambda file: file.chmod(0o666)
    yield "group", lambda file: file.chmod(0o664)


@pytest.mark.parametrize(("name", "damage"), [pytest.param(*pair, id=pair[0]) for pair in damages()])
def test_a_damaged_kernel_is_compiled_anew_and_that_is_said(place, caplog, name, damage):
    file = place.load()
    shutil.copy(file, place.folder / "copy")  # another inode: the file that this process has loaded stays intact
    os.replace(place.folder / "copy", file)
    damage(file)
    caplog.clear()
    assert place.load() == file
    assert place.calls() == 2
    assert f"{file} is compiled again: " in caplog.text
    caplog.clear()
    assert place.load() == file
    assert place.calls() == 2
    assert "is kept in" not in caplog.text


def test_in_a_process_of_its_own_a_truncated_kernel_ends_nothing(place):
    file = Path(place.other_process().stdout.strip())
    os.truncate(file, 100_000)
    done = place.other_process()
    assert done.returncode == 0, done.stderr
    assert "it is damaged" in done.stderr


def test_a_library_that_is_no_kernel_is_refused(place):
    shutil.copy(next(iter(build._openmp()), "/lib/x86_64-linux-gnu/libc.so.6"), place.folder / "other.so")
    place.there = place.folder / "other.so"
    place.compiler()
    assert "it is not a kernel: it lacks the function rnn_lanes" in build.why_not()
    assert not list(place.cache.glob("lstm-*.so*"))


@root
@pytest.mark.parametrize("which", ["kernel", "digest", "folder", "folder above"])
def test_what_belongs_to_another_user_is_not_loaded(place, caplog, which):
    file = place.load()
    paths = {
        "kernel": file,
        "digest": file.with_name(f"{file.name}.sha256"),
        "folder": place.cache,
        "folder above": place.cache.parent,
    }
    os.chown(paths[which], NOBODY, NOBODY)
    found = place.load()
    assert place.calls() == 2
    assert f"{paths[which]} belongs to another user (uid {NOBODY})" in caplog.text
    assert (found == file) == (which in {"kernel", "digest"})
    assert found.stat().st_uid == os.geteuid()


@pytest.mark.parametrize("bits", [0o777, 0o775, 0o1777])
def test_nothing_is_kept_under_a_folder_that_others_write(place, caplog, bits):
    place.load()
    place.cache.parent.chmod(bits)
    found = place.load()
    sticky = bool(bits & 0o1000)  # with the sticky bit nobody can replace another user's folder
    assert place.calls() == (1 if sticky else 2)
    assert (found.parent == place.cache) == sticky
    assert ("can be written by other users" in caplog.text) != sticky


@pytest.mark.parametrize("bits", [0o777, 0o775, 0o1777])
def test_its_own_folder_is_shut_to_others(place, bits):
    place.load()
    place.cache.chmod(bits)
    assert place.load().parent == place.cache
    assert mode(place.cache) == bits & 0o755


@root
@pytest.mark.parametrize("plant", ["folder", "link to a folder", "kernel"])
def test_nothing_that_another_user_planted_is_loaded(place, caplog, plant):
    shared, evil = place.folder / "shared", place.folder / "evil"
    shared.mkdir()
    shared.chmod(0o1777)
    place.at(shared)
    wanted = place.cache / build._name()
    planted = place.cache
    if plant == "link to a folder":
        planted = evil
        place.cache.symlink_to(evil)
        os.lchown(place.cache, NOBODY, NOBODY)
    planted.mkdir()
    planted.chmod(0o777)
    target = planted / wanted.name
    shutil.copy(place.there, target)
    target.with_name(f"{target.name}.sha256").write_text(build._digest(target))
    for path in planted.iterdir():
        os.chown(path, NOBODY, NOBODY)
    if plant != "kernel":
        os.chown(planted, NOBODY, NOBODY)
    found = place.load()
    assert place.calls() == 1
    assert found.stat().st_uid == 0
    assert (found.parent == place.cache) == (plant == "kernel")
    assert "another user" in caplog.text


def test_the_cache_may_be_a_link_of_this_user(place):
    elsewhere = place.folder / "elsewhere"
    elsewhere.mkdir()
    place.cache.parent.mkdir()
    place.cache.symlink_to(elsewhere)
    assert place.load().parent == place.cache
    assert list(elsewhere.glob("lstm-*.so"))


@root
def test_a_planted_folder_among_the_temporary_files_is_not_used(place):
    (place.folder / "file").touch()
    place.at(place.folder / "file")
    place.temporary.chmod(0o1777)
    planted = list(build._folders())[1]
    planted.mkdir()
    os.chown(planted, NOBODY, NOBODY)
    found = place.load()
    assert not found.exists()
    assert planted not in found.parents
    assert not list(planted.iterdir())


@root
def test_another_user_gets_a_kernel_of_its_own_and_once(place):
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("there is no setpriv")
    place.load()
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # pytest's folders are the caller's alone
        shared = Path(name)
        shared.chmod(0o1777)
        copies = {path: shared / path.name for path in (place.there, place.folder / "c++")}
        for path, copy in copies.items():
            text = path.read_bytes().replace(str(place.there).encode(), str(shared / place.there.name).encode())
            copy.write_bytes(text.replace(str(place.log).encode(), str(shared / "calls").encode()))
            copy.chmod(0o755)
        (shared / "calls").touch()
        (shared / "calls").chmod(0o666)
        as_nobody = [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        if subprocess.run([*as_nobody, sys.executable, "-c", ""], capture_output=True, check=False).returncode:
            pytest.skip("another user cannot run this Python")
        mine = place.cache.parent
        os.rename(mine, shared / "cache")
        for path in (shared / "cache", shared / "cache" / "rnn_backends"):
            path.chmod(0o755)
        for cache, compiled in ((shared / "cache", 0), (shared / "cache2", 1), (shared / "cache2", 1)):
            variables = {"CXX": str(copies[place.folder / "c++"]), "TMPDIR": name, "XDG_CACHE_HOME": str(cache)}
            if not compiled:  # root's, as in an image, and there is no compiler
                variables["CXX"] = "/nowhere/c++"
            done = place.other_process("", *as_nobody, **variables)
            assert done.returncode == 0, done.stderr
            assert len((shared / "calls").read_text().splitlines()) == compiled


# Folders that cannot hold the kernel


def unwritable_file(place, mount):
    (place.folder / "file").touch()
    return place.folder / "file", "Not a directory"


def read_only(place, mount):
    folder = mount("size=1m")
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    return folder, "Read-only file system"


def full(place, mount):
    folder = mount("size=512k")
    with pytest.raises(OSError, match="No space left"):
        (folder / "fill").write_bytes(bytes(1 << 20))
    return folder, "No space left on device"


def nearly_full(place, mount):
    return mount("size=200k"), "No space left on device"


def noexec(place, mount):
    return mount("size=4m,noexec"), "mounted noexec"


@pytest.mark.parametrize("how", [unwritable_file, read_only, full, nearly_full, noexec])
def test_a_cache_that_cannot_hold_it_is_said_once_and_no_process_compiles_anew(place, mount, caplog, how):
    cache, why = how(place, mount)
    place.at(cache)
    found = place.load()
    assert place.temporary in found.parents
    assert mode(found.parent) == 0o700
    assert caplog.text.count("cannot hold it") == 1
    assert why in caplog.text
    caplog.clear()
    assert place.load() == found
    assert "is kept in" not in caplog.text
    done = place.other_process()
    assert (done.stdout.strip(), done.stderr) == (str(found), "")
    assert place.calls() == 1


@pytest.mark.parametrize("how", [noexec, read_only, nearly_full])
def test_where_nothing_holds_it_the_failure_has_its_cause_and_is_remembered(place, mount, how):
    cache, why = how(place, mount)
    place.temporary = mount("size=4m,noexec") if how is noexec else cache
    place.at(cache)
    for _ in range(3):
        reason = build.why_not()
        assert "no folder can hold its kernel" in reason
        assert why in reason
        assert build.unable() == reason
        assert LSTM(2, 3).lstm_backend != "cpp"
    assert place.calls() <= 1


def test_leftovers_of_killed_compilations_are_removed(place):
    place.compiler(before="echo started; sleep 60")
    program = subprocess.Popen([sys.executable, "-c", LOADS], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: list(place.cache.glob("building-*")))
        wait_for(lambda: place.calls())
    finally:
        program.kill()
        program.wait()
        for line in place.log.read_text().splitlines():
            os.killpg(int(line.split()[0]), signal.SIGKILL)
    assert list(place.cache.glob("building-*"))
    place.compiler()
    file = place.load()
    assert {path.name for path in place.cache.iterdir()} == {file.name, f"{file.name}.sha256", "lstm.lock"}


def wait_for(condition, seconds: float = 60) -> None:
    event = threading.Event()
    for _ in range(int(seconds * 20)):
        if condition():
            return
        event.wait(0.05)
    raise AssertionError("it does not come")


# The lock


@contextmanager
def holder(path: Path):
    """Another process that holds the lock."""
    program = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); "
        "time.sleep(100)"
    )
    other = subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        yield other
    finally:
        other.kill()
        other.communicate()


def test_a_lock_of_a_dead_process_is_taken(tmp_path):
    path = tmp_path / "lock"
    with holder(path) as other:
        other.kill()
        other.wait()
        with lock.locked(path, 100, lambda _: None) as mine:
            assert mine.held


def test_a_lock_that_is_never_given_back_is_waited_for_up_to_a_limit(tmp_path):
    path, messages = tmp_path / "lock", []
    with holder(path), lock.locked(path, 0.3, messages.append) as mine:
        assert (mine.held, mine.waited) == (False, True)
        assert mine.note() == ""
    assert messages


def test_a_lock_is_given_back_though_a_fork_has_it(tmp_path):
    path = tmp_path / "lock"
    with lock.locked(path, 1, lambda _: None):
        child = os.fork()
        if not child:
            threading.Event().wait(30)
            os._exit(0)
    try:
        with lock.locked(path, 1, lambda _: None) as mine:
            assert mine.held
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_lock_does_not_follow_a_link(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="lock"), lock.locked(tmp_path / "lock", 1, lambda _: None):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_those_who_wait_learn_of_the_failure(place):
    place.compiler(before="sleep 2; echo 'x.cpp:1: error: broken' >&2; exit 1")
    programs = [
        subprocess.Popen([sys.executable, "-c", LOADS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [program.communicate(timeout=200)[1] for program in programs]
    assert all("x.cpp:1: error: broken" in errors for errors in said)
    assert place.calls() < 3


# Owner and mode


@pytest.mark.parametrize(
    ("bits", "kind", "trusted"),
    [
        (0o755, "folder", True),
        (0o1777, "folder", False),
        (0o775, "folder", False),
        (0o644, "file", True),
        (0o664, "file", False),
        (0o646, "file", False),
        (0o1666, "file", False),
        (0o400, "file", True),
    ],
)
def test_trust_goes_by_owner_and_mode(tmp_path, bits, kind, trusted):
    path = tmp_path / "it"
    path.mkdir() if kind == "folder" else path.touch()
    path.chmod(bits)
    assert (trust.why_untrusted(path) is None) == trusted


@pytest.mark.parametrize("link", ["relative", "absolute", "up", "chain"])
def test_trust_follows_links(tmp_path, link):
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "it").touch()
    (tmp_path / "to").symlink_to({"relative": "open", "up": f"../{tmp_path.name}/open"}.get(link, tmp_path / "open"))
    path = tmp_path / "to" / "it"
    if link == "chain":
        (tmp_path / "again").symlink_to("to")
        path = tmp_path / "again" / "it"
    assert trust.why_untrusted(path) is None
    (tmp_path / "open").chmod(0o777)
    assert "can be written by other users (mode 0777)" in trust.why_untrusted(path)


def test_trust_does_not_go_round_for_ever(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert "symbolic links" in trust.why_untrusted(tmp_path / "a" / "x")


def test_what_does_not_exist_is_trusted_where_its_folders_are(tmp_path):
    assert trust.why_untrusted(tmp_path / "no" / "such") is None
    tmp_path.chmod(0o777)
    assert trust.why_untrusted(tmp_path / "no" / "such") is not None


# The compiler


def declined(reason: str) -> None:
    """Every listing has the reason, and only a request by name raises."""
    spec = LSTMSpec(2, 3)
    with pytest.raises(UnsupportedError, match=re.escape(reason)):
        LSTM(2, 3, lstm_backend="cpp")
    assert reason in (plugin.rejects(spec, CPU, torch.float32) or plugin.prepare(spec, CPU, torch.float32))
    verdict = next(v for v in explain(spec, CPU) if v.name == "cpp")
    assert not verdict.accepted
    assert reason in verdict.reason
    assert LSTM(2, 3, lstm_backend="auto").lstm_backend != "cpp"


def test_without_a_compiler_it_says_so(place, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    forget()
    declined("needs a C++ compiler, and 'g++' is not on the path (CXX names another)")


def test_auto_says_once_what_it_takes_without_a_compiler_and_why(place, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    forget()
    monkeypatch.setattr(choose, "_reported", set())
    for hidden in (32, 64, 64):
        assert LSTM(2, hidden).lstm_backend == "cudnn"
    assert [record.getMessage() for record in caplog.records] == [
        "lstm_backend='auto' takes 'cudnn': 'cpp' is faster, but its kernel needs a C++ compiler, "
        "and '/nowhere/c++' is not on the path (CXX names another)"
    ]


def test_auto_says_nothing_of_backends_that_were_never_for_this_device(place, monkeypatch, caplog):
    monkeypatch.setattr(choose, "_reported", set())
    LSTM(2, 64, device="meta")
    assert "is kept in" not in caplog.text


@pytest.mark.parametrize("given", ["/nowhere/c++", "/nowhere/c++ -m64"])
def test_a_compiler_that_is_not_there_is_named(place, monkeypatch, given):
    monkeypatch.setenv("CXX", given)
    declined("needs a C++ compiler, and '/nowhere/c++' is not on the path")


def test_quotes_that_do_not_match_are_a_reason(place, monkeypatch):
    monkeypatch.setenv("CXX", "g++ 'x")
    declined('CXX="g++ \'x" cannot be read: No closing quotation')


@pytest.mark.parametrize("given", ["{} -DX='a b'", "env Y=1 {}", "  {}  "])
def test_the_compiler_may_have_arguments(place, monkeypatch, given):
    script = place.compiler()
    monkeypatch.setenv("CXX", given.format(script))
    place.load()
    assert place.calls() == 1
    assert ("-DX=a b" in place.log.read_text()) == ("-DX" in given)


def test_the_compilers_path_may_have_blanks(place, monkeypatch):
    there = place.folder / "two words"
    place.compiler().rename(there)
    monkeypatch.setenv("CXX", str(there))
    place.load()
    assert place.calls() == 1


@pytest.mark.parametrize("found", ["no compiler", "another name", "in the fallback"])
def test_a_kept_kernel_serves_where_there_is_no_compiler_any_more(place, monkeypatch, found):
    if found == "in the fallback":
        (place.folder / "file").touch()
        place.at(place.folder / "file")
    file = place.load()
    monkeypatch.setenv("CXX", "/nowhere/c++")
    if found == "no compiler":
        monkeypatch.delenv("CXX")
        monkeypatch.setenv("PATH", "")
    forget()
    assert build.unable() is None
    assert place.load() == file
    done = place.other_process()
    assert done.stdout.strip() == str(file), done.stderr
    assert place.calls() == 1


def test_a_damaged_kernel_without_a_compiler_is_told_of(place, monkeypatch):
    file = place.load()
    file.with_name(f"{file.name}.sha256").write_text("another")
    monkeypatch.setenv("CXX", "/nowhere/c++")
    forget()
    declined("is kept, but it is damaged")


FAILS = """#!/bin/sh
echo "$$" >> {log}
{before}
"""


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        (
            "echo 'In file x' >&2; echo 'l.cpp:1: error: no room' >&2; exit 1",
            "says 'l.cpp:1: error: no room'",
        ),
        ("echo 'ld: write: No space left' >&2; echo 'error: ld' >&2; exit 1", "says 'ld: write: No space left'"),
        ("exit 3", "says nothing, with exit status 3"),
        ("kill -9 $$", "was ended by signal 9 (Killed)"),
        ("exit 0", "succeeded and wrote nothing"),
        ('while [ "$1" != -o ]; do shift; done; : > "$2"', "succeeded and wrote nothing"),
        (
            'while [ "$1" != -o ]; do shift; done; echo text > "$2"',
            "was compiled and cannot be used: it cannot be loaded",
        ),
        ("printf '\\377\\376 error' >&2; exit 1", "error"),
    ],
)
def test_what_went_wrong_with_the_compiler_is_the_reason_and_is_remembered(place, does, reason):
    place.compiler(before=does, text=FAILS)
    for _ in range(3):
        declined(reason)
    assert place.calls() == 1
    assert {path.name for path in place.cache.iterdir()} == {"lstm.lock"}


def test_a_compiler_that_cannot_be_run(place):
    place.compiler().write_bytes(b"\x7fELF of another processor")
    forget()
    declined("its kernel cannot be compiled: [Errno 8]")


def test_a_compiler_that_hangs_is_ended_with_all_it_started(place, monkeypatch):
    monkeypatch.setenv("RNN_BACKENDS_COMPILE_SECONDS", "0.5")
    place.compiler(before=f"sleep 300 & echo $! >> {place.folder}/child; wait", text=FAILS)
    declined("took longer than 0.5 s (RNN_BACKENDS_COMPILE_SECONDS sets the limit)")
    assert place.calls() == 1
    child = int((place.folder / "child").read_text())
    wait_for(lambda: not Path(f"/proc/{child}").exists() or " Z " in Path(f"/proc/{child}/stat").read_text())


def test_what_a_signal_handler_raises_while_it_compiles_is_no_fault_of_the_folder(place, caplog):
    """A TimeoutError is an OSError, but this one is not the system's."""
    place.compiler(before="sleep 5")

    def too_late(*_: object) -> None:
        raise TimeoutError("the caller's limit")

    before = signal.signal(signal.SIGALRM, too_late)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(TimeoutError, match="the caller's limit"):
            build.why_not()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert place.calls() == 1
    assert "is kept in" not in caplog.text
    place.compiler()
    assert place.load().parent == place.cache


@pytest.mark.parametrize("given", ["soon", "0", "-1", "nan", "inf", "1e999", "90 s"])
def test_a_time_limit_that_is_no_number_of_seconds_is_the_reason_and_nothing_is_run(place, monkeypatch, given):
    monkeypatch.setenv("RNN_BACKENDS_COMPILE_SECONDS", given)
    place.compiler(text=FAILS)
    declined(f"RNN_BACKENDS_COMPILE_SECONDS={given!r} is no number of seconds above zero")
    assert place.calls() == 0


@pytest.mark.parametrize(("given", "seconds"), [(None, 90.0), ("", 90.0), (" ", 90.0), ("0.5", 0.5), (" 600 ", 600.0)])
def test_the_time_limit_is_what_the_environment_says(monkeypatch, given, seconds):
    monkeypatch.delenv("RNN_BACKENDS_COMPILE_SECONDS", raising=False)
    if given is not None:
        monkeypatch.setenv("RNN_BACKENDS_COMPILE_SECONDS", given)
    assert compiler.time_limit() == seconds


def test_a_compiler_that_leaves_something_running_is_not_waited_for(place):
    place.compiler(after=f"sleep 300 & echo $! >> {place.folder}/child; exit 0")
    place.load()
    assert place.calls() == 1
    os.kill(int((place.folder / "child").read_text()), signal.SIGKILL)


def test_compiling_is_said_in_one_line_and_not_on_stdout(place):
    done = place.other_process()
    assert done.stdout.splitlines() == [str(place.kept())]
    assert re.fullmatch(r"rnn-backends: compiling the LSTM kernel .*\n", done.stderr)


def test_on_a_terminal_the_line_has_the_time_that_has_passed(place):
    script = shutil.which("script")
    if script is None:
        pytest.skip("there is no script(1)")
    place.compiler(before="sleep 1.2")
    command = [script, "-qec", f"{sys.executable} -c 'from rnn_backends_plugins.cpp import build; build.library()'"]
    done = subprocess.run([*command, "/dev/null"], capture_output=True, check=True, timeout=100)
    said = done.stdout.decode().replace("\r\n", "\n")
    assert said.count("\n") == 1
    assert re.search(r"\rrnn-backends: compiling the LSTM kernel .* 1 s\n$", said)


def test_explain_says_whether_the_kernel_is_on_disk_and_compiles_nothing(place):
    def told():
        return next(v for v in explain(LSTMSpec(3, 4)) if v.name == "cpp").preparation

    assert "not on disk for this machine, and its first use compiles it" in told()
    assert place.calls() == 0
    file = place.load()
    assert told() is None
    forget()
    assert told() == f"its kernel is on disk ({file}), and its first use loads it"
    file.write_bytes(b"damaged")
    assert "not on disk" in told()
    assert place.calls() == 1
