"""What TFDS's own files say of a prepared set is what TFDS makes of them."""

import json
from pathlib import Path

import numpy as np
import pytest

from moco_jax.base.errors import UserError
from moco_jax.data.sources import tfds, tfds_files
from tests.data.pictures import encoded
from tests.data.sources.toy_tfds import write_toy

CLASSES = ("a cat", "dog")
NUMBER = 25
SPLITS = (
    "train",
    "test",
    "train[3:]",
    "train[:9]",
    "train[7:20]",
    "train[-5:]",
    "train[:-5]",
    "test[12:13]",
    "train[:10%]",
    "train[33%:67%]",
    "train[-30%:]",
    "test[50%:]",
)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    contents = [encoded("PNG", pixels=np.full((4, 5, 3), n, np.uint8)) for n in range(NUMBER)]
    place = tmp_path_factory.mktemp("tfds")
    return str(write_toy(place, contents, [n % 2 for n in range(NUMBER)], CLASSES))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ["toy", "toy:1.0.0"])
def test_splits_features_and_classes_are_tfds_own(toy, name, split):
    found = tfds_files.read(name, split, toy)
    builder = tfds._open(name, toy, "")
    assert found.slices == tfds._slices(builder, name, split)
    assert found.features == tfds._features(builder, name)
    assert tuple(found.classes) == tuple(builder.info.features["label"].names) == CLASSES
    assert found.format == builder.info.file_format.value


@pytest.mark.parametrize("split", ["train[5:5]", "train[:0]", "test[:-25]"])
def test_a_part_without_an_example_is_refused(toy, split):
    with pytest.raises(UserError, match="holds no example"):
        tfds_files.read("toy", split, toy)


@pytest.mark.parametrize("split", ["dev", "train[26:]", "train[:-26]"])
def test_an_unknown_part_is_refused(toy, split):
    with pytest.raises(UserError, match=r"of tfds:toy is unknown.* there are train, test"):
        tfds_files.read("toy", split, toy)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("toy", "train+test"),
        ("toy", "all"),
        ("toy", "train[:]"),
        ("toy", "train[1shard:]"),
        ("toy", "train[5:50%]"),
        ("toy:2.0.0", "train"),
        ("toy:1.*.*", "train"),
        ("toy/config", "train"),
        ("other", "train"),
    ],
)
def test_what_only_tfds_understands_is_left_to_it(toy, name, split):
    with pytest.raises(tfds_files.Unread):
        tfds_files.read(name, split, toy)


def test_the_source_reads_both_ways_alike(toy):
    plain, whole = (tfds.TFDSSource("toy", split, toy) for split in ("train", "train+test[:0]"))
    indices = np.arange(NUMBER)
    assert plain.read(indices).tolist() == whole.read(indices).tolist()
    assert plain.labels(indices).tolist() == whole.labels(indices).tolist()
    assert plain.names(indices) == whole.names(indices) == [f"train {n}" for n in range(NUMBER)]


@pytest.mark.parametrize(
    "change",
    [
        {"splits": None},
        {"splits": [{"name": "train"}]},
        {"splits": [{"name": "train", "shardLengths": ["many"]}]},
        {"fileFormat": "riegeli"},
        {"supervisedKeys": []},
    ],
)
def test_files_of_another_form_are_left_to_tfds(toy, tmp_path, change):
    folder = tmp_path / "toy/1.0.0"
    folder.mkdir(parents=True)
    for name in ("dataset_info.json", "features.json"):
        text = json.loads((Path(toy) / "toy/1.0.0" / name).read_text())
        (folder / name).write_text(json.dumps(text | change))
    with pytest.raises(tfds_files.Unread):
        tfds_files.read("toy", "train", str(tmp_path))
