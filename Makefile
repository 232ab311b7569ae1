# `make demo`: from nothing to a pretrained encoder on the embedded digits. `make test`: everything that guards the tree.
# `make check`: form, types, imports and the quick tests, in about a minute, while you work.
# `make docs`: the pages of docs/ as a site in docs/_build; a link that leads nowhere is an error.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Tests that compile next to nothing.
QUICK := $(addprefix tests/,base cli config monitoring test_docs.py test_docs_commands.py test_launch.py \
  test_packaging.py method/test_dictionary.py method/test_dictionary_protocol.py)

.PHONY: demo test check lint docs clean

demo: $(VENV)/installed
	$(BIN)/python -m moco_jax.main --config=configs/digits.py --workdir=runs/digits

test: lint
	$(BIN)/python -m pytest

check: lint
	$(BIN)/python -m pytest $(QUICK)

lint: $(VENV)/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: $(VENV)/installed-docs
	$(BIN)/python -m sphinx -W --keep-going --quiet docs docs/_build

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[test,torch,tiff]"
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) runs docs/_build .pytest_cache
