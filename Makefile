# `make demo` and `make test` do all the set-up on a machine with Python 3.10 to 3.14 and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Tests share few cores with each other: more threads would only wait for one another.
TEST_ENV := OMP_NUM_THREADS=1
# Tests on clusters wait for Slurm most of the time: one worker more than there are cores, four at
# most, and other files run meanwhile. They are begun first.
WORKERS := $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores < 4 ? cores + 1 : 4)))
PARALLEL := --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: help demo test check docs reproduce unit install packages clean

help:
	@echo "make demo      set up, then train a small supernet on generated images (two minutes)"
	@echo "make test      set up, then run all tests"
	@echo "make unit      the tests without those marked slow or cluster"
	@echo "make check     format, lint, types, floors"
	@echo "make reproduce DATA=DIR   the paper's claim at its smallest size, from real images to a table"
	@echo "make docs      build the documentation into site/, every link checked"
	@echo "make packages  Debian packages for a Slurm cluster on this machine (needs root)"

$(INSTALLED): setup.py supersam/__init__.py
	@$(PYTHON) -c 'import sys; ok = (3, 10) <= sys.version_info < (3, 15); \
	sys.exit(None if ok else f"error: Python {sys.version.split()[0]}; use 3.10 to 3.14: make PYTHON=python3.13 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

install: $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/supersam train

test: $(INSTALLED)
	$(TEST_ENV) $(BIN)/python -m pytest $(PARALLEL)

unit: $(INSTALLED)
	$(TEST_ENV) $(BIN)/python -m pytest $(PARALLEL) -m "not slow and not cluster"

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

DATA ?= ../shared/data
reproduce: $(INSTALLED)
	$(BIN)/python -m experiments.claim --data $(DATA) --out runs/claim --form small --seeds 1

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --clean

packages:
	apt-get update -q
	DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends \
		$$(grep -v '^\#' slurm/devcluster/packages.txt)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info
