"""A set of images has one fingerprint wherever it lies, and another once it has changed."""

import os
import shutil
import tarfile

import numpy as np
import pytest
import tensorflow as tf

from moco_jax.base.errors import UserError
from moco_jax.data.packing import example
from moco_jax.data.sources import fingerprint, open_source
from moco_jax.data.sources.folder import FilesSource
from moco_jax.data.sources.memory import ArraySource
from moco_jax.workdir import integrity, recipe_check
from tests.data.pictures import encoded, write

CONTENTS = [encoded(quality=50 + n) for n in range(4)]


def folder(place, names="0123"):
    return write(place, {f"{int(n) % 2}/{n}.jpg": CONTENTS[int(n) % 4] for n in names})


def tar(place, names="0123"):
    place.mkdir()
    with tarfile.open(place / "a.tar", "w") as file:
        for name in names:
            path = write(place.parent / "files", {f"{name}.jpg": CONTENTS[int(name) % 4]})
            file.add(os.path.join(path, f"{name}.jpg"), f"{name}.jpg")
    return place


def tfrecord(place, names="0123"):
    place.mkdir()
    with tf.io.TFRecordWriter(str(place / "a.tfrecord")) as file:
        for name in names:
            file.write(example(CONTENTS[int(name) % 4], name, 0))
    return place


def arrayrecord(place, names="0123"):
    module = pytest.importorskip("moco_jax.data.sources.arrayrecord")
    pytest.importorskip("array_record", reason="pip install '.[arrayrecord]'")
    place.mkdir()
    for name in names:
        file = module.writer(str(place / f"{name}.array_record"))
        file.write(CONTENTS[int(name) % 4])
        file.close()
    return place


def of(kind, place):
    return fingerprint.of(open_source(kind.__name__, "train", str(place)))


@pytest.mark.parametrize("kind", [folder, tar, tfrecord, arrayrecord])
def test_it_is_that_of_the_set_and_not_of_its_place(kind, tmp_path):
    whole = of(kind, kind(tmp_path / "a"))
    assert whole["images"] == 4
    copied = shutil.copytree(tmp_path / "a", tmp_path / "elsewhere" / "b")
    assert of(kind, copied) == whole
    assert fingerprint.difference(whole, whole) == ""
    fewer = fingerprint.difference(whole, of(kind, kind(tmp_path / "fewer", "012")))
    assert fewer == "4 images -> 3 images"
    # The images lie in another order, or in files of other names.
    other = fingerprint.difference(whole, of(kind, kind(tmp_path / "other", "0127")))
    if kind is tfrecord:  # nothing but the content of a record has changed
        other = fingerprint.difference(whole, of(kind, kind(tmp_path / "turned", "1023")))
    assert other == "4 images as before, but of other names, order or sizes"


def test_classes_in_another_order_and_other_pixels_are_seen():
    pixels = np.zeros((4, 2, 2, 3), np.uint8)
    one, other = (ArraySource(pixels, None, "four", classes=c) for c in (("a", "b"), ("b", "a")))
    found = fingerprint.difference(fingerprint.of(one), fingerprint.of(other))
    assert found == "the classes have other names or another order"
    changed = ArraySource(pixels + 1, None, "four", classes=("a", "b"))
    assert "other names" in fingerprint.difference(fingerprint.of(one), fingerprint.of(changed))


def test_a_name_does_not_run_into_the_next():
    names = [["ab", "c"], ["a", "bc"], ["abc"]]
    assert len({fingerprint.of(FilesSource(some))["names"] for some in names}) == 3


def test_a_run_goes_on_with_other_images_only_where_it_is_allowed(tmp_path, monkeypatch):
    before = {"images": 70, "names": "n", "classes": "c"}
    saved = {"config": {}, "step": 8, "images": before}
    monkeypatch.setattr(integrity, "about", lambda workdir, step: saved)
    config = dict(recipe_check.config_lib.RECIPE)

    def changes(images, *allowed, config=config):
        return recipe_check.recipe_changes(tmp_path, config, set(allowed), 8, images)

    assert changes(before) == {}
    with pytest.raises(UserError, match=r"checkpoint 8: 70 images -> 60.*--allow_change=images"):
        changes(before | {"images": 60})
    with pytest.raises(UserError, match="other names, order or sizes"):
        changes(before | {"names": "m"})
    allowed = changes(before | {"images": 60}, "images")
    assert allowed == {"images": ("70 images", "60 images")}
    # Another set has other images: it is enough to name the set.
    tars = config | {"dataset": "tar"}
    assert set(changes(before | {"names": "m"}, "dataset", config=tars)) == {"dataset", "images"}
    assert recipe_check.unknown_images(tmp_path, 8) == []
    # A checkpoint of an older version is believed, and a line says so.
    del saved["images"]
    assert changes(before | {"images": 60}) == {}
    assert "does not say which images" in recipe_check.unknown_images(tmp_path, 8)[0]
