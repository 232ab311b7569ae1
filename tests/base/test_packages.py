"""Packages that are missing, and what is said of them."""

import sys

import pytest

from moco_jax.base import packages
from moco_jax.base.errors import UserError


def test_a_package_is_looked_for_and_not_imported(monkeypatch):
    assert packages.is_there("numpy")
    assert not packages.is_there("a_package_that_nobody_has")
    monkeypatch.setitem(sys.modules, "clu", None)
    assert packages.missing(["clu", "numpy", "tensorflow_datasets_of_mine"]) == [
        "clu",
        "tensorflow_datasets_of_mine",
    ]
    names = ["tensorflow", "tensorflow_datasets"]
    assert packages.how_to_have(names) == "pip install tensorflow tensorflow-datasets"


@pytest.mark.parametrize("call", [packages.require_tensorflow, packages.load_tensorflow])
def test_what_needs_tensorflow_is_refused_with_what_works(monkeypatch, call):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UserError) as refused:
        call("pack", "something else")
    assert str(refused.value) == (
        "pack needs the package tensorflow, which is not installed here;"
        " pip install tensorflow, or something else"
    )
