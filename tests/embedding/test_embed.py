"""Features files hold the encoder's features by name; a search finds what a sort of all finds."""

import io
import json
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from absl import logging
from etils import epath
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from moco_jax.base.errors import UserError
from moco_jax.cli.commands import command_of
from moco_jax.data import resident
from moco_jax.data.damaged import DamagedImages
from moco_jax.data.packing import example
from moco_jax.data.sources import open_source
from moco_jax.data.sources.pixels import Decoding
from moco_jax.doctor import rate
from moco_jax.embedding import columns, search, shards, table
from moco_jax.embedding.encode import SHOWN, Damaged, Embedder, labels_of, rows
from moco_jax.embedding.table import Rows
from moco_jax.inference import trained_encoder
from moco_jax.parallel import mesh
from moco_jax.training import assembly, checkpoint
from moco_jax.workdir import recipe_check
from tests import smallest
from tests.command_lines import command_lines, in_two_processes
from tests.config.test_config import load
from tests.data.pictures import encoded, write
from tests.data.sources.test_tar import tar
from tests.data.sources.test_tfrecord import TFDS, records_to

SIDE = 16
DAMAGED = "dog/2.png"


SMALL = {
    "arch": "resnet10",
    "width": 8,
    "dim": 8,
    "bn_groups": 1,
    "shuffle": "none",
    "queue_size": 64,
    "batch_size": 64,
    "image_size": SIDE,
    "workers": 2,
    "eval_batch_size": 64,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with images in `photos`, and workdirs `run` and `other` of randomly drawn states."""
    place, config = epath.Path(tmp_path_factory.mktemp("embed")), load("digits")
    config.update(SMALL)
    shapes = assembly.program(config, mesh.create_mesh(jax.devices()[:1]), 1437).abstract
    rng = np.random.default_rng(0)

    def drawn(x):
        values = rng.normal(0, 0.2, x.shape) if x.ndim > 1 else np.ones(x.shape)
        return jax.device_put(values.astype(x.dtype), x.sharding)

    for name in ("run", "other"):
        recipe_check.claim_workdir(place / name, config.to_dict(), set())
        checkpoints = checkpoint.Checkpoints(place / name, 2)
        checkpoints.save(4, jax.tree.map(drawn, shapes), config.to_dict(), {})
        checkpoints.close()
    pixels = rng.integers(0, 256, (11, SIDE, SIDE, 3), np.uint8)
    names = [f"{'cat' if n % 2 else 'dog'}/{n}.png" for n in range(10)]
    images = {names[n]: encoded("PNG", pixels=pixels[n]) for n in range(10)}
    images[DAMAGED] = images[DAMAGED][:40]
    write(place / "photos", images)
    write(place, {"new.png": encoded("PNG", pixels=pixels[10])})
    return place


@pytest.fixture(scope="module")
def alone(place):
    """Features `[D]`, pooled and after the head, of one encoded image, with PIL and NumPy."""
    found = trained_encoder.load(str(place / "run"), "key")

    @jax.jit
    def show(inputs):
        features = found.encoder.apply(found.variables, inputs, method="features")
        return features[0], found.encoder.apply(found.variables, features, method="project")[0]

    def both(content):
        pixels = np.asarray(Image.open(io.BytesIO(content)), np.float64)
        inputs = (pixels / 255 - found.config.mean) / np.asarray(found.config.std)
        return dict(zip(("backbone", "output"), show(inputs[None].astype(np.float32)), strict=True))

    return both


def test_each_name_has_the_features_of_its_image(place, alone):
    found = trained_encoder.load(str(place / "run"), "key")
    source = open_source("folder", "", str(place / "photos"))
    for kind in ("backbone", "output"):
        damaged = Damaged(source)
        some = list(
            rows(Embedder(found, kind, mesh.create_mesh(jax.devices()[:2])), source, damaged)
        )
        names = [name for part in some for name in part.names]
        assert names == sorted(f"{'cat' if n % 2 else 'dog'}/{n}.png" for n in range(10) if n != 2)
        assert damaged.names == [DAMAGED]
        labels = np.concatenate([part.labels for part in some])
        np.testing.assert_array_equal(labels, [name.startswith("dog") for name in names])
        assert source.names(np.concatenate([part.indices for part in some])) == names
        features = np.concatenate([part.features for part in some])
        assert features.dtype == np.float32
        for name, row in zip(names, features, strict=True):
            expected = alone((place / "photos" / name).read_bytes())[kind]
            np.testing.assert_allclose(row, expected, rtol=2e-4, atol=1e-5)


def made_up(number=50, width=6):
    rng = np.random.default_rng(1)
    features = rng.normal(size=(number, width)).astype(np.float32)
    names = [f"{n:03d}/{'x' * (n % 7)}é.jpg" for n in range(number)]
    return Rows(features, names, np.arange(number) * 2, rng.integers(0, 9, number))


# What a table must say of its encoder and images, here of none.
ENCODER = {
    "place": "none",
    "which": "query",
    "step": 1,
    "arch": "resnet18",
    "features": "backbone",
    "augment": "linear",
    "image_size": 8,
    "channels": 3,
}
IMAGES = {"dataset": "folder", "split": "", "data_dir": "", "number": 50, "root": "", "classes": []}
FACTS = {"encoder": ENCODER, "images": IMAGES}


def saved(path, whole, labels=True, sizes=(1, 20, 3, 26)):
    """The table at `path`, written in parts."""
    facts = json.loads(json.dumps(FACTS))
    with table.writing(str(path), facts) as write_rows:
        first = 0
        for size in sizes:
            part = slice(first, first + size)
            known = whole.labels[part] if labels else None
            write_rows(Rows(whole.features[part], whole.names[part], whole.indices[part], known))
            first += size
        facts["damaged"] = ["bad.jpg"]
    return table.opened(str(path))


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(columns, "BLOCK", 16)


def test_both_formats_hold_the_same(tmp_path, small_blocks):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install '.[parquet]'")
    whole = made_up()
    tables = [saved(tmp_path / f"x.{kind}", whole) for kind in ("npz", "parquet")]
    some = np.asarray([49, 0, 17, 17])
    for found in tables:
        assert (found.number, found.width) == (50, 6)
        assert found.facts["damaged"] == ["bad.jpg"]
        for column in table.PARQUET:
            expected = np.asarray(getattr(whole, column))
            blocks = list(found.blocks(column))
            assert max(map(len, blocks)) <= 16
            np.testing.assert_array_equal(np.concatenate(blocks), expected)
            np.testing.assert_array_equal(found.take(column, some), expected[some])
    # As anyone else reads them.
    arrays = np.load(tmp_path / "x.npz")
    np.testing.assert_array_equal(arrays["features"], whole.features)
    assert arrays["features"].dtype == np.float32
    assert arrays["names"].tolist() == whole.names
    assert json.loads(str(arrays["facts"])) == tables[1].facts
    columns = parquet.read_table(tmp_path / "x.parquet").to_pydict()
    assert columns["name"] == whole.names
    np.testing.assert_array_equal(columns["features"], whole.features)
    assert "labels" not in saved(tmp_path / "y.parquet", whole, labels=False).columns
    assert "labels" not in saved(tmp_path / "y.npz", whole, labels=False).columns


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_writing_that_is_stopped_leaves_the_old_file(tmp_path, kind):
    if kind == "parquet":
        pytest.importorskip("pyarrow", reason="pip install '.[parquet]'")
    whole = made_up()
    saved(tmp_path / f"x.{kind}", whole)
    before = (tmp_path / f"x.{kind}").read_bytes()
    writing = table.writing(str(tmp_path / f"x.{kind}"), {})
    writing.__enter__()(whole)
    assert writing.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None) is False
    assert [path.name for path in tmp_path.iterdir()] == [f"x.{kind}"]
    assert (tmp_path / f"x.{kind}").read_bytes() == before


def test_a_disk_that_is_too_small_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"x.npz needs 1\.64e\+04 TB while it is written, and its disk has"
    ):
        table.require_room(str(tmp_path / "x.npz"), 10**12, 2048)


def test_a_search_equals_scikit_learns(tmp_path, small_blocks):
    whole = made_up()
    whole.features[[5, 20, 21, 40]] = whole.features[33]  # equal images: any of them may come first
    found = saved(tmp_path / "x.npz", whole)
    reference = NearestNeighbors(metric="cosine", algorithm="brute").fit(whole.features)
    words = ["/no/such.jpg", whole.names[7], whole.names[33], whole.names[49]]
    own = search.find(found, words)
    assert own.tolist() == [-1, 7, 33, 49]
    queries = np.concatenate([np.ones((1, 6), np.float32), whole.features[own[1:]]])
    counted: list[int] = []
    cosines, near, left_out = search.nearest(found, queries, own, 3, counted.append)
    assert counted == [16, 32, 48, 50]
    for query, row, ours, places in zip(queries, own, cosines, near, strict=True):
        distances, others = reference.kneighbors(query[None], 50)
        kept = others[0] != row
        np.testing.assert_allclose(ours, 1 - distances[0][kept][:3], atol=1e-6)
        assert row not in places
        if row != 33:
            np.testing.assert_array_equal(places, others[0][kept][:3])
    assert set(near[2]) <= {5, 20, 21, 40}
    cosines, near, left_out = search.nearest(found, queries, own, 200, counted.append)
    assert near.shape == (4, 49)
    assert left_out == 0


def test_names_are_short_and_labels_may_lack(tmp_path):
    image = encoded()
    tar(tmp_path / "a.tar", [("cat/0.jpg", image), ("dog/1.jpg", image)])
    records_to(tmp_path / "named.tfrecord", [example(image, "cat/0.jpg", None)] * 2)
    listed = write(tmp_path, {"list.txt": b"cat/0.jpg\n/x/1.jpg\n", "cat/0.jpg": image})
    both = np.asarray([1, 0])
    records_to(tmp_path / "x.tfrecord", [example(image, "x", 3), example(image, "x", None)])
    some = open_source("tfrecord", "", f"{tmp_path}/x.tfrecord")
    assert labels_of(some, both).tolist() == [-1, 3]
    for expected, arguments in {
        ("a.tar/dog/1.jpg", "a.tar/cat/0.jpg"): ("tar", "", f"{tmp_path}/a.tar"),
        ("cat/0.jpg", "cat/0.jpg"): ("tfrecord", "", f"{tmp_path}/named.tfrecord"),
        ("/x/1.jpg", "cat/0.jpg"): ("folder", "", f"{listed}/list.txt"),
        ("digits test image 1", "digits test image 0"): ("digits", "test", ""),
    }.items():
        assert open_source(*arguments).names(both) == list(expected)


@pytest.mark.skipif(not TFDS, reason="MOCO_JAX_TFDS names no TFDS data directory with cifar10")
def test_tfds_examples_are_called_by_their_own_names():
    found = open_source("tfds:cifar10", "test[3:5]", TFDS)
    names = found.names(np.arange(2))
    assert len(set(names)) == 2
    assert all(name.startswith("test_") for name in names)
    assert found.name(0).startswith(f"{names[0]}: cifar10 test[3:5] example 0")


def test_command_lines(place, alone):
    pytest.importorskip("pyarrow", reason="pip install '.[parquet]'")
    run = "--workdir=run"
    compressed = {"facts": "{}", "features": np.zeros((2, 3))}
    np.savez_compressed(place / "small.npz", **compressed)
    np.savez(place / "foreign.npz", features=np.zeros((2, 3)))
    (place / "bad").mkdir()
    (place / "bad" / "x.png").write_bytes(b"no image")
    (place / "bad.jpg").write_bytes(b"no image")
    npz, _, named, strange, *refused = command_lines(
        "moco_jax.embed",
        [
            [run, "--data_dir=photos", "--out=f.npz"],
            [run, "--data_dir=photos", "--out=out/f.parquet", "--which=key"],
            ["search", "f.npz", "cat/3.png", "photos/dog/4.png", "--k=3"],
            ["search", "out/f.parquet", "new.png", "cat/3.png", "--k=20", "--out=pictures/new.png"],
            [run, "--out=f.npz", "--data_dir=none"],
            ["--workdir=none", "--out=f.txt", "--data_dir=photos"],
            [run, "--out=f.npz", "--data_dir=photos", "--dataset=digits"],
            [run, "--out=photos/cat/1.png/f.npz", "--data_dir=photos"],
            [run, "--out=bad.npz", "--data_dir=bad"],
            [run, "--out=bad.npz", "--data_dir=photos", "--split=test"],
            ["--workdir=none", "--out=f.npz", "--data_dir=photos"],
            [run, "--data_dir=photos"],
            ["search", "f.npz"],
            ["search", "f.npz", "nothing.png"],
            ["search", "f.npz", "bad.jpg"],
            ["search", "f.npz", "new.png", "--workdir=other"],
            ["search", "f.npz", "new.png", "--workdir=gone"],
            ["search", "small.npz", "new.png"],
            ["search", "foreign.npz", "new.png"],
            ["search", "none.npz", "new.png"],
            ["search", "new.png", "new.png"],
            ["search", "f.npz", "new.png", "--k=0"],
        ],
        place,
    )
    assert "written: f.npz, 9 x 64 features" in npz[0], npz
    assert "1 damaged images are left out: dog/2.png; the first is" in npz[0]
    tables = [table.opened(str(place / name)) for name in ("f.npz", "out/f.parquet")]
    assert (
        tables[0].take("names", np.arange(9)).tolist()
        == tables[1].take("names", np.arange(9)).tolist()
    )
    features, of_key = (np.concatenate(list(found.blocks("features"))) for found in tables)
    third = alone((place / "photos" / "cat" / "5.png").read_bytes())["backbone"]
    np.testing.assert_allclose(of_key[2], third, rtol=2e-4, atol=1e-5)
    assert not np.allclose(features[2], third, rtol=0.01)
    assert tables[0].facts["images"]["classes"] == ["cat", "dog"]
    assert tables[0].facts["damaged"] == [DAMAGED]

    assert "nearest to cat/3.png (row 1)" in named[0], named
    assert "nearest to photos/dog/4.png (row 6)" in named[0]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = unit @ unit[1]
    best = [n for n in np.argsort(-cosines) if n != 1][:3]
    names = tables[0].take("names", np.arange(9))
    lines = named[0].split("nearest to ")[1].splitlines()[3:6]
    rows = enumerate(best, 1)
    expected = [[f"{r}", f"{cosines[n]:.4f}", names[n], names[n][:3]] for r, n in rows]
    assert [line.split() for line in lines] == expected
    assert "picture: f_nearest.png" in named[0]
    assert Image.open(place / "f_nearest.png").width > 400

    assert "nearest to new.png (encoded by resnet10, key, step 4" in strange[0], strange
    query = alone((place / "new.png").read_bytes())["backbone"]
    unit = of_key / np.linalg.norm(of_key, axis=1, keepdims=True)
    cosines = np.sort(unit @ (query / np.linalg.norm(query)))[::-1]
    lines = strange[0].split("nearest to ")[1].splitlines()[3:11]
    np.testing.assert_allclose([float(line.split()[1]) for line in lines], cosines[:8], atol=1e-4)
    assert (place / "pictures" / "new.png").exists()

    words = (
        "data_dir=none is no folder",
        "out='f.txt' is no file here that ends in .npz or .parquet",
        "data_dir=photos says where",
        "cannot be written",
        "none of the 1 images can be decoded; bad/x.png",
        "dataset='folder' has none",
        "none is not there",
        "--out=FILE are needed",
        "use one of these",
        "'nothing.png' is neither a file nor a name in f.npz, as 'cat/1.png' is",
        "the query bad.jpg cannot be decoded",
        "other is not the one that made these features: its weights differ",
        "gone is not there",
        "small.npz is compressed",
        "foreign.npz is damaged, or not written by",
        "none.npz cannot be read (No such file",
        "'new.png' is no features file",
        "--k",
    )
    for (printed, errors), message in zip(refused, words, strict=True):
        assert printed.endswith("ended with 2\n"), (printed, errors)
        told = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert len(told) == 1, errors
        assert message in told[0]
        assert "Traceback" not in errors
    assert not (place / "bad.npz").exists()
    assert not [path for path in place.iterdir() if path.name.endswith(".part")]


def test_tables_of_older_versions_say_nothing_of_a_background(tmp_path):
    found = saved(tmp_path / "x.npz", made_up(3), sizes=(3,))
    now = dict.fromkeys(SHOWN) | {"channels": 3, "white": 0.0, "exif_rotation": False}
    now |= {"background": -1, "max_pixels": 178_956_970}
    older = {k: v for k, v in now.items() if k not in ("background", "max_pixels")}
    found.facts = {"encoder": older | {"which": ""}}
    assert Decoding.of(found.facts["encoder"]) == Decoding()
    assert Decoding.of(now | {"background": 7}) == Decoding(background=7)
    search.same_encoder(found, SimpleNamespace(facts=lambda *_: now), "runs/mine")
    now["background"] = 7
    with pytest.raises(UserError, match="background=7, and they were made with -1"):
        search.same_encoder(found, SimpleNamespace(facts=lambda *_: now), "runs/mine")


def test_pictures_are_those_of_the_rows(tmp_path):
    digits = open_source("digits", "test", "")
    whole = made_up(3)._replace(indices=np.asarray([4, 0, 7]))
    whole = whole._replace(names=digits.names(whole.indices))
    found = saved(tmp_path / "x.npz", whole, sizes=(3,))
    made = {"augment": "digits", "image_size": 32}
    made |= {"channels": 3, "white": 0.0, "exif_rotation": False}
    images = {"dataset": "digits", "split": "test", "data_dir": "", "number": 1440, "root": ""}
    found.facts = {"encoder": made, "images": images}
    pictures = search.pictures_of_rows(found, np.asarray([2, 0]))
    np.testing.assert_array_equal(pictures, digits.images[[7, 4]])
    images["number"] = 1441
    with pytest.raises(UserError, match="no longer holds what these features were made of"):
        search.pictures_of_rows(found, np.arange(2))
    images["root"] = str(tmp_path)
    assert search.pictures_of_rows(found, np.arange(2)) == [None, None]


# What both processes do before their command lines: resident images, once with too many damaged;
# and a first joining of shards that is cut off, so that one shard is to be made anew.
IN_BOTH = """
import numpy as np
from moco_jax.data import damaged, resident
from moco_jax.data.sources import open_source
from moco_jax.data.views import device_views
from moco_jax.doctor import rate
from moco_jax.embedding import shards
from moco_jax.parallel import joining, mesh
from tests import smallest
own = int(flags[2].partition("=")[2])
rate.READ_SECONDS, shards.SHARD = 0.01, 3
rate.source_pairs_per_second = lambda *_: [400, 40][own]
joining.start_hosts(False, flags[0].partition("=")[2], 2, own, False)

source, over, seen = open_source("folder", "", "photos"), mesh.create_mesh(), []
shape, read = resident.shape_of(source), source.read
source.read = lambda indices: (seen.extend(indices.tolist()), read(indices))[1]
images, stand_in = resident.load(over, source, shape, 1, damaged.DamagedImages(1), print)
index = stand_in[mesh.local_rows(over, 8)].astype(np.int32)
taken = jax.jit(device_views.take_rows, static_argnums=2)(
    images, mesh.to_devices(over, index), over)
refused = ""
try:
    resident.load(over, source, shape, 1, damaged.DamagedImages(0), lambda done: None)
except Exception as error:
    refused = str(error)
np.savez(f"resident{own}.npz", stand_in=stand_in, seen=seen, refused=refused,
    taken=mesh.to_hosts(over, taken))

joined, make = shards.Shards.joined, shards.Shards.make
def cut_off(self, *arguments):
    shards.Shards.joined = joined
    self.note(1).unlink()
    raise OSError("cut off")
def noted(self, number, *arguments):
    open(f"made{own}.txt", "a").write(f"{number} ")
    make(self, number, *arguments)
shards.Shards.make = noted
if own == 0:
    shards.Shards.joined = cut_off
"""


@pytest.fixture
def quiet_as_before():
    """Logs are as loud afterwards as before a command line was executed in this process."""
    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)


def test_two_processes_do_what_one_does(place, monkeypatch, capsys, quiet_as_before):
    """Embedding, the doctor and resident images: each process does a part, the result is one's."""
    pytest.importorskip("pyarrow", reason="pip install '.[parquet]'")
    monkeypatch.chdir(place)
    monkeypatch.setattr(rate, "source_pairs_per_second", lambda *_: 40)
    monkeypatch.setattr(rate, "READ_SECONDS", 0.01)
    run = ["embed", "--workdir=run", "--data_dir=photos"]
    small = SMALL | {"batch_size": 8, "eval_batch_size": 8, "queue_size": 16, "max_bad_images": 2}
    small["arch"] = smallest.ARCH
    recipe = ["--config=folder", *(f"--config.{name}={value}" for name, value in small.items())]
    doctor = ["doctor", *recipe, "--config.data_dir=photos", "--workdir=new"]
    lines = [[*run, "--out=two.npz"]] * 2 + [[*run, "--out=two.parquet"], doctor]
    first, second = in_two_processes(lines, 4, place, IN_BOTH)

    source = open_source("folder", "", "photos")
    shape = resident.shape_of(source)
    over = mesh.create_mesh()
    images, stand_in = resident.load(over, source, shape, 1, DamagedImages(1), print)
    halves = [np.load(f"resident{number}.npz") for number in range(2)]
    assert [set(half["seen"].tolist()) for half in halves] == [{*range(8)}, {8, 9}]
    for half in halves:
        np.testing.assert_array_equal(half["stand_in"], stand_in)
        np.testing.assert_array_equal(half["taken"], np.asarray(images)[stand_in[:8]])
        assert re.match(r"process 0 of 2: more than max_bad_images=0 damaged", str(half["refused"]))

    for name in ("one.npz", "one.parquet"):
        command_of("embed").call([*run, f"--out={name}"])
        assert (place / name).read_bytes() == (place / f"two{name[3:]}").read_bytes()
    assert [epath.Path(f"made{n}.txt").read_text() for n in range(2)] == ["0 2 1 0 2 ", "1 3 1 3 "]
    assert not shards.folder_of("two.npz").exists()
    for out, errors in (first[0], second[0]):
        assert "ended with 2" in out
        assert errors.strip() == "error: process 0 of 2: cut off"
    assert "written: two.npz, 9 x 64 features" in first[1][0], first
    assert "1 damaged images are left out: dog/2.png" in first[1][0]
    assert second[1] == second[2] == ("", "")

    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        command_of("doctor").call(doctor)
    alone, (both, _) = capsys.readouterr().out, first[3]
    assert ended.value.code == 0
    assert second[3][0] == "ended with 0\n"
    slow = "warning  2 hosts make 40 to 400 view pairs a second each, process 1 the fewest"
    added = ("\nhosts\n", "2 processes have the same", "2 processes see the same", slow)
    for words in added:
        assert words in both, both

    def told(text, without=()):
        """Lines with their numbers masked: times and free memory differ from call to call."""
        lines = [line for line in text.splitlines() if not any(w.strip() in line for w in without)]
        return [re.sub(r"([\d.,]+( ?[kMG]?B)?[dhms]?)+", "#", line) for line in lines if line]

    busy = "this host makes"  # of two, the slower one
    assert told(both, ("ended with", busy, *added)) == told(alone, (busy,))
    parts = [text.partition("\nimages\n")[2].partition("\nviews\n")[0] for text in (alone, both)]
    assert parts[0] == parts[1]
