"""A run of which all lies in a bucket: images, checkpoints, records, pictures and the lock."""

import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath

from moco_jax.base import storage
from moco_jax.base.errors import Busy, UserError
from moco_jax.cli.commands import command_of
from moco_jax.monitoring import record_files, run_log
from moco_jax.training import loop
from tests import smallest, states
from tests.data.pictures import encoded, write
from tests.markdown import ROOT
from tests.test_without_tensorflow import HIDDEN, PROGRAM

pytestmark = pytest.mark.usefixtures("programs_kept")

RUN, IMAGES, STEPS = "gs://bucket/run", "gs://bucket/images", 40
SETTINGS = dict(
    dataset="folder",
    eval_split="",
    augment_on="resident",
    width=4,
    queue_size=256,
    epochs=100,
    log_every=1,
    monitor_every=0,
    workers=2,
)


@pytest.fixture
def images(network, tmp_path):
    """128 pictures of three classes in the bucket; the folder of this machine with the same."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (128, 32, 32, 3), np.uint8)
    files = {f"{n % 3}/{n:03}.png": encoded("PNG", pixels=pixels[n]) for n in range(len(pixels))}
    for name, content in files.items():
        storage.write(f"{IMAGES}/{name}", content)
    return write(tmp_path / "images", files)


def config(data_dir, **changes):
    made = smallest.get_config()
    made.update(SETTINGS | {"data_dir": data_dir} | changes)
    return made


def saved():
    """The newest step whose checkpoint counts."""
    folder = f"{RUN}/digests"
    return max(map(int, storage.listing(folder))) if storage.exists(folder) else 0


def kill_after_a_checkpoint():
    """Train in a process without TensorFlow, and kill it once its second checkpoint counts."""
    flags = [f"--config.{name}={value}" for name, value in SETTINGS.items()]
    words = ["pretrain", "--config=tests/smallest.py", f"--workdir={RUN}", *flags]
    words += [f"--config.data_dir={IMAGES}", "--config.checkpoint_every=3"]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(HIDDEN), json.dumps([words])],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while process.poll() is None and saved() < 6:
        time.sleep(0.02)
    process.kill()
    out, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, out


def test_a_killed_run_goes_on_bitwise_and_is_read(network, images, tmp_path, monkeypatch, capsys):
    network.latency, network.busy = 0.005, 0.01
    kill_after_a_checkpoint()
    assert storage.exists(f"{RUN}/lock.json")
    monkeypatch.setattr(record_files, "SECONDS", 0.0)
    monkeypatch.setattr(record_files, "FULL", 4)
    network.remembers = True
    loop.train(config(IMAGES, checkpoint_every=20, stop_at_step=STEPS), RUN, set())
    network.remembers = False
    assert re.search(r"resumed +at step (\d+)", capsys.readouterr().out)
    assert not storage.exists(f"{RUN}/lock.json")
    assert_cost_does_not_grow(network)

    loop.train(config(images, stop_at_step=STEPS), str(tmp_path / "run"), set())
    states.assert_bitwise_equal(states.load(tmp_path / "run", STEPS), states.load(RUN, STEPS))
    here, there = (run_log.records(epath.Path(place)) for place in (tmp_path / "run", RUN))
    losses = [{r["step"]: r["loss"] for r in found if "loss" in r} for found in (here, there)]
    assert losses[0] == losses[1]
    assert [*losses[1]] == [*range(1, STEPS + 1)]
    assert (
        storage.listing(f"{RUN}/digests") == storage.listing(f"{RUN}/checkpoints") == ["20", "40"]
    )
    assert len(storage.listing(f"{RUN}/tensorboard")) == 1

    command_of("evaluate").call(["evaluate", "knn", f"--workdir={RUN}", "--k=5"])
    knn = json.loads(storage.read(f"{RUN}/evaluate_knn.json"))["results"][0]
    command_of("report").call(["report", RUN, "--images=0"])
    page = storage.read(f"{RUN}/report.html").decode()
    assert f"{knn['accuracy']:.2%}".rstrip("%") in page
    assert "left out" not in capsys.readouterr().out


def assert_cost_does_not_grow(network):
    """Late records of a run take as many requests, and as many bytes, as its first."""
    written = {}
    for target, size in zip(network.targets, network.written, strict=True):
        if target.startswith("POST") and (named := re.search(r"run/metrics/(\d+)", target)):
            written.setdefault(int(named[1]), []).append(size)
    # The first segment was of the killed run, and the last one may not be full.
    *whole, _ = [sizes for number, sizes in sorted(written.items()) if number > min(written)]
    assert len(whole) >= 4
    # A request that fails is made again.
    assert all(record_files.FULL <= len(sizes) <= record_files.FULL + 3 for sizes in whole)
    assert max(map(max, whole)) < 1.5 * max(whole[0])


def test_a_bucket_that_refuses_or_is_silent_ends_the_run_with_one_line(network):
    network.refused = {"refused": 403}
    words = r"^access to gs://bucket/refused/lock.json is refused \(403: the account .*objectUser"
    with pytest.raises(UserError, match=words) as told:
        loop.train(config(IMAGES), "gs://bucket/refused", set())
    assert "\n" not in str(told.value)
    with pytest.raises(UserError, match=r"^workdir=s3://bucket/run is in a store to which no "):
        loop.train(config(IMAGES), "s3://bucket/run", set())
    network.busy = 1.0
    with pytest.raises(
        Busy, match=r"^gs://bucket/run/lock.json cannot be reached .*asked 11 times"
    ):
        loop.train(config(IMAGES), RUN, set())
