# `make demo`: from nothing to a pretrained encoder on the embedded digits. `make test`: everything that guards the tree.
# `make docs`: the pages of docs/ as a site in docs/_build; a link that leads nowhere is an error.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test docs clean

demo: $(VENV)/installed
	$(BIN)/python -m moco_jax.main --config=configs/digits.py --workdir=runs/digits

test: $(VENV)/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest

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
	rm -rf $(VENV) runs docs/_build
