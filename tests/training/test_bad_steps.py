"""Steps that cannot be applied are skipped, named, counted; many in a row end the run.

Spikes are reported.
"""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.base.errors import UserError
from moco_jax.method import encoding
from moco_jax.monitoring import run_log
from moco_jax.training import bad_steps, feed, loop
from tests import states
from tests.training.test_loop import tiny

MARK = 251


def records(workdir, event):
    return [r for r in run_log.records(loop.epath.Path(workdir)) if r.get("event") == event]


@pytest.fixture
def poison(monkeypatch):
    """Steps whose batch is marked, and a normalisation that turns a marked image into NaN."""
    real_input, real_batches, steps = encoding.to_network_input, feed.device_batches, set()

    def to_network_input(images, mean, std, dtype):
        found = real_input(images, mean, std, dtype)
        marked = jnp.all(images[:, 0, :4] == MARK, axis=(1, 2))
        return jnp.where(marked[:, None, None, None], jnp.nan, found)

    def device_batches(host_batches, program, held, classes_of):
        def marked():
            for number, rows in enumerate(host_batches, start=1):
                if number in steps:
                    rows = {k: v.copy() for k, v in rows.items()}
                    rows["query"][3, 0, :4] = MARK
                yield rows

        return real_batches(marked(), program, held, classes_of)

    monkeypatch.setattr(encoding, "to_network_input", to_network_input)
    monkeypatch.setattr(feed, "device_batches", device_batches)
    return steps


def test_a_batch_with_nan_is_skipped_counted_and_named(poison, tmp_path, capsys):
    poison.add(3)
    config = tiny(stop_at_step=6, monitor_every=0, checkpoint_every=1, keep=6)
    loop.train(config, str(tmp_path), set())
    out = capsys.readouterr().out
    assert (
        "step 3: loss or gradient not finite, step not applied; its examples: digits train" in out
    )
    (event,) = records(tmp_path, "skipped_step")
    assert event["step"] == 3
    assert len(event["indices"]) == 64
    before, after = states.load(tmp_path, 2), states.load(tmp_path, 3)
    changed = {n for n in before if not np.array_equal(before[n], after[n])}
    assert changed == {"step", "schedule_step", "examples_seen", "skipped_steps"}
    last = states.load(tmp_path, 6)
    assert last["skipped_steps"] == 1
    assert all(np.isfinite(x).all() for x in last.values())


def test_ten_in_a_row_end_the_run_with_the_last_good_checkpoint(poison, tmp_path):
    poison.update(range(5, 40))
    config = tiny(stop_at_step=30, monitor_every=0, checkpoint_every=2, keep=2)
    with pytest.raises(UserError, match=r"max_bad_steps=10 steps in a row \(5 to 14\)") as raised:
        loop.train(config, str(tmp_path), set())
    poison.clear()
    (named,) = re.findall(r"Checkpoint (\d+) is good", str(raised.value))
    assert all(np.isfinite(x).all() for x in states.load(tmp_path, int(named)).values())
    loop.train(config, str(tmp_path), set())
    last = states.load(tmp_path, 30)
    assert all(np.isfinite(x).all() for x in last.values())


def test_a_spike_is_reported_once_the_usual_size_is_known():
    said = []
    watch = bad_steps.Guard(10, 5.0, str, lambda *event: said.append(event), str)
    for number in range(1, 60):
        norm = 40.0 if number in (3, 50) else 2.0
        watch.observe(
            number,
            {"finite": jnp.asarray(True), "loss": jnp.ones(()), "grad_norm": jnp.asarray(norm)},
            jnp.arange(7),
        )
    watch.finish()
    ((number, kind, text, facts),) = said
    assert (number, kind, facts["indices"]) == (50, "gradient_spike", list(range(7)))
    assert "gradient norm 40" in text
    assert "0, 1, 2, 3, 4 and 2 more" in text


def test_bad_steps_must_be_in_a_row():
    watch = bad_steps.Guard(3, 5.0, str, lambda *event: None, str)
    for number in range(30):
        watch.observe(
            number,
            {
                "finite": jnp.asarray(number % 3 == 0),
                "loss": jnp.asarray(jnp.nan),
                "grad_norm": jnp.asarray(jnp.nan),
            },
            jnp.arange(2),
        )
    watch.finish()
