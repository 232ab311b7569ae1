"""Names that are known without their modules are those of the tables that hold the parts."""

import importlib
import subprocess
import sys

import pytest

from moco_jax import encoders
from moco_jax.config import registry
from moco_jax.config.settings import SETTINGS
from tests import smallest

NAMES = {name: row for name, row in vars(registry).items() if isinstance(row, registry.Names)}


@pytest.mark.parametrize("name", NAMES)
def test_names_are_those_of_the_table(name, monkeypatch):
    for added in smallest.ADDED:
        monkeypatch.delitem(encoders.BACKBONES, added)
    module, attribute = NAMES[name].place.split(":")
    table = getattr(importlib.import_module(module), attribute)
    assert NAMES[name].known == tuple(table) == NAMES[name]()


def test_a_part_that_a_program_adds_has_a_name_at_once(monkeypatch):
    monkeypatch.setitem(encoders.BACKBONES, "mine", None)
    assert registry.BACKBONES()[-1] == "mine"
    SETTINGS["arch"].check("mine")


def test_a_module_that_is_being_loaded_has_no_table_yet(monkeypatch):
    monkeypatch.delattr(encoders, "BACKBONES")
    assert registry.BACKBONES() == registry.BACKBONES.known


def test_overview_and_checks_load_no_module_of_a_part():
    code = """
import sys
from moco_jax.config import check_each, default_config, settings
settings.overview()
check_each(default_config())
print([m for m in ("jax", "numpy", "tensorflow") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
