"""A run that starts from weights: its first step is the source's after one average.

What does not fit is said.
"""

import dataclasses
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from moco_jax.base.errors import UserError
from moco_jax.method.step import Batch
from moco_jax.parallel import mesh
from moco_jax.training import assembly, loop, warm_start
from moco_jax.weights import bridge, files
from tests import states
from tests.training.test_loop import losses, tiny

pytestmark = pytest.mark.usefixtures("programs_kept")

pytest.importorskip("safetensors", reason="pip install '.[safetensors]'")


def config_of(**changes):
    return tiny(
        **dict(arch="resnet10", monitor_every=0, momentum=0.75, queue_size=160, stop_at_step=1)
        | changes
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A workdir, its state, and a file of it in the MoCo authors' layout.

    Its encoders differ, and its queue's pointer is not at 0.
    """
    place = tmp_path_factory.mktemp("source")
    config = config_of()
    state = states.drawn(config, pointer=1)
    keys = state.dictionary.keys
    unit = keys / jnp.linalg.norm(keys, axis=-1, keepdims=True)
    state = state.replace(dictionary=state.dictionary.replace(keys=unit))
    states.save(epath.Path(place / "run"), config, 3, state)
    path = str(place / "moco.safetensors")
    bridge.save(bridge.load(str(place / "run")), path, "moco")
    return str(place / "run"), state, path


BUILD = assembly.program
QUICK = {"xla_backend_optimization_level": 0}


def quick_program(*arguments):
    """A program whose first state and step are compiled in a fourth of the time."""
    made = BUILD(*arguments)
    return dataclasses.replace(made, initial=lambda: made.initial.lower().compile(QUICK)())


@pytest.fixture(autouse=True)
def quickly_compiled(monkeypatch):
    def compile_step(self):
        return self.train_step.lower(self.abstract, self.batch).compile(QUICK)

    monkeypatch.setattr(assembly.Program, "compile_step", compile_step)
    monkeypatch.setattr(assembly, "program", quick_program)


@pytest.fixture(scope="module")
def program():
    """Of the same recipe, on eight devices."""
    return quick_program(config_of(), mesh.create_mesh(), 1437)


def same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_the_first_step_is_the_sources_after_one_average(source, program):
    _, state, path = source
    weights = warm_start.read(config_of(init_from=path), program.abstract)
    begun = warm_start.begin(program, weights, 0.75)
    shardings = jax.tree.map(lambda x: x.sharding, program.abstract)
    assert jax.tree.map(lambda x: x.sharding, begun) == shardings
    same(begun.params, state.params)
    same(begun.batch_stats, state.batch_stats)
    same(begun.key_batch_stats, state.key_batch_stats)

    def average(key, query):
        return np.float32(0.75) * key + np.float32(0.25) * query

    averaged = jax.tree.map(average, state.key_params, state.params)
    near = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-8)
    jax.tree.map(near, begun.key_params, averaged)
    assert (int(begun.step), int(begun.schedule_step), int(begun.skipped_steps)) == (0, 0, 0)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(begun.opt_state))

    # The source's own state at the start of a run, with NumPy's average and its queue as it lies
    # there.
    fresh = program.initial()
    counts = dict(index=fresh.dictionary.index, count=fresh.dictionary.count)
    old = dataclasses.replace(
        fresh,
        params=state.params,
        batch_stats=state.batch_stats,
        key_params=averaged,
        key_batch_stats=state.key_batch_stats,
        dictionary=state.dictionary.replace(**counts),
    )
    old = jax.device_put(jax.device_get(old), shardings)
    rng = np.random.default_rng(0)
    rows = {name: rng.integers(0, 256, (64, 32, 32, 3), np.uint8) for name in ("query", "key")}
    batch = Batch(**mesh.to_devices(program.mesh, rows | {"index": np.arange(64, dtype=np.int32)}))
    step = program.compile_step()
    expected, ours = step(old, batch)[1], step(begun, batch)[1]
    assert float(expected["finite"])
    np.testing.assert_allclose(ours["loss"], expected["loss"], rtol=1e-6)
    np.testing.assert_allclose(ours["grad_norm"], expected["grad_norm"], rtol=1e-5)


def test_what_is_not_there_or_does_not_fit_starts_fresh_and_is_said(source, program, tmp_path):
    workdir, state, path = source
    backbone = str(tmp_path / "backbone.safetensors")
    bridge.save(bridge.load(workdir), backbone, "torchvision", "key")
    weights = warm_start.read(config_of(init_from=backbone), program.abstract)
    begun, fresh = warm_start.begin(program, weights, 0.75), program.initial()
    same(begun.params["backbone"], state.key_params["backbone"])
    same(begun.params["head"], fresh.params["head"])
    same(begun.key_params, begun.params)
    same(begun.dictionary, fresh.dictionary)
    text = "; ".join(weights.remarks)
    for words in (
        "backbone of resnet10, width 8, stem cifar_stride2",
        "the head starts fresh: there are no weights of one",
        "the momentum encoder starts as a copy",
        "the queue starts fresh: there is none",
    ):
        assert words in text

    def said(**changes):
        changed = config_of(init_from=path, **changes)
        like = assembly.program(changed, program.mesh, 1437).abstract
        return "; ".join(warm_start.read(changed, like).remarks)

    assert "the queue is taken along" in said()
    text = said(dim=32)
    assert "the head starts fresh: params/fc2/bias has shape (128,), not (32,)" in text
    assert "its own backbone, averaged" in text
    assert "the queue starts fresh: its keys are of another head" in text
    assert "it has 160 keys of 128 numbers, not 256 of 128" in said(queue_size=256)
    assert "counts keys of this run's images only" in said(queue_start="empty")
    assert "the predictor starts fresh" in said(predictor="v3_resnet", head_width=16)
    assert "queue" not in said(dictionary="batch").partition("queue of 160")[2]


def test_a_run_takes_head_and_queue_of_solo_learns_file(source, program, tmp_path):
    arrays = files.read(source[2])
    names = {
        "encoder_q.fc.": "projector.",
        "encoder_k.fc.": "momentum_projector.",
        "encoder_q.": "backbone.",
        "encoder_k.": "momentum_backbone.",
    }
    entries = {}
    for name, array in arrays.items():
        new = name.removeprefix("module.")
        old = next((known for known in names if new.startswith(known)), "")
        entries[names.get(old, "") + new.removeprefix(old)] = array
    entries["queue"] = np.stack([-entries["queue"], entries["queue"]])
    path = str(tmp_path / "solo.safetensors")
    files.write(path, entries, {})
    weights = warm_start.read(config_of(init_from=path, stem="cifar_pad2"), program.abstract)
    expected = warm_start.read(config_of(init_from=source[2]), program.abstract)
    same(weights.query, expected.query)
    same(weights.key, expected.key)
    same(weights.queue, expected.queue)
    assert weights.queue is not None
    assert "the queue is taken along" in weights.remarks
    with pytest.raises(UserError, match=r"init_from=.*solo-learn's network has stem='cifar_pad2'"):
        warm_start.read(config_of(init_from=path), program.abstract)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(arch="resnet18"), "init_from=.*: these are weights of resnet10, not of resnet18"),
        (
            dict(width=16),
            "width 8.* does not fit this run: params/bn1/bias has shape .8,., not .16,.",
        ),
        (dict(init_from="cut.safetensors"), "init_from=.*cut.safetensors.* is damaged"),
        (dict(init_from="none.pth"), "init_from=.*none.pth is not there"),
        (dict(init_from=""), "init_from=.*is no workdir"),
    ],
)
def test_what_cannot_be_used_is_one_line_before_anything_is_written(
    source, tmp_path, changes, says
):
    path = source[2]
    if "init_from" in changes:
        (tmp_path / "cut.safetensors").write_bytes(epath.Path(path).read_bytes()[:5000])
        path = str(tmp_path / changes["init_from"])
    config = config_of(**changes | dict(init_from=path))
    with pytest.raises(UserError, match=says) as error:
        loop.train(config, str(tmp_path / "run"), set())
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_run_starts_from_a_workdir_and_then_goes_on_from_its_own_checkpoint(
    source, tmp_path, capsys
):
    place, first = tmp_path / "run", tmp_path / "first"
    shutil.copytree(source[0], first)
    loop.train(config_of(init_from=str(first)), str(place), set())
    printed = capsys.readouterr().out
    assert f"weights from {first}: backbone, head of resnet10" in printed
    first.rename(tmp_path / "moved")
    loop.train(config_of(init_from=str(first)), str(place), set())
    printed = capsys.readouterr().out
    assert "resumed     at step 1" in printed
    assert "weights from" not in printed
    assert len(losses(place)) == 1
    with pytest.raises(UserError, match=r"init_from: .*--allow_change=init_from"):
        loop.train(config_of(init_from=""), str(place), set())
