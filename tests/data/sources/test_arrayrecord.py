"""ArrayRecord files of images and of examples are read as written; a missing package is said."""

import sys

import numpy as np
import pytest

from moco_jax.base.errors import UserError
from moco_jax.data.packing import example
from moco_jax.data.sources import arrayrecord
from moco_jax.data.sources.arrayrecord import ArrayRecordSource, writer
from moco_jax.data.sources.tfrecord import Slice
from tests.data.pictures import decoded, encoded, opened


@pytest.fixture(autouse=True)
def _package(request):
    if "missing" not in request.node.name:
        pytest.importorskip("array_record", reason="pip install '.[arrayrecord]'")


def records_to(path, records):
    file = writer(str(path))
    for record in records:
        file.write(record)
    file.close()
    return str(path)


@pytest.mark.parametrize("wrapped", [True, False])
def test_images_and_examples_are_read_in_any_order(tmp_path, wrapped):
    contents = [encoded(), encoded("PNG"), encoded("WEBP"), b"words"]
    records = [example(c, f"n{i}", i + 4) for i, c in enumerate(contents)] if wrapped else contents
    records_to(tmp_path / "a.array_record", records[:1])
    records_to(tmp_path / "b.arrayrecord", records[1:])
    source = ArrayRecordSource(str(tmp_path))
    assert source.read(np.asarray([3, 0])).tolist() == [records[3], records[0]]
    labels = source.labels(np.arange(4))
    assert (labels.tolist() if wrapped else labels) == ([4, 5, 6, 7] if wrapped else None)
    assert source.name(2).startswith("n2: " if wrapped else f"{tmp_path.name} example 2")
    for number, (image, sound) in enumerate(decoded(source)):
        assert sound == (number < 3)
        if sound:
            np.testing.assert_array_equal(image, opened(contents[number]))


def test_slices_are_read(tmp_path):
    path = records_to(tmp_path / "a.array_record", [b"%d" % n for n in range(9)])
    found = arrayrecord.ArrayRecords([Slice(path, 2, 3), Slice(path, 0, -1)])
    assert found.read(np.asarray([0, 2, 3])).tolist() == [b"2", b"4", b"0"]


def test_what_is_damaged_is_refused_or_flagged(tmp_path):
    path = records_to(tmp_path / "a.array_record", [encoded(quality=q) for q in range(40, 80)])
    source = ArrayRecordSource(path)
    whole = bytearray((tmp_path / "a.array_record").read_bytes())
    ending = encoded(quality=50)[-300:]
    place = whole.index(ending) if ending in whole else len(whole) // 3
    whole[place : place + 200] = b"\0" * 200
    (tmp_path / "a.array_record").write_bytes(whole)
    sound = [ok for _, ok in decoded(source)]
    assert 0 < len(sound) - sum(sound) < 3
    (tmp_path / "a.array_record").write_bytes(whole[:1000])
    with pytest.raises(UserError, match="damaged or cannot be read"):
        ArrayRecordSource(path)


def test_a_missing_package_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "array_record.python.array_record_data_source", None)
    (tmp_path / "a.array_record").write_bytes(b"")
    with pytest.raises(UserError, match="pip install array_record"):
        ArrayRecordSource(str(tmp_path))
