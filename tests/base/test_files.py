"""Only regular files are opened: whatever would wait or never end is refused at once."""

import os
import socket

import pytest

from moco_jax.base import files


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
