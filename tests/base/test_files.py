"""Only regular files are opened: whatever would wait or never end is refused at once."""

import os
import socket

import pytest
from etils import epath

import moco_jax
from moco_jax.base import files, storage
from moco_jax.base.errors import Busy, UserError
from moco_jax.cli import command_line
from moco_jax.inference import trained_encoder


@pytest.fixture
def kinds(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(os.path.relpath(tmp_path / "socket"))
        yield tmp_path


@pytest.mark.parametrize("kind", ["pipe", "folder", "socket", "/dev/zero", "/dev/null"])
def test_no_regular_file(kinds, kind):
    with pytest.raises(OSError, match=r"regular|No such device"):
        files.open_regular(kinds / kind)


def test_a_regular_file_is_read(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    with files.open_regular(tmp_path / "file") as file:
        assert file.read() == b"content"


def test_processes_of_equal_numbers_have_drafts_of_their_own(tmp_path, monkeypatch):
    """As hosts have that are containers, on one disk."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    path = epath.Path(tmp_path / "file")
    with files.draft(path) as ours, files.draft(path) as theirs:
        ours.write_text("ours")
        theirs.write_text("theirs")
    assert path.read_text() == "ours"
    assert os.listdir(tmp_path) == ["file"]


BUCKETS = [f"{kind}://bucket/{name}" for kind in files.BUCKETS for name in ("run", "a.pth", "a\nb")]


@pytest.mark.parametrize("place", BUCKETS)
@pytest.mark.parametrize(
    ("cause", "status", "said"),
    [
        (PermissionError("no\n\t right"), 2, "is refused (403: no right)"),
        (ConnectionError("no\n\t route"), 75, "cannot be reached (no route"),
    ],
)
def test_a_bucket_that_cannot_be_reached_is_one_line(
    place, cause, status, said, monkeypatch, capsys
):
    error = storage.translate(cause, place)

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(trained_encoder, "load", fail)
    with pytest.raises((UserError, Busy)) as told:
        moco_jax.load(place)
    assert str(told.value).isprintable()
    with pytest.raises(SystemExit) as ended:
        command_line.guarded(fail, [])
    assert ended.value.code == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert line.isprintable()


@pytest.mark.parametrize("error", [RuntimeError("shapes"), KeyError("gs://")])
def test_other_errors_are_none_of_a_bucket(error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(trained_encoder, "load", fail)
    for call in (lambda: moco_jax.load("x"), lambda: command_line.guarded(fail, [])):
        with pytest.raises(type(error)):
            call()
