"""Damage to checkpoints is found anywhere, named, and stepped over; a full disk loses nothing."""

import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from etils import epath

from moco_jax.base import digests
from moco_jax.base.errors import UserError
from moco_jax.training import checkpoint, loop
from moco_jax.workdir import integrity
from tests import states
from tests.training.test_loop import tiny

pytestmark = pytest.mark.usefixtures("programs_kept")

ROOM, BALLAST = 64 * 2**20, 60 * 2**20


def settings(**changes):
    return tiny(checkpoint_every=2, keep=3, monitor_every=0, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of six steps with checkpoints at 2, 4 and 6."""
    workdir = tmp_path_factory.mktemp("finished")
    loop.train(settings(stop_at_step=6), str(workdir), set())
    return workdir


@pytest.fixture
def workdir(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def files_of(workdir, step):
    return sorted(p for p in (workdir / "checkpoints" / str(step)).rglob("*") if p.is_file())


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x10
    path.write_bytes(content)


def test_a_flipped_bit_anywhere_is_found(workdir):
    folder, record = epath.Path(workdir / "checkpoints/6"), epath.Path(workdir / "digests/6")
    assert digests.damaged(folder, record) == []
    rng = np.random.default_rng(0)
    files = [p for p in files_of(workdir, 6) if p.stat().st_size] + [workdir / "digests/6"]
    assert len(files) > 5
    for number in range(max(50, len(files))):
        path = files[number % len(files)]
        offset = int(rng.integers(path.stat().st_size))
        flip(path, offset)
        assert any(path.name in line for line in digests.damaged(folder, record)), (path, offset)
        flip(path, offset)
    assert digests.damaged(folder, record) == []
    files[0].unlink()
    (workdir / "checkpoints/6/more").write_text("")
    said = digests.damaged(folder, record)
    assert any("is missing" in line for line in said)
    assert any("was added" in line for line in said)


@pytest.mark.parametrize("damage", ["flipped", "cut", "unfinished"])
def test_the_checkpoint_before_a_damaged_one_is_used(workdir, damage, capsys):
    largest = max(files_of(workdir, 6), key=lambda p: p.stat().st_size)
    if damage == "flipped":
        flip(largest, largest.stat().st_size // 2)
    elif damage == "cut":
        os.truncate(largest, largest.stat().st_size // 2)
    else:
        (workdir / "digests/6").unlink()
    before = states.load(workdir, 4)
    loop.train(settings(stop_at_step=8), str(workdir), set())
    out = capsys.readouterr().out
    assert "checkpoint 6 is damaged" in out
    assert ("it was not finished" if damage == "unfinished" else largest.name) in out
    assert re.search("resumed +at step 4", out)
    states.assert_bitwise_equal(before, states.load(workdir, 4))
    assert len(list((workdir / "damaged").iterdir())) == 1
    whole = workdir.parent / "whole"
    loop.train(settings(stop_at_step=8), str(whole), set())
    states.assert_bitwise_equal(states.load(whole, 8), states.load(workdir, 8))


def test_a_run_without_a_sound_checkpoint_is_not_begun_again_in_silence(workdir):
    for step in (2, 4, 6):
        flip(files_of(workdir, step)[0], 0)
    with pytest.raises(UserError, match=r"has no sound checkpoint left; checkpoint 6 is damaged"):
        integrity.set_damaged_aside(epath.Path(workdir))


def test_only_the_newest_checkpoint_is_read_when_it_is_sound(workdir):
    flip(files_of(workdir, 4)[0], 0)
    assert integrity.set_damaged_aside(epath.Path(workdir)) == []


def test_a_full_disk_ends_with_one_line_and_keeps_what_was_saved(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted without the rights to do so")
    try:
        config, run, whole = (
            settings(arch="resnet10", stop_at_step=12),
            disk / "run",
            tmp_path / "whole",
        )
        (disk / "ballast").write_bytes(bytes(BALLAST))
        with pytest.raises(UserError, match="is on a full disk"):
            loop.train(config, str(run), set())
        assert integrity.set_damaged_aside(epath.Path(run)) == []
        steps = [int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdigit()]
        assert 0 < max(steps) < 12, steps
        (disk / "ballast").unlink()
        loop.train(config, str(run), set())
        loop.train(config, str(whole), set())
        states.assert_bitwise_equal(states.load(whole, 12), states.load(run, 12))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_short_epochs_are_saved_some_at_a_time():
    assert [checkpoint.interval(0, steps) for steps in (5004, 100, 99, 12)] == [5004, 100, 198, 108]
    assert checkpoint.interval(7, 5004) == 7
