"""Images of Parquet files are read one by one, however they are stored; what is none is refused."""

import json
import os

import numpy as np
import pytest

from moco_jax.base import storage
from moco_jax.base.errors import UserError
from moco_jax.config.settings import SETTINGS
from moco_jax.data.sources import fingerprint, open_source, parquet, snappy_blocks, spans
from moco_jax.data.sources.parquet_pages import hybrid
from tests.data.sources.tables import pa, table
from tests.data.sources.tables import parquet as written

RNG = np.random.default_rng(0)
# Some are as random as a JPEG, some are all zeros; one is null, one empty, and two are the same.
CELLS = [
    bytes(n) if n % 3 == 0 else RNG.integers(0, 256, n, np.uint8).tobytes()
    for n in RNG.integers(1, 150_000, 40).tolist()
]
CELLS[7], CELLS[9], CELLS[11] = None, CELLS[3], b""
KEPT = [cell or b"" for cell in CELLS]
LAYOUTS = {
    "one group, a dictionary": {},
    "one group, one page": {"use_dictionary": False},
    "version 2": {"data_page_version": "2.0", "use_dictionary": False},
    "small groups": {"row_group_size": 7, "use_dictionary": False},
    "small pages": {"use_content_defined_chunking": True, "use_dictionary": False},
}


def codecs():
    return ["none", *filter(pa.Codec.is_available, ("snappy", "gzip", "zstd", "brotli", "lz4"))]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["struct", "bytes"])
def test_every_image_is_what_was_written_in_any_order(tmp_path, layout, kind):
    made = table(CELLS, [n % 3 for n in range(len(CELLS))], "abc")
    if kind == "bytes":
        made = pa.table(
            {"x": pa.array(CELLS, pa.large_binary()), "label": ["q", "r", None, ""] * 10}
        )
    order = RNG.permutation(len(CELLS))
    for codec in codecs():
        place = written(tmp_path / "x.parquet", made, compression=codec, **LAYOUTS[layout])
        source = parquet.ParquetSource(place)
        assert source.read(order).tolist() == [KEPT[n] for n in order], codec
        numbers = source.labels(np.arange(4)).tolist()
        if kind == "bytes":
            assert (source.classes, numbers) == (("q", "r"), [0, 1, -1, -1])
        else:
            assert (source.classes, numbers) == (("a", "b", "c"), [0, 1, 2, 0])


def test_an_epoch_in_any_order_reads_little_more_than_the_images(tmp_path):
    """Of one group of images in one page, as pyarrow writes them by default."""
    cells = [RNG.integers(0, 256, 100_000, np.uint8).tobytes() for _ in range(60)]
    for codec, most in (("none", 1.0), ("snappy", 1.75)):
        place = written(tmp_path / f"{codec}.parquet", table(cells), compression=codec)
        facts = pa.parquet.ParquetFile(place).metadata
        assert facts.num_row_groups == 1
        source = parquet.ParquetSource(place)
        each = [source.records.read_bytes(np.asarray([n])) for n in RNG.permutation(60)]
        assert 1 <= sum(each) / 6_000_000 <= most
        assert source.remarks == []
    place = written(tmp_path / "gzip.parquet", table(cells), compression="gzip")
    (said,) = parquet.ParquetSource(place).remarks
    assert "60 images lie within larger compressed pages, so that training reads 60 times" in said


def test_a_read_holds_few_pages_at_once(tmp_path, monkeypatch):
    cells = CELLS[20:40]
    options = {"compression": "gzip", "row_group_size": 2, "use_dictionary": False}
    source = parquet.ParquetSource(written(tmp_path / "x.parquet", table(cells), **options))
    asked, read_many = [], source.records._ranges.read_many

    def noted(files, offsets, lengths):
        asked.append(len(files))
        return read_many(files, offsets, lengths)

    monkeypatch.setattr(source.records._ranges, "read_many", noted)
    assert source.read(np.arange(20)).tolist() == cells
    assert asked == [10]
    monkeypatch.setattr(spans, "AT_ONCE", 1)
    assert source.read(np.arange(20)).tolist() == cells
    # The last page is still there, as for whoever reads front to back.
    assert asked == [10, *[1] * 9, 0]
    assert source.read(np.asarray([19, 0, 19])).tolist() == [cells[19], cells[0], cells[19]]
    assert asked[11:] == [1, 0]
    assert source.read(np.arange(0)).tolist() == []


def test_files_are_joined_in_order_and_their_index_is_kept(tmp_path, monkeypatch):
    folder, index = tmp_path / "set", str(tmp_path / "index")
    for number in (0, 1):
        some = table(CELLS[20 * number :][:20], [f"c{n % (2 + number)}" for n in range(20)])
        written(folder / f"train-{number:05d}-of-00002.parquet", some)
    source = open_source("parquet", "", str(folder), index)
    assert source.read(np.arange(40)).tolist() == KEPT
    assert source.classes == ("c0", "c1", "c2")
    np.testing.assert_array_equal(source.labels(np.asarray([1, 20, 22])), [1, 0, 2])
    assert source.name(21) == "row 1 of train-00001-of-00002.parquet"
    assert source.names(np.asarray([21])) == ["train-00001-of-00002.parquet/1"]
    found = fingerprint.of(source)
    with monkeypatch.context() as patched:
        patched.setattr(parquet, "_scan", lambda *_: pytest.fail("made again"))
        assert fingerprint.of(open_source("parquet", "", str(folder), index)) == found
    written(folder / "train-00001-of-00002.parquet", table(CELLS[21:], ["c0"] * 19))
    other = fingerprint.of(open_source("parquet", "", str(folder), index))
    assert fingerprint.difference(found, other) == "40 images -> 39 images"
    os.remove(folder / "train-00000-of-00002.parquet")
    with pytest.raises(UserError, match="holds 1 of the 2 shards train-"):
        open_source("parquet", "", str(folder), index)


def test_a_bucket_holds_parquet_files_too(tmp_path, network):
    network.busy = 0.1
    path = written(tmp_path / "x.parquet", table(CELLS, list(range(40))))
    with open(path, "rb") as file:
        storage.write("gs://bucket/tables/x.parquet", file.read())
    source = open_source("parquet", "", "gs://bucket/tables", str(tmp_path / "index"))
    assert source.read(np.arange(40)[::-1]).tolist() == KEPT[::-1]
    assert source.labels(np.asarray([5, 39])).tolist() == [5, 39]


def two(kind):
    return pa.table({"a": [b"x"], "b": [b"y"], "n": [kind]})


WRONG = {
    "several columns may be images": (two(1), "parquet", r"images, a, b; name one: .*'parquet:a'"),
    "no images": (pa.table({"n": [1]}), "parquet", r"no column of encoded images .* n \(int64\)"),
    "no such column": (two(1), "parquet:c", r"'parquet:c': .* has no column 'c'; it has a \(bin"),
    "no images there": (two(1), "parquet:n", "column 'n' of .* is int64; images are encoded"),
    "no classes there": (two(1.5), "parquet:a,n", "column 'n' of .* is double; classes are"),
    "no class": (two(-5), "parquet:a,n", r"row 0 of x\.parquet has the class -5"),
    "paths alone": (table([None, None]), "parquet", "holds no bytes of an image"),
    "no rows": (table([]), "parquet", "holds no bytes of an image"),
    "no name": (table([b"x"], [2], ["a"]), "parquet", "has class 2, but only 1 class names"),
    "beyond": (
        pa.table({"a": [b"x"], "label": pa.array([2**63], pa.uint64())}),
        "parquet",
        "9223372036854775808",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_set_of_images_is_refused_in_one_line(tmp_path, case):
    made, dataset, message = WRONG[case]
    place = written(tmp_path / "x.parquet", made)
    with pytest.raises(UserError, match=message) as raised:
        open_source(dataset, "", place)
    assert "\n" not in str(raised.value)


def test_damaged_files_are_refused_and_damaged_images_are_empty(tmp_path):
    path = tmp_path / "x.parquet"
    written(path, table(CELLS[20:]), compression="snappy", use_dictionary=False)
    content = path.read_bytes()
    for wrong in (
        content[:1000],
        content[:-9],
        b"",
        b"words" * 9,
        content[:4] + bytes(99) + content[103:],
    ):
        path.write_bytes(wrong)
        with pytest.raises(UserError, match=r"x\.parquet is no Parquet file, cut off or damaged"):
            open_source("parquet", "", str(path))
    path.write_bytes(content)
    source = open_source("parquet", "", str(path))
    place = int(source.records._arrays["offset"][3])
    path.write_bytes(content[:place] + b"\xff" * 50 + content[place + 50 :])
    assert b"" in source.read(np.arange(20)).tolist()
    odd = {"use_dictionary": False, "column_encoding": {"image.bytes": "DELTA_LENGTH_BYTE_ARRAY"}}
    written(path, table(CELLS[20:]), **odd)
    with pytest.raises(UserError, match=r"'image.bytes' is written in encoding 6, in which values"):
        open_source("parquet", "", str(path))
    written(tmp_path / "y.parquet", pa.table({"image": [b"x"]}))
    written(path, table(CELLS[:3]))
    with pytest.raises(
        UserError, match=r"y\.parquet: the column 'image' is binary, and in the fir"
    ):
        open_source("parquet", "", str(tmp_path))


def test_of_several_classes_one_is_taken_and_a_line_says_so(tmp_path):
    made = table(CELLS[:4], [0, 1, 0, 1], "ab").append_column("coarse", pa.array([0, 0, 0, 0]))
    kinds = {n: {"_type": "ClassLabel", "names": ["u", "v"]} for n in ("label", "coarse")}
    made = made.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": kinds | {"image": {"_type": "Image"}}}})}
    )
    place = written(tmp_path / "x.parquet", made)
    source = open_source("parquet", "", place)
    assert source.labels(np.arange(4)).tolist() == [0, 1, 0, 1]
    assert "those of the column label; dataset='parquet:image,coarse'" in source.remarks[0]
    source = open_source("parquet:image,coarse", "", place)
    assert (source.labels(np.arange(4)).tolist(), source.remarks) == ([0, 0, 0, 0], [])


def test_the_setting_names_columns_or_is_refused():
    for sound in ("parquet", "hf", "parquet:img", "hf:img, fine_label"):
        SETTINGS["dataset"].check(sound)
    for wrong in ("parquet:", "parquet:a,b,c", "hf:,b", "tar:a"):
        with pytest.raises(UserError, match=f"dataset='{wrong}' (names no col|is unknown)"):
            SETTINGS["dataset"].check(wrong)


def test_snappys_blocks_are_found_and_a_copy_that_reaches_back_further_is_seen():
    whole = RNG.integers(0, 4, 200_000, np.uint8).tobytes()
    stream = pa.Codec("snappy").compress(whole, asbytes=True)
    blocks = snappy_blocks.find(stream)
    assert blocks is not None
    for offset, length in ((0, 1), (65_535, 2), (100_000, 100_000), (199_999, 1)):
        begin, stored, start, expanded = blocks.around(offset, length)
        part = spans.expand(stream[begin : begin + stored], spans.BLOCKS, expanded)
        assert part[offset - start :][:length] == whole[offset : offset + length]
    # 65,536 zeros as one literal, then a copy of four of them, from five back.
    literal = bytes([61 << 2, 255, 255]) + bytes(65_536)
    copy = bytes([(4 - 1) << 2 | 2, 5, 0])
    back = snappy_blocks.varint(65_540) + literal + copy
    assert pa.Codec("snappy").decompress(back, 65_540, asbytes=True) == bytes(65_540)
    assert snappy_blocks.find(back) is None


def test_runs_and_packed_bits_are_numbers():
    # A run of five threes, then eight packed numbers of two bits.
    content = bytes([5 << 1, 3, 1 << 1 | 1, 0b11100100, 0b00011011])
    assert hybrid(content, 2, 13).tolist() == [3] * 5 + [0, 1, 2, 3, 3, 2, 1, 0]
    assert hybrid(b"", 0, 3).tolist() == [0, 0, 0]
    for wrong in (b"", bytes([5 << 1, 3, 0, 0])):
        with pytest.raises((ValueError, IndexError)):
            hybrid(wrong, 2, 13)
