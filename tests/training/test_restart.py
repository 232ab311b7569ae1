"""A run that is killed at any moment and started again ends bit for bit as the run that was not.

MOCO_JAX_KILLS: how many kills (2 unless told); where it is set, two processes are stopped and
killed as well.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from etils import epath

from moco_jax.monitoring import run_log
from tests import states, xla

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("MOCO_JAX_KILLS", "2"))
STEPS = 24


def command(workdir, cache):
    return [
        sys.executable,
        "-m",
        "moco_jax.main",
        "--config=tests/smallest.py",
        f"--workdir={workdir}",
        "--config.width=8",
        "--config.monitor_every=0",
        "--config.log_every=5",
        "--config.checkpoint_every=2",
        f"--config.stop_at_step={STEPS}",
        f"--config.compilation_cache={cache}",
        "--config.workers=2",
    ]


def run(workdir, cache, kill_after=None):
    """Exit status of a run, killed after so many seconds from its start."""
    env = {**os.environ, "XLA_FLAGS": xla.flags(1, many_steps=True)}
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
        workdir, status = tmp_path / f"killed{runs}", None
        while status is None and killed < KILLS:
            status = run(workdir, cache, rng.uniform(0.3, 0.9) * seconds)
            killed += status is None
        if status is None:
            run(workdir, cache)
        states.assert_bitwise_equal(expected, states.load(workdir, STEPS))
    print(f"{killed} kills in {runs} runs of {seconds:.0f} s")


class Pair:
    """A run in two processes of one device each, through the launcher."""

    def __init__(self, workdir, cache):
        self.workdir = workdir
        env = {**os.environ, "PYTHON": sys.executable, "LOGDIR": f"{workdir}_logs", "XLA_FLAGS": ""}
        two = ["launch/local.sh", "--processes", "2", "--devices-per-process", "1"]
        line = [*two, "--", *command(workdir, cache)[3:], "--config.log_every=1"]
        self.launcher = subprocess.Popen(
            line, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def step(self):
        return max((r["step"] for r in run_log.records(epath.Path(self.workdir))), default=0)

    def send(self, number, process, after):
        """Signal `number` to one of the two, once the step `after` is recorded."""
        deadline = time.monotonic() + 120
        while self.step() < after:
            assert self.launcher.poll() is None, self.launcher.communicate()[0]
            assert time.monotonic() < deadline, "the run does not begin"
            time.sleep(0.05)
        pattern = f"moco_jax.main .*--process_id={process} .*--workdir={self.workdir} "
        found = subprocess.run(["pgrep", "-f", "--", pattern], capture_output=True, check=True)
        os.kill(int(found.stdout.split()[0]), number)

    def end(self):
        return self.launcher.communicate(timeout=300)[0], self.launcher.returncode


@pytest.mark.skipif("MOCO_JAX_KILLS" not in os.environ, reason="takes minutes: MOCO_JAX_KILLS=2")
def test_two_processes_stopped_and_killed_go_on_at_one_step(tmp_path):
    whole, cut, cache = tmp_path / "whole", tmp_path / "cut", tmp_path / "cache"
    out, status = Pair(whole, cache).end()
    assert status == 0, out

    asked = Pair(cut, cache)
    asked.send(signal.SIGTERM, process=1, after=5)
    out, status = asked.end()
    assert status == 143, out
    saved = max(int(p.name) for p in (cut / "checkpoints").iterdir() if p.name.isdigit())
    assert f"saved at step {saved}" in out
    assert saved < STEPS

    killed = Pair(cut, cache)
    killed.send(signal.SIGKILL, process=1, after=saved + 5)
    out, status = killed.end()
    assert status == 128 + signal.SIGKILL, out
    assert f"resumed     at step {saved}" in out

    out, status = Pair(cut, cache).end()
    assert status == 0, out
    assert "resumed     at step" in out
    states.assert_bitwise_equal(states.load(whole, STEPS), states.load(cut, STEPS))


@pytest.mark.parametrize("bad", ["{", ""])
def test_a_broken_config_file_in_the_workdir_is_named(tmp_path, bad):
    (tmp_path / "config.json").write_text(bad)
    ended = subprocess.run(
        command(tmp_path, tmp_path / "c"), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert "config.json is damaged" in ended.stderr
