"""A run that is killed at any moment and started again ends bit for bit as the run that was not.

MOCO_JAX_KILLS: how many kills (2 unless told).
"""

import os
import random
import subprocess
import sys
import time

import pytest

from tests import states

KILLS = int(os.environ.get("MOCO_JAX_KILLS", "2"))
STEPS = 60


def command(workdir, cache):
    return [
        sys.executable, "-m", "moco_jax.main", "--config=configs/digits.py", f"--workdir={workdir}",
        "--config.width=8", "--config.monitor_every=0", "--config.log_every=5", "--config.checkpoint_every=3",
        f"--config.stop_at_step={STEPS}", f"--config.compilation_cache={cache}", "--config.workers=2",
    ]  # fmt: skip


def run(workdir, cache, kill_after=None):
    """Exit status of a run, killed after so many seconds from its start."""
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    process = subprocess.Popen(
        command(workdir, cache),
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        out, _ = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return None
    assert process.returncode == 0, out
    return 0


def test_kills_at_random_moments_change_nothing(tmp_path):
    cache = tmp_path / "cache"
    run(tmp_path / "whole", cache)
    began = time.monotonic()
    run(tmp_path / "again", cache)
    seconds = time.monotonic() - began
    expected = states.load(tmp_path / "whole", STEPS)
    states.assert_bitwise_equal(expected, states.load(tmp_path / "again", STEPS))

    rng, killed, runs = random.Random(0), 0, 0
    while killed < KILLS:
        runs += 1
        workdir = tmp_path / f"killed{runs}"
        while killed < KILLS:
            if run(workdir, cache, rng.uniform(0.3, 1.0) * seconds) == 0:
                break
            killed += 1
        run(workdir, cache)
        states.assert_bitwise_equal(expected, states.load(workdir, STEPS))
    print(f"{killed} kills in {runs} runs of {seconds:.0f} s")


@pytest.mark.parametrize("bad", ["{", ""])
def test_a_broken_config_file_in_the_workdir_is_named(tmp_path, bad):
    (tmp_path / "config.json").write_text(bad)
    ended = subprocess.run(
        command(tmp_path, tmp_path / "c"), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert "config.json is damaged" in ended.stderr
