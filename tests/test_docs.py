"""The documentation is right about links, pages, settings, recipes and published numbers."""

import ast
import re
import runpy
from functools import cache

import pytest

from moco_jax import config as config_lib
from moco_jax.config import recipe_files
from moco_jax.evaluation import published
from moco_jax.training import checks
from tests.config.test_config import load
from tests.markdown import PAGES, ROOT, anchors, links, name, tables


def doc(page):
    return (ROOT / "docs" / f"{page}.md").read_text()


@cache
def conf():
    return runpy.run_path(str(ROOT / "docs" / "conf.py"))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for target in links(page.read_text()):
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), target
        if anchor:
            assert anchor in anchors(other.read_text()), target


def test_headings_are_linked_to_as_on_github():
    text = "# What it is, and `isn't`\n## A_b - c\n```\n# no heading\n```\n## A_b - c\n"
    assert anchors(text) == ["what-it-is-and-isnt", "a_b---c", "a_b---c-1"]
    assert links("[a](b.md#c) [d](https://e) `[f](g)`\n```\n[h](i)\n```\n") == ["b.md#c"]


def test_every_page_is_once_in_the_table_of_contents():
    pages = [page.stem for page in ROOT.glob("docs/*.md")]
    found = [page for _, section in conf()["contents"](doc("index"), pages) for page in section]
    assert sorted(found) == sorted(set(pages) - {"index"})


def test_pages_that_the_index_does_not_list_come_last():
    index = (
        "# T\n\nSee [b](b.md).\n\n## One\n\n- [C](c.md): text\n- [A](a.md)\n\n## Two\n\nNothing.\n"
    )
    expected = [("One", ["c", "a"]), ("More", ["b", "d"])]
    assert conf()["contents"](index, ["index", "a", "b", "c", "d"]) == expected


def test_every_setting_has_its_meaning_beside_it():
    for group, values in (("recipe", config_lib.RECIPE), ("operational", config_lib.OPERATIONAL)):
        table = conf()["settings_table"](group)
        rows = [re.split(r"(?<!\\) \| ", row.strip("| ")) for row in table.splitlines()[2:]]
        assert {
            key.strip("`"): ast.literal_eval(default.strip("`")) for key, default, *_ in rows
        } == values
        short = [key for key, _, _, meaning in rows if len(meaning.split()) < 3]
        assert not short, f"no meaning of a few words beside {', '.join(short)}"
        assert all(allowed for _, _, allowed, _ in rows)
        assert f"<!-- {group.upper()} -->" in doc("settings")


def recipe(words):
    """The settings of `NAME:VARIANT setting=value ...`, which is a cell of the recipes' tables."""
    chosen, *changes = words.strip("`").split()
    config = load(chosen)
    for change in changes:
        key, value = change.split("=")
        config[key] = value if isinstance(config[key], str) else type(config[key])(float(value))
    return config


def test_recipes_are_described_as_they_are():
    described = [table for table in tables(doc("recipes")) if table[0][0] == "recipe"]
    seen = set()
    for heads, *rows in described:
        keys = [head.strip("`") for head in heads[1:]]
        for chosen, *cells in rows:
            seen.add(chosen.strip("`").partition(":")[0])
            assert cells == [str(recipe(chosen)[key]) for key in keys], chosen
    assert seen == set(recipe_files.names()) - {"ablation"}


def test_published_numbers_are_those_that_evaluations_print():
    (table,) = [t for t in tables(doc("recipes")) if t[0][0].startswith("recipe, and")]
    given = set()
    for chosen, evaluation, number, _ in table[1:]:
        found = published.of(evaluation.strip("`"), recipe(chosen))
        assert number == (found[0] if found else ""), chosen
        given.add(number)
    kinds = ("knn", "linear")
    assert given - {""} == {number for kind, _, number, _ in published.NUMBERS if kind in kinds}


def test_flags_of_the_authors_are_given_settings_that_exist():
    (_, *rows) = tables(doc("from_pytorch"))[0]
    named = [span for row in rows for span in re.findall(r"`([^`]+)`", row[1]) if span[0] != "-"]
    assert len(named) > 20
    for span in named:
        key, _, value = span.partition("=")
        config = config_lib.default_config()
        config[key] = ast.literal_eval(value) if value else config[key]
        checks.check_values(config)
