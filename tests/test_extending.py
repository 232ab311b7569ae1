"""The examples of docs/extending.md work: alone, together, and in a copy of the package."""

import json
import os
import re
import shutil
import subprocess
import sys
import types
import zipfile
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from etils import epath
from PIL import Image, ImageOps

from moco_jax import encoders
from moco_jax.base.console import Console
from moco_jax.base.errors import UserError
from moco_jax.cli import evaluate, evaluation_flags
from moco_jax.data.sources import Source
from moco_jax.data.sources.tf_decode import decode_or_flag
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
from tests.markdown import ROOT, blocks, tables

BATCH, SIDE, IMAGES = 16, 32, 20


PAGE = (ROOT / "docs/extending.md").read_text()
# What the page adds to the package, by the new file of each.
ADDED = {
    "an encoder": "moco_jax/encoders/plain.py",
    "a dictionary": "moco_jax/method/dictionary/young_queue.py",
    "a source of images": "moco_jax/data/sources/zip.py",
    "an operation on views": "moco_jax/data/views/operations/posterize.py",
    "an evaluation": "moco_jax/cli/evaluations/rank.py",
}


@pytest.fixture(scope="module")
def examples():
    """The code of each example by the file that its first line names."""
    found = [code for language, code in blocks(PAGE) if language == "python"]
    assert all(len(code.splitlines()) < 50 for code in found)
    return {code.removeprefix('"""').partition(":")[0]: code for code in found}


def changes():
    """What the page changes in files that there are: for each new file, a list of (file, hunks)."""
    found, file = {}, ""
    for language, code in blocks(PAGE):
        if language == "python":
            file = code.removeprefix('"""').partition(":")[0]
        if language == "diff":
            parts = re.split(r"^--- (.+)\n", code, flags=re.MULTILINE)
            pairs = zip(parts[1::2], parts[2::2], strict=True)
            found[file] = [(name, hunks.split("@@\n")) for name, hunks in pairs]
    return found


def changed(text, hunks):
    """A file's `text` with a diff's `hunks` put in; each must fit in exactly one place."""
    for hunk in hunks:
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] in " -")
        new = "".join(line[1:] for line in lines if line[0] in " +")
        assert text.count(old) == 1, f"found {text.count(old)} times:\n{old}"
        text = text.replace(old, new)
    return text


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
    net = names_of(examples[ADDED["an encoder"]], "plain")["PlainNet"]
    monkeypatch.setitem(encoders.BACKBONES, "plain", partial(net, 4))


@pytest.fixture
def young(examples, monkeypatch):
    young_queue = names_of(examples[ADDED["a dictionary"]], "young")["YoungQueue"]
    monkeypatch.setitem(DICTIONARIES, "young_queue", young_queue)
    return young_queue


def archive_of_images(path):
    """An archive of images and one other file, written to `path`; the images' pixels."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (IMAGES, SIDE, SIDE, 3), dtype=np.uint8)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no image")
        for number, image in enumerate(pixels):
            archive.writestr(f"a/{number:02d}.png", encoded("PNG", pixels=image))
    return pixels


@pytest.fixture
def images(examples, tmp_path):
    pixels = archive_of_images(tmp_path / "images.zip")
    names = names_of(examples[ADDED["a source of images"]], "zip")
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
    assert source.names(np.asarray([5, 2])) == ["a/05.png", "a/02.png"]


def test_a_damaged_member_is_an_image_that_cannot_be_read_and_no_archive_is_refused(
    images, examples, tmp_path
):
    content = bytearray((tmp_path / "images.zip").read_bytes())
    start = content.index(b"a/05.png") + len(b"a/05.png") + 40  # within the first copy's pixels
    content[start : start + 4] = bytes(4)
    (tmp_path / "cut.zip").write_bytes(content)
    kind = names_of(examples[ADDED["a source of images"]], "zip")["ZipSource"]
    damaged, sound = kind(str(tmp_path / "cut.zip")).read(np.asarray([5, 2]))
    assert damaged == b""
    assert sound == images[0].read(np.asarray([2]))[0]
    (tmp_path / "page.zip").write_text("no archive")
    for name in ("page.zip", "none.zip"):
        with pytest.raises(UserError, match=rf"data_dir=.*{name} is no zip file"):
            kind(str(tmp_path / name))


def test_the_source_has_all_that_a_source_has(images):
    """Every member of the protocol, so that no feature fails on it."""
    members = {*Source.__annotations__, *(n for n in vars(Source) if n[0] != "_"), "__len__"}
    assert members >= {"record_spec", "decoding", "classes", "read", "labels", "name", "names"}
    assert [member for member in members if not hasattr(images[0], member)] == []


@pytest.mark.parametrize("lost", [1, 2, 3, 4])
def test_the_operation_is_pils(examples, lost):
    operation = names_of(examples[ADDED["an operation on views"]], "posterize")["Posterize"]()
    image = np.random.default_rng(0).integers(0, 256, (3, 16, 16), dtype=np.uint8)
    planes = [np.asarray(ImageOps.posterize(Image.fromarray(plane), 8 - lost)) for plane in image]
    view = types.SimpleNamespace(lost_bits=jnp.asarray(lost, jnp.int32))
    np.testing.assert_array_equal(operation.on_device(jnp.asarray(image), view), np.stack(planes))
    view = types.SimpleNamespace(lost_bits=tf.constant(lost, tf.int32))
    np.testing.assert_array_equal(operation.on_host(tf.constant(image), view), np.stack(planes))


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
    now, metrics, _ = jax.device_get(train_step(now, mesh.to_devices(one_device, batch)))
    assert metrics["finite"]
    assert now.dictionary.count == 2 * BATCH  # the keys of both views
    assert (
        now.params["backbone"]["conv0"]["kernel"] != before["backbone"]["conv0"]["kernel"]
    ).all()


@pytest.fixture
def rank(examples, monkeypatch):
    """The example of an evaluation, its flags at their defaults as `given`."""
    ((file, hunks),) = changes()[ADDED["an evaluation"]]
    flags = names_of(changed((ROOT / file).read_text(), hunks), "evaluation_flags")
    monkeypatch.setitem(evaluation_flags.EVALUATIONS, "rank", flags["EVALUATIONS"]["rank"])
    command = evaluate.command_of("rank")
    assert command.line == "Measure in how many directions features spread."
    given, words = command.parse(["evaluate", "--untrained"])
    assert (given.untrained, words) == (True, [])
    return names_of(examples[ADDED["an evaluation"]], "rank") | {"given": given}


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


@pytest.fixture(scope="module")
def enlarged(examples, tmp_path_factory):
    """A copy of the package with all that the page adds."""
    folder = tmp_path_factory.mktemp("enlarged")
    shutil.copytree(
        ROOT / "moco_jax", folder / "moco_jax", ignore=shutil.ignore_patterns("__pycache__")
    )
    for file in ADDED.values():
        assert not (folder / file).exists()
        (folder / file).write_text(examples[file])
        for other, hunks in changes()[file]:
            (folder / other).write_text(changed((folder / other).read_text(), hunks))
    return folder


def test_each_addition_is_as_small_as_the_page_says(examples):
    """One new file, a row where its kind has a table, and a name where settings have one."""
    rows = []
    for name, file in ADDED.items():
        lines = [line for _, hunks in changes()[file] for h in hunks for line in h.splitlines()]
        others, added = len(changes()[file]), sum(line[0] == "+" for line in lines)
        rows.append([name, str(len(examples[file].splitlines())), str(others), str(added)])
    print(*(" | ".join(row) for row in rows), sep="\n")
    (table,) = [t for t in tables(PAGE) if t[0][0] == "added"]
    assert table[1:] == rows
    assert all(int(lines) < 50 and int(others) <= 3 for _, lines, others, _ in rows)


def in_the_copy(folder, *words):
    """What Python prints that finds the copied package first."""
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_evaluation_has_its_help(enlarged):
    text = in_the_copy(enlarged, "-m", "moco_jax.evaluate", "rank", "--help")
    assert "Measure in how many directions features spread." in text
    assert "--test_split" in text


IN_THE_COPY = """
import json, sys
import jax, numpy as np, tensorflow as tf
import moco_jax
from moco_jax import encoders
from moco_jax.config import default_config, registry
from moco_jax.data.sources import open_source
from moco_jax.data.views import augment, device_views, recipes, resize
from moco_jax.method import dictionary
from moco_jax.training import checks

config = default_config()
config.update(dict(
    arch="plain", dictionary="young_queue", dataset="zip", data_dir=sys.argv[1], augment="few_bits",
    image_size=32, batch_size=16, bn_groups=2, shuffle_groups=2, queue_size=64, epochs=20,
))
checks.check(config, 1)
tables = ((registry.BACKBONES, encoders.BACKBONES), (registry.VIEWS, recipes.RECIPES))
tables += ((registry.DICTIONARIES, dictionary.DICTIONARIES),)
source, recipe = open_source("zip", "", sys.argv[1]), recipes.create("few_bits", 32)
images = np.stack([tf.io.decode_png(r).numpy() for r in source.read(np.arange(len(source)))])
index = np.arange(len(images), dtype=np.int32)
make = jax.jit(device_views.make_two_views, static_argnums=(1, 4, 5))
devices = make(images.reshape(len(images), -1), images.shape[1:], index, 0 * index, 3, recipe)

def view(image, number):
    drawn = augment.draw_two_views(tf.shape(image)[:2], 3, tf.constant(0, tf.int64), number, recipe)
    made = tuple(augment.apply_view(resize.pad(image), one, recipe) for one in drawn)
    return made, tuple((one.posterize, one.lost_bits) for one in drawn)

data = tf.data.Dataset.from_tensor_slices((images, index.astype(np.int64))).map(view)
hosts, drawn = next(data.batch(len(images)).as_numpy_iterator())
size, numbers = tf.constant([300, 200]), (tf.constant(5, tf.int64), tf.constant(7, tf.int64))
before = augment.draw_two_views(size, 3, *numbers, recipes.create("v3", 224, 0.2))[0]
print(json.dumps({
    "package": moco_jax.__file__,
    "names": [row.known == tuple(table) for row, table in tables],
    "differ": [int((np.asarray(a) != b).sum()) for a, b in zip(devices, hosts)],
    "posterized": int(sum(chosen.sum() for chosen, _ in drawn)),
    "bits": sorted({int(n) for _, lost in drawn for n in lost}),
    "names of images": source.names(np.asarray([5, 2])),
    "uniforms": recipes.UNIFORMS,
    "box": before.box.numpy().tolist(),
}))
"""


def test_a_copy_of_the_package_has_them_all(enlarged, tmp_path):
    """Tables and names agree; hosts make the devices' views; old recipes draw what they drew."""
    archive_of_images(tmp_path / "images.zip")
    said = json.loads(in_the_copy(enlarged, "-c", IN_THE_COPY, str(tmp_path / "images.zip")))
    assert said["package"].startswith(str(enlarged))
    assert said["names"] == [True] * 3
    assert said["differ"] == [0, 0]
    assert 0 < said["posterized"] < 2 * IMAGES
    assert said["bits"] == [1, 2, 3, 4]
    assert said["names of images"] == ["a/05.png", "a/02.png"]
    assert said["uniforms"] == recipes.UNIFORMS + 4
    assert said["box"] == [103, 6, 178, 172]
