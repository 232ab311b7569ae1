"""A table of features is right or refused.

A file that was altered, or made by others, never gives other neighbours.
"""

import io
import json
import random
import zipfile

import numpy as np
import pytest

from moco_jax.base.console import Console
from moco_jax.base.errors import UserError
from moco_jax.cli.features import search as command
from moco_jax.embedding import columns, encode, facts, npz, parquet, results, search, table
from tests.embedding.test_embed import ENCODER, FACTS, IMAGES

WHOLE = {"format": 1, "moco_jax": "0.1.0", **FACTS}
FEATURES = np.asarray([[1, 0, 0, 0], [0.9, 0.4, 0, 0], [0, 0, 1, 0]], np.float32)
SEEDS = range(24)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """No pictures: they need images, which none of these tables has."""
    monkeypatch.setattr(command, "prepare", lambda place: None)
    monkeypatch.setattr(results, "draw", lambda *_: None)


def searched(path, word="a"):
    """What a search for `word` prints."""
    out = io.StringIO()
    command.run(str(path), [word], Console(out=out))
    return out.getvalue()


def neighbours(path, word="a"):
    """The names and classes that a search prints, nearest first."""
    lines = searched(path, word).splitlines()
    return [line.split()[2:] for line in lines if line[:1].isdigit() and "." in line.split()[1]]


def refused(path, word="a"):
    """The one line with which a search of `path` is refused."""
    with pytest.raises(UserError) as error:
        searched(path, word)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


def write_npz(path, facts=WHOLE, without=(), text=None, **instead):
    """A table of rows a, b and c as NumPy writes it.

    `text`: in the place of the facts as JSON; `instead`: other arrays in the place of its own.
    """
    names = np.asarray(["a", "b", "c"])
    arrays = {"features": FEATURES, "names": names, "indices": np.arange(3), "labels": np.arange(3)}
    arrays |= {"facts": np.asarray(text or json.dumps(facts))} | instead
    np.savez(path, **{name: array for name, array in arrays.items() if name not in without})
    return path


def header_says(path, column, **changes):
    """The table of `write_npz` at `path`, except that the header of one array says `changes`."""
    write_npz(path)
    with zipfile.ZipFile(path) as whole:
        contents = {name: whole.read(name) for name in whole.namelist()}
    array = np.load(io.BytesIO(contents[f"{column}.npy"]))
    said = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape} | changes
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, said)
    contents[f"{column}.npy"] = header.getvalue() + array.tobytes()
    with zipfile.ZipFile(path, "w") as made:
        for name, content in contents.items():
            made.writestr(name, content)
    return path


def write_parquet(path, facts=WHOLE, **instead):
    """The same table as pyarrow writes it; `instead`: other columns in the place of its own."""
    pa = pytest.importorskip("pyarrow", reason="pip install '.[parquet]'")
    import pyarrow.parquet

    values = {
        "features": pa.array(FEATURES.tolist(), pa.list_(pa.float32(), 4)),
        "name": ["a", "b", "c"],
        "index": [0, 1, 2],
        "label": [0, 1, 2],
    } | instead
    made = pa.table(values).replace_schema_metadata({b"moco_jax": json.dumps(facts).encode()})
    pyarrow.parquet.write_table(made, path)
    return path


def test_sound_tables_are_read(tmp_path):
    assert neighbours(write_npz(tmp_path / "x.npz")) == [["b", "1"], ["c", "2"]]
    assert neighbours(write_npz(tmp_path / "y.npz", without=["labels"])) == [["b"], ["c"]]
    assert neighbours(write_npz(tmp_path / "z.npz", notes=np.asarray([{}], object))) == [
        ["b", "1"],
        ["c", "2"],
    ]
    assert neighbours(write_parquet(tmp_path / "x.parquet")) == [["b", "1"], ["c", "2"]]


class Runs:
    """An object whose pickle would raise an error of its own kind if it were read."""

    def __reduce__(self):
        return exec, ("raise SystemError('the pickle was run')",)


def test_arrays_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    for words, made in {
        "has no names": dict(without=["names"]),
        "has no features": dict(without=["features"]),
        "it has no facts": dict(without=["facts"]),
        "its facts are no JSON": dict(text="{"),
        "its facts are no JSON (maximum": dict(text="[" * 10**5),
        "3 features and 1 names": dict(names=np.asarray(["a"])),
        "3 features and 4 labels": dict(labels=np.arange(4)),
        "names are of type |S1": dict(names=np.asarray([b"a", b"b", b"c"])),
        "features are of type <U": dict(features=FEATURES.astype(str)),
        "features are of type complex64": dict(features=FEATURES.astype(np.complex64)),
        "features are of type bool": dict(features=FEATURES > 0),
        "features are of type object": dict(features=np.asarray([[Runs()] * 4] * 3, object)),
        "shape (3, 4, 1)": dict(features=FEATURES[..., None]),
        "hold no numbers": dict(features=np.zeros((3, 0), np.float32)),
        "has no rows": dict(
            features=FEATURES[:0], names=np.zeros(0, "U1"), without=["labels", "indices"]
        ),
        "labels are of type float64": dict(labels=np.arange(3.0)),
        "labels are of type uint64": dict(labels=np.arange(3, dtype=np.uint64)),
        "laid out by columns": dict(features=np.asfortranarray(FEATURES)),
    }.items():
        assert words in refused(write_npz(path, **made)), words


@pytest.mark.parametrize("seed", SEEDS)
def test_headers_that_claim_what_is_not_there_are_refused(tmp_path, seed):
    chosen = random.Random(seed)
    column = chosen.choice(["features", "names", "indices", "labels", "facts"])
    shape = {"features": [3, 4], "facts": []}.get(column, [3])
    if shape:
        shape[chosen.randrange(len(shape))] = chosen.choice([2**40, 2**62, 2**70, 4, 10**9, -3])
        changes = {"shape": tuple(shape)}
    else:
        changes = {"descr": f"<U{chosen.choice([2**20, 2**27, 5000])}"}
    line = refused(header_says(tmp_path / "x.npz", column, **changes))
    assert "are there" in line or "of type" in line


def _made(kind, path):
    rng = np.random.default_rng(3)
    features = rng.normal(size=(40, 5)).astype(np.float32)
    facts = {"encoder": ENCODER, "images": IMAGES | {"classes": ["cat", "dog"]}}
    with table.writing(str(path), facts) as write:
        for first in range(0, 40, 8):
            rows = np.arange(first, first + 8)
            names = [f"{row}/é.png" for row in rows]
            write(columns.Rows(features[rows], names, rows, rows % 2))
    return path.read_bytes()


def _all_of(path):
    found = table.opened(str(path))
    rows = np.asarray([39, 0, 17])
    values = {name: np.concatenate(list(found.blocks(name))).tolist() for name in found.columns}
    taken = {name: table.opened(str(path)).take(name, rows).tolist() for name in found.columns}
    return found.facts, found.number, found.width, values, taken


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_flipped_bits_are_refused_or_change_nothing(tmp_path, kind, monkeypatch):
    if kind == "parquet":
        pytest.importorskip("pyarrow", reason="pip install '.[parquet]'")
    monkeypatch.setattr(columns, "BLOCK", 16)
    good = _made(kind, tmp_path / f"x.{kind}")
    expected = _all_of(tmp_path / f"x.{kind}")
    chosen, said = random.Random(7), []
    path = tmp_path / f"flipped.{kind}"
    for place in chosen.sample(range(8 * len(good)), 400):
        content = bytearray(good)
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        try:
            found = _all_of(path)
        except UserError as error:
            said.append(str(error))
        else:
            assert found == expected, place
    assert all(str(path) in line and "\n" not in line for line in said)
    assert 300 < len(said) < 400


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_cut_files_are_refused(tmp_path, kind):
    if kind == "parquet":
        pytest.importorskip("pyarrow", reason="pip install '.[parquet]'")
    good = _made(kind, tmp_path / f"x.{kind}")
    path = tmp_path / f"cut.{kind}"
    for length in random.Random(1).sample(range(len(good)), 24):
        path.write_bytes(good[:length])
        assert str(path) in refused(path)


def test_a_table_is_read_once_and_its_checksum_is_seen(tmp_path, monkeypatch):
    """Peeked rows are trusted after a whole pass; without one, taken rows are verified first."""
    features = np.ascontiguousarray(np.pad(FEATURES, ((0, 0), (0, 4000))))
    path = write_npz(tmp_path / "x.npz", features=features)
    content = bytearray(path.read_bytes())
    content[content.index(features.tobytes()) + features.nbytes - 9] ^= 1
    path.write_bytes(content)
    found = table.opened(str(path))
    first = np.asarray([0])
    np.testing.assert_array_equal(found.peek("features", first), features[:1])
    with pytest.raises(UserError, match="CRC"):
        found.take("features", first)
    assert "CRC" in refused(path)
    write_npz(path)
    passes, whole = [], npz.Npz._pass
    monkeypatch.setattr(npz.Npz, "_pass", lambda self, c: passes.append(c) or whole(self, c))
    assert neighbours(path) == [["b", "1"], ["c", "2"]]
    assert passes == ["facts", "names", "features", "labels"]


def odd_facts(seed):
    """The facts with one of them missing, or of another type."""
    chosen = random.Random(seed)
    facts = json.loads(json.dumps(WHOLE))
    group = chosen.choice(["encoder", "images"])
    name = chosen.choice([None, *facts[group]])
    value = chosen.choice([None, [], {}, [1], {"a": 1}, True, -7, 2.5, [None]])
    if name is None:
        facts[group] = value if not isinstance(value, dict) else "text"
    elif chosen.random() < 0.3:
        del facts[group][name]
    else:
        same = (name == "classes" and value == []) or value == facts[group][name]
        facts[group][name] = None if same else value
    return facts


@pytest.mark.parametrize("seed", SEEDS)
def test_facts_of_another_shape_are_refused(tmp_path, seed):
    line = refused(write_npz(tmp_path / "x.npz", facts=odd_facts(seed)))
    assert "facts" in line


@pytest.mark.parametrize(
    "facts", [None, [], 3, "text", {}, {"format": 2}, {"format": True}, {"format": 1}]
)
def test_facts_that_are_none_are_refused(tmp_path, facts):
    refused(write_npz(tmp_path / "x.npz", facts=facts))


def test_rows_that_are_not_finite_are_counted_and_nobodys_neighbours(tmp_path):
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        number, width = int(rng.choice([9, 50])), int(rng.choice([2, 7]))
        features = rng.normal(size=(number, width)).astype(np.float32)
        bad = rng.permutation(np.arange(1, number))[: int(rng.integers(1, number - 3))]
        for row in bad:
            features[row, rng.integers(width)] = rng.choice([np.nan, np.inf, -np.inf])
        names = np.asarray([f"{row}.png" for row in range(number)])
        path = write_npz(
            tmp_path / "x.npz", features=features, names=names, without=["labels", "indices"]
        )
        found = table.opened(str(path))
        near = search.nearest(found, features[:1], np.asarray([0]), number, lambda _: None)
        assert near.left_out == len(bad)
        good = np.setdiff1d(np.arange(1, number), bad)
        unit = features[good] / np.linalg.norm(features[good], axis=1, keepdims=True)
        np.testing.assert_array_equal(near.rows[0], good[np.argsort(-(unit @ features[0]))])
        assert np.isfinite(near.cosines).all()
    assert f"{len(bad)} of {number} rows hold numbers that are not finite" in searched(
        path, "0.png"
    )
    assert "not finite" in str(_error(path, names[bad[0]]))


def _error(path, word):
    with pytest.raises(UserError) as error:
        searched(path, word)
    return error.value


def test_nothing_but_itself_is_no_search(tmp_path):
    one = dict(features=FEATURES[:1], names=np.asarray(["a"]), without=["labels", "indices"])
    assert "none is left to compare with" in str(_error(write_npz(tmp_path / "x.npz", **one), "a"))


@pytest.mark.parametrize("power", [-120, -60, 0, 60, 100])
def test_length_does_not_matter_to_cosines(tmp_path, power):
    scaled = np.ldexp(FEATURES, [[power], [-power], [power // 2]])
    path = write_npz(tmp_path / "x.npz", features=scaled.astype(np.float32))
    found = table.opened(str(path))
    queries = found.take("features", np.asarray([0]))
    near = search.nearest(found, queries, np.asarray([0]), 2, lambda _: None)
    np.testing.assert_allclose(near.cosines[0], [0.9 / np.hypot(0.9, 0.4), 0], atol=1e-6)
    assert near.rows.tolist() == [[1, 2]]


def test_classes_that_are_unknown_are_no_others(tmp_path):
    facts = WHOLE | {"images": IMAGES | {"classes": ["cat", "dog"]}}
    path = write_npz(tmp_path / "x.npz", facts=facts, labels=np.asarray([0, -1, 7]))
    assert neighbours(path) == [["b", "-"], ["c", "7"]]


def test_names_reach_the_console_on_one_line(tmp_path):
    path = write_npz(tmp_path / "x.npz", names=np.asarray(["a", "b\n\x1b[31m", "\udce9$x^$"]))
    assert neighbours(path) == [["b\\n\\x1b[31m", "1"], ["\\xe9$x^$", "2"]]


# Parquet: schemas that others write. Each gives a column, and whether a table with it is read.


def _features(pa, chosen, rows):
    """A column of the rows `rows` (a list of lists), and whether it may be read.

    Its type, layout and damage are drawn by `chosen`.
    """
    value = chosen.choice(
        [pa.float16(), pa.float32(), pa.float64(), pa.int8(), pa.int64(), pa.string(), pa.bool_()]
    )
    lists = chosen.choice([pa.list_, pa.large_list, lambda of: pa.list_(of, 4)])
    damage = chosen.choice(["", "", "", "null row", "null value", "unequal", "nested", "empty"])
    made = [list(map(int, row)) for row in rows]
    if value == pa.string():
        made = [list(map(str, row)) for row in made]
    elif value == pa.bool_():
        made = [list(map(bool, row)) for row in made]
    place = chosen.randrange(1, len(made))
    fixed = lists not in (pa.list_, pa.large_list)
    kind = lists(value)
    if damage == "null row":
        made[place] = None
    elif damage == "null value":
        made[place][2] = None
    elif damage == "unequal" and not fixed:
        made[place] = made[place][:3]
    elif damage == "nested":
        made, kind = [[row, row] for row in made], pa.list_(kind)
    elif damage == "empty" and not fixed:
        made = [[] for _ in made]
    else:
        damage = ""
    right = not damage and value not in (pa.string(), pa.bool_())
    return pa.array(made, kind), right


def _names(pa, chosen, names):
    kind = chosen.choice(["string", "large_string", "dictionary", "string_view", "binary", "null"])
    if kind == "null":
        return pa.array([names[0], None, *names[2:]]), False
    array = pa.array(names)
    if kind == "dictionary":
        return array.dictionary_encode(), True
    types = {"string": pa.string(), "large_string": pa.large_string(), "binary": pa.binary()}
    return array.cast(types.get(kind, pa.string())), kind != "binary"


def _labels(pa, chosen, labels):
    kind = chosen.choice(["int8", "int64", "uint32", "uint64", "double", "null", "text"])
    if kind == "null":
        return pa.array([labels[0], None, *labels[2:]]), False
    if kind == "text":
        return pa.array(list(map(str, labels))), False
    return pa.array(labels, getattr(pa, {"double": "float64"}.get(kind, kind))()), kind not in (
        "uint64",
        "double",
    )


def test_parquet_schemas_of_others_are_right_or_refused(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="pip install '.[parquet]'")
    import pyarrow.parquet

    counts = {True: 0, False: 0}
    for seed in range(80):
        chosen = random.Random(seed)
        number = chosen.randrange(3, 40)
        rows = [[chosen.randrange(-9, 9) for _ in range(4)] for _ in range(number)]
        rows[0] = [9, 1, 1, 1]
        names, labels = [f"{n}" for n in range(number)], [n % 5 for n in range(number)]
        makers = [
            (_features, "features", rows),
            (_names, "name", names),
            (_labels, "label", labels),
        ]
        odd = chosen.choice(makers)[1]
        columns_of, right = {}, True
        for make, name, values in makers:
            while True:
                column, sound = make(pa, chosen, values)
                if sound or name == odd:
                    break
            columns_of[name], right = column, right and sound
        metadata = {b"moco_jax": json.dumps(WHOLE).encode()}
        made = pa.table(columns_of).replace_schema_metadata(metadata)
        cut = chosen.randrange(number)
        made = pa.concat_tables([made[:cut], made[cut:]])  # chunks
        path = tmp_path / f"{seed}.parquet"
        pyarrow.parquet.write_table(
            made,
            path,
            row_group_size=chosen.choice([3, 7, 100]),
            use_dictionary=chosen.choice([True, False]),
            compression=chosen.choice(["none", "snappy"]),
        )
        counts[right] += 1
        if not right:
            assert refused(path, "0"), seed
            continue
        found = table.opened(str(path))
        assert np.concatenate(list(found.blocks("features"))).tolist() == rows, seed
        assert np.concatenate(list(found.blocks("names"))).tolist() == names
        assert found.take("labels", np.asarray([2, 0])).tolist() == [2, 0]
    assert min(counts.values()) >= 20, counts


def test_parquet_null_rows_and_numbers_that_its_footer_claims_are_refused(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="pip install '.[parquet]'")
    rows = FEATURES.tolist()
    null = pa.array([rows[0], None, rows[2]], pa.list_(pa.float32(), 4))
    path = write_parquet(tmp_path / "x.parquet", features=null)
    assert "row 1 is null" in refused(path)
    assert "row 1 is null" in refused(write_parquet(path, name=["a", None, "c"]))
    write_parquet(path)
    found = table.opened(str(path))
    found.number = 2**40
    with pytest.raises(UserError, match="features of 3 rows are there; there must be 1,099"):
        list(found.blocks("features"))


def test_parquet_pages_and_footer_have_checksums(tmp_path):
    pytest.importorskip("pyarrow", reason="pip install '.[parquet]'")
    path = tmp_path / "x.parquet"
    good = _made("parquet", path)
    start, footer = parquet._footer(io.BytesIO(good))
    assert b'"cat"' in footer
    path.write_bytes(good[:start] + footer.replace(b'"cat', b'"rat') + good[start + len(footer) :])
    assert "digest of its footer" in refused(path, "0/é.png")


def test_memory_is_for_what_is_there(tmp_path):
    """One long row does not ask for a block of thousands."""
    wide = np.ones((2, 2**21), np.float32)
    path = write_npz(
        tmp_path / "x.npz",
        features=wide,
        names=np.asarray(["a", "b"]),
        without=["labels", "indices"],
    )
    assert columns.at_once(4 * 2**21) == 32
    assert columns.at_once(4 * 512) == columns.BLOCK
    assert neighbours(path) == [["b"]]


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_a_folder_is_refused_before_the_work(tmp_path, kind):
    (tmp_path / f"x.{kind}").mkdir()
    with (
        pytest.raises(UserError, match="is a folder"),
        table.writing(str(tmp_path / f"x.{kind}"), {}),
    ):
        pytest.fail("the work has begun")
    with pytest.raises(UserError, match="cannot be read"):
        table.opened(str(tmp_path / f"x.{kind}"))


@pytest.mark.parametrize("name", encode.SHOWN)
@pytest.mark.parametrize("value", [[[1]], {}, None])
def test_every_fact_on_what_an_encoder_is_shown_is_checked(name, value):
    wrong = {**WHOLE, "encoder": {**WHOLE["encoder"], name: value}}
    with pytest.raises(UserError, match=name):
        facts.checked(wrong, "x.npz")
