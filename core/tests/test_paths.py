"""Whole files: their contents after a write that succeeds, fails or is interrupted."""

import os
import stat
import sys
import threading

import pytest
from rnn_backends import paths
from rnn_backends.paths import write_whole


def test_a_new_file_has_the_text_and_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    write_whole(tmp_path / "new", "één\nline\n")
    assert (tmp_path / "new").read_bytes() == "één\nline\n".encode()
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert sorted(os.listdir(tmp_path)) == ["new", "plain"]


def test_an_existing_file_is_replaced_and_keeps_its_permissions(tmp_path):
    file = tmp_path / "report"
    file.write_text("a longer text than the new one")
    file.chmod(0o640)
    write_whole(file, "new")
    assert file.read_text() == "new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_a_symbolic_link_stays_and_its_target_is_written(tmp_path):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    write_whole(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, error):
    file = tmp_path / "report"
    file.write_text("old")

    def fail(self, target):
        raise error

    monkeypatch.setattr(paths.Path, "replace", fail)
    with pytest.raises(type(error)):
        write_whole(file, "new")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["report"]


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "no" / "file", "text")


@pytest.mark.skipif(sys.platform == "win32", reason="there is no /dev/null")
def test_a_device_is_written_to_and_not_replaced(tmp_path):
    write_whole(paths.Path("/dev/null"), "text")
    assert paths.Path("/dev/null").is_char_device()


def test_writers_at_the_same_time_leave_one_whole_text(tmp_path):
    file, texts = tmp_path / "table", [str(k) * 200_000 for k in range(8)]
    threads = [threading.Thread(target=write_whole, args=(file, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.read_text() in texts
    assert os.listdir(tmp_path) == ["table"]
