"""The examples of docs/extending.md work, each alone and all together in one step."""

import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from moco_jax import encoders
from moco_jax.base.console import Console
from moco_jax.base.errors import UserError
from moco_jax.cli import evaluate, evaluation_flags
from moco_jax.data.sources.decode import decode_or_flag
from moco_jax.data.views import recipes
from moco_jax.encoders.configured import encoder_options
from moco_jax.inference import trained_encoder
from moco_jax.method import state, step
from moco_jax.method.choice import dictionary_class
from moco_jax.method.configured import method_of
from moco_jax.method.dictionary import DICTIONARIES
from moco_jax.parallel import mesh
from moco_jax.training import assembly, checks, messages
from tests.config.test_config import load
from tests.data.batches import train_batches
from tests.data.pictures import encoded
from tests.markdown import ROOT, blocks

BATCH, SIDE, IMAGES = 16, 32, 20


@pytest.fixture(scope="module")
def examples():
    """The code of each example by the file that its first line names."""
    page = blocks((ROOT / "docs/extending.md").read_text())
    found = [code for language, code in page if language == "python"]
    assert all(len(code.splitlines()) < 40 for code in found)
    return {code.removeprefix('"""').partition(":")[0]: code for code in found}


def names_of(code, title):
    """What a file with this `code` defines."""
    names = {"__name__": title}
    exec(compile(code, title, "exec"), names)
    return names


@pytest.fixture
def one_device():
    return mesh.create_mesh(jax.devices()[:1])


@pytest.fixture
def method(examples):
    return names_of(examples["configs/few.py"], "few")["get_config"]


@pytest.fixture
def plain(examples, monkeypatch):
    monkeypatch.setitem(encoders.BACKBONES, "plain", None)  # forgotten after the test
    names_of(examples["moco_jax/encoders/plain.py"], "plain")
    return encoders.BACKBONES["plain"]


@pytest.fixture
def young(examples, monkeypatch):
    monkeypatch.setitem(DICTIONARIES, "young_queue", None)  # forgotten after the test
    names = names_of(examples["moco_jax/method/dictionary/young_queue.py"], "young")
    assert DICTIONARIES["young_queue"] is names["YoungQueue"]
    return names["YoungQueue"]


@pytest.fixture
def images(examples, tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (IMAGES, SIDE, SIDE, 3), dtype=np.uint8)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("readme.txt", "no image")
        for number, image in enumerate(pixels):
            archive.writestr(f"a/{number:02d}.png", encoded("PNG", pixels=image))
    names = names_of(examples["moco_jax/data/sources/zip.py"], "zip")
    return names["ZipSource"](str(tmp_path / "images.zip")), pixels


TINY = {
    "arch": "plain",
    "width": 4,
    "dim": 8,
    "image_size": SIDE,
    "batch_size": BATCH,
    "bn_groups": 2,
    "shuffle_groups": 2,
    "queue_size": 4 * BATCH,
    "compute_dtype": "float32",
}


def tiny(method):
    config = method()
    config.update(TINY)
    return config


def test_the_methods_go_together(method):
    queue, batch = method(), method("batch")
    for config in (queue, batch):
        checks.check(config, 1)
    assert method_of(queue).queue_start == "empty"
    assert method_of(batch).dictionary == "batch"
    with pytest.raises(UserError, match="variant='both' is unknown; this config has queue, batch"):
        method("both")


def test_only_young_keys_count(young):
    @jax.jit
    def after_five_batches():
        queue = young.create(jax.random.key(0), 4 * BATCH, BATCH, 2)
        for number in range(1, 6):
            queue = queue.enqueue(jnp.ones((BATCH, 2)), jnp.full(BATCH, number, jnp.int32))
        found = queue.negatives(real_only=True)
        return found.index, found.counts

    index, counts = jax.device_get(after_five_batches())
    assert sorted(index[counts].tolist()) == [4] * BATCH + [5] * BATCH


def test_images_of_an_archive_are_read(images):
    source, pixels = images
    assert (len(source), source.name(3).endswith("images.zip: a/03.png")) == (IMAGES, True)
    for number, record in zip((5, 2), source.read(np.asarray([5, 2])), strict=True):
        image = decode_or_flag(source, record)
        np.testing.assert_array_equal(image.pixels, pixels[number])


def quickly(lowered):
    """Compiled in a fourth of the time."""
    return lowered.compile({"xla_backend_optimization_level": 0})


def test_a_name_is_all_that_a_dictionary_needs(method, plain, young):
    """A run's checks, program and words know the name; of an unknown one, the error lists all."""
    config = tiny(method)
    config.dictionary = "young_queue"
    checks.check(config, 8)
    assert messages.dictionary(config, IMAGES).startswith(
        "queue of 64 keys, of which the last 2 batches count, momentum"
    )
    assert method_of(config).chance_level(BATCH) == 2 * np.log(65)
    program = assembly.program(config, mesh.create_mesh(jax.devices()), IMAGES)
    queue = program.abstract.dictionary
    assert isinstance(queue, young)
    assert queue.keys.sharding.spec == mesh.sharded(program.mesh, axis=1).spec
    text = program.train_step.lower(program.abstract, program.batch).as_text()
    assert "func.func public @main" in text
    moved = state.for_batch_size(_zeros(program.abstract), BATCH // 2).dictionary
    assert (type(moved), moved.keys.shape) == (young, (8, BATCH // 2, 8))
    config.key_encoder = "query"
    with pytest.raises(UserError, match="key_encoder='query' does not go with"):
        checks.check(config, 1)
    with pytest.raises(UserError, match="use one of queue, batch, memory_bank, young_queue"):
        dictionary_class("old_queue")


def _zeros(shapes):
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


def test_they_make_a_step_together(method, plain, young, images, one_device):
    config, (source, _) = tiny(method), images
    config.dictionary = "young_queue"
    checks.check(config, 1)
    batches = train_batches(source, recipes.create("linear", SIDE), BATCH)
    made = next(batches)
    batches.close()
    program = assembly.program(config, one_device, IMAGES)
    now = quickly(program.initial.lower())()
    assert isinstance(now.dictionary, young)
    before = jax.device_get(now.params)
    assert before["backbone"]["conv3"]["kernel"].shape == (3, 3, 16, 32)
    batch = step.Batch(made["query"], made["key"], made["index"])
    train_step = quickly(program.train_step.lower(program.abstract, program.batch))
    now, metrics = jax.device_get(train_step(now, mesh.to_devices(one_device, batch)))
    assert metrics["finite"]
    assert now.dictionary.count == 2 * BATCH  # the keys of both views
    assert (
        now.params["backbone"]["conv0"]["kernel"] != before["backbone"]["conv0"]["kernel"]
    ).all()


@pytest.fixture
def rank(examples, monkeypatch):
    """The example of an evaluation, its flags at their defaults as `given`."""
    monkeypatch.setitem(evaluation_flags.EVALUATIONS, "rank", None)  # forgotten after the test
    names_of(examples["moco_jax/cli/evaluation_flags.py"], "evaluation_flags")
    command = evaluate.command_of("rank")
    assert command.line == "Measure in how many directions features spread."
    given, words = command.parse(["evaluate", "--untrained"])
    assert (given.untrained, words) == (True, [])
    return names_of(examples["moco_jax/cli/evaluations/rank.py"], "rank") | {"given": given}


def test_the_evaluation_measures_a_rank(rank, plain, one_device, tmp_path, capsys, monkeypatch):
    axes = np.eye(6, 9)
    assert rank["effective_rank"](np.concatenate([axes, -axes])) == pytest.approx(6)
    from moco_jax.cli.evaluations.common import Task
    from moco_jax.evaluation.resume import Trainings

    monkeypatch.setattr(mesh, "create_mesh", lambda: one_device)
    config = load("digits")
    config.update(dict(arch="plain", stem="imagenet", width=4, eval_batch_size=720, workers=2))
    encoder = encoders.create(**encoder_options(config))
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), np.zeros((1, SIDE, SIDE, 3)))
    rng = np.random.default_rng(0)
    weights = jax.tree.map(lambda x: rng.normal(1, 1, x.shape).astype(x.dtype) ** 2, shapes)
    found = trained_encoder.TrainedEncoder(encoder, weights, config, 0)
    place, console = epath.Path(tmp_path), Console()
    trainings = Trainings(place / "evaluate_rank", console)
    task = Task(
        {"trained": found}, "query", place, console, lambda _: None, trainings, rank["given"]
    )
    result = rank["run"](task)
    assert 1 < result["results"]["trained"] <= 32
    assert result["test_images"] == 1440
    assert f"trained  {result['results']['trained']:.1f}" in capsys.readouterr().out
