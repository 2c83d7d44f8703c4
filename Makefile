# Both commands do all their own set-up: a virtual environment in .venv, the packages, the C++ kernel.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/
STAMP := $(VENV)/installed
WORKERS ?= 2

.PHONY: help demo test clean
help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/make \1\t\2/'

$(STAMP): pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*)
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'nmsparsity: want Python 3.11 or newer, PYTHON=... says which')"
	$(PYTHON) -m venv $(VENV)
	$(RUN)python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[train,timm,translation,bench,dev]"
	@touch $@

demo: $(STAMP)  ## train a dense and a 2:4 network on real images; a table and a plot
	$(RUN)python examples/demo.py

test: $(STAMP)  ## lint, types, and the whole test suite
	$(RUN)ruff check .
	$(RUN)ruff format --check .
	$(RUN)mypy
	OMP_NUM_THREADS=1 $(RUN)python -m pytest -n $(WORKERS)

clean:  ## remove what the other commands made
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis
