"""Several places are written as one text and read back; one place is any text at all."""

import os

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from moco_jax import config as config_lib
from moco_jax.base import places
from moco_jax.base.errors import UserError

names = st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=12)
steady = hypothesis_settings(derandomize=True, deadline=None, database=None, max_examples=60)


@steady
@given(st.lists(names, min_size=2, max_size=4))
def test_what_is_joined_is_split_again(several):
    assert places.split(places.join(several)) == several


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("photos", ["photos"]),
        ("(a)", ["(a)"]),
        ("x-{00,01}.tar", ["x-{00,01}.tar"]),
        ("", [""]),
        ("(a, b)", ["a", "b"]),
        (" [a,b c , 'd, e',]", ["a", "b c", "'d", "e'"]),
        ("('a, b', \"c\")", ["a, b", "c"]),
        ("(gs://x/a, 'b')", ["gs://x/a", "b"]),
        ("(s-{0,1}.tar, t-{00..11}.tar)", ["s-{0,1}.tar", "t-{00..11}.tar"]),
        ("('caf\\udce9', 'b')", ["caf\udce9", "b"]),
    ],
)
def test_how_places_may_be_written(text, expected):
    assert places.split(text) == expected


def test_what_is_there_under_such_a_name_is_one_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert places.split("(a, b)") == ["a", "b"]
    (tmp_path / "(a, b)").mkdir()
    assert places.split("(a, b)") == ["(a, b)"]
    with pytest.raises(UserError, match=r"data_dir=\(a,, b\) has an empty place"):
        places.split("(a,, b)")


def test_a_setting_takes_several_places_and_keeps_one_text():
    config = config_lib.default_config()
    for value, kept in (("x", "x"), (("x",), "x"), (["x", "y"], "('x', 'y')")):
        config.data_dir = value
        assert config.data_dir == kept
    config_lib.check_each(config)
    for wrong in (3, (), ("x", 3), "a\0b"):
        with pytest.raises(UserError, match=r"data_dir=.* must be text, or several texts in br"):
            config.data_dir = wrong
    assert places.full_names("(a, gs://b)") == repr((os.path.abspath("a"), "gs://b"))
