"""`open_source` opens every kind with its settings, or refuses in one line what it cannot open."""

import numpy as np
import pytest

from moco_jax.base.errors import UserError
from moco_jax.data import sources
from moco_jax.data.packing import example
from moco_jax.data.sources import arrayrecord
from moco_jax.data.sources.pixels import Decoding
from tests.data.pictures import decoded, encoded, write
from tests.data.sources.test_tar import tar
from tests.data.sources.test_tfrecord import TFDS, records_to


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("folder", "train", ""), "data_dir='' names no folder"),
        (("folder", "train", "/no/such"), "data_dir=/no/such is no folder"),
        (("tar", "train", ""), "data_dir='' names no tar files"),
        (("tar", "train", "/no/such.tar"), "there is no tar file /no/such.tar"),
        (("tfrecord", "train", "/no/x-{0..3}"), "there is no tfrecord file /no/x-0"),
        (("tfrecord", "train", "/no/x-*"), "there is no tfrecord file /no/x-"),
        (("tar", "train", "/no/{3..1}.tar"), "{3..1} names nothing"),
        (("tar", "train", "/no/{3}.tar"), r"\{3\} names nothing"),
        (("nothing", "train", ""), "dataset='nothing' is unknown; use one of digits"),
        (("digits", "valid", ""), "split='valid' is unknown; dataset='digits' has train and test"),
    ],
)
def test_what_cannot_be_opened_is_refused_in_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        sources.open_source(*arguments)


@pytest.mark.parametrize(("kind", "ending"), [("tar", "tar"), ("tfrecord", "tfrecord")])
def test_what_the_system_will_not_read_is_refused_in_one_line(tmp_path, kind, ending):
    (tmp_path / f"x.{ending}").mkdir()
    with pytest.raises(UserError, match=rf"data_dir=.*x\.{ending} is no regular file"):
        sources.open_source(kind, "train", str(tmp_path))


def test_more_examples_than_an_index_can_name_are_refused(monkeypatch):
    monkeypatch.setattr(sources, "LARGEST", 1000)
    with pytest.raises(UserError, match="'digits' has 1437 examples; at most 1000"):
        sources.open_source("digits", "train", "")


@pytest.mark.parametrize("kind", ["folder", "tar", "tfrecord", "arrayrecord"])
def test_every_kind_turns_images_where_asked_for(tmp_path, kind):
    content = encoded(orientation=6)
    if kind == "folder":
        write(tmp_path, {"x.jpg": content})
    elif kind == "tar":
        tar(tmp_path / "x.tar", [("x.jpg", content)])
    elif kind == "tfrecord":
        records_to(tmp_path / "x.tfrecord", [example(content, "x", None)])
    else:
        pytest.importorskip("array_record", reason="pip install '.[arrayrecord]'")
        file = arrayrecord.writer(str(tmp_path / "x.array_record"))
        file.write(content)
        file.close()
    shapes = []
    for exif_rotation in (False, True):
        source = sources.open_source(kind, "train", str(tmp_path), None, Decoding(exif_rotation))
        ((image, sound),) = decoded(source)
        assert sound
        shapes.append(image.shape)
    assert shapes == [(97, 131, 3), (131, 97, 3)]


@pytest.mark.skipif(not TFDS, reason="MOCO_JAX_TFDS names no TFDS data directory with cifar10")
@pytest.mark.parametrize("exif_rotation", [False, True])
def test_a_tfds_set_knows_what_was_asked_for(exif_rotation):
    found = sources.open_source("tfds:cifar10", "test[:5]", TFDS, None, Decoding(exif_rotation))
    assert all(name.startswith("test_") for name in found.names(np.arange(2)))
    assert found.classes[:3] == ("airplane", "automobile", "bird")
    named = sources.open_source("tfds:imagenet2012", "validation[:2]", TFDS)
    assert all(name.endswith(".JPEG") for name in named.names(np.arange(2)))
    assert found.decoding == Decoding(exif_rotation)
    assert len(decoded(found)) == 5
