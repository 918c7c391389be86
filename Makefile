# `make book` and `make test` are the two commands; `make help` lists the others.

# Any Python 3.11 or newer: make book PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
PROFILE ?= lite
CORES ?= 2
# More arguments for the measurements: make bench BENCH='-k "not resnet32"'
BENCH ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := $(VENV)/peers
HTML := book/_build/html/index.html
PARTS := $(BIN)/python tests/run_parts.py

.DEFAULT_GOAL := help
.PHONY: help install book test lint types unit notebooks bench clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' Makefile

install: $(STAMP)  ## make .venv and install the pinned versions

# The stamp holds a checksum of what was installed, so that a checkout which only
# changes times does not install again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11 or missing: make ... PYTHON=/path/to/python3.11"; exit 1; }
	@sum=$$(cat pyproject.toml constraints.txt | cksum); \
	if [ "$$(cat $@ 2>/dev/null)" = "$$sum" ] && $(BIN)/python -c '' 2>/dev/null; then \
	  touch $@; \
	else \
	  set -e; rm -f $@; \
	  $(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV); \
	  echo "Installing the pinned versions into $(VENV) (a few minutes the first time)"; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    -c constraints.txt -e '.[book,test,cluster]'; \
	  echo "$$sum" > $@; \
	fi

book: $(STAMP)  ## execute what changed and render the book
	@$(BIN)/snakemake --cores $(CORES) --config profile=$(PROFILE) \
	  --keep-going --rerun-incomplete --show-failed-logs --quiet host
	@echo "The book: $(CURDIR)/$(HTML)"

test: $(STAMP)  ## every check, with the time of each part
	@$(PARTS) lint types unit notebooks book browser

lint: $(STAMP)  ## ruff, formatting, layers of the library
	@$(PARTS) lint

types: $(STAMP)  ## mypy, strict on the library
	@$(PARTS) types

unit: $(STAMP)  ## unit and property tests
	@$(PARTS) unit

notebooks: $(STAMP)  ## every notebook in the smoke profile
	@$(PARTS) notebooks

bench: $(PEERS)/.installed  ## side-by-side measurements
	@PYTHONPATH=$(PEERS) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/benchmarks -s $(BENCH)

# Libraries to compare with, in a folder that only `make bench` looks into.
$(PEERS)/.installed: $(STAMP) tests/benchmarks/peers.txt
	@rm -rf $(PEERS)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  --only-binary :all: --target $(PEERS) -r tests/benchmarks/peers.txt || \
	  echo "Without the other libraries: not all of them have a wheel for this Python"
	@mkdir -p $(PEERS) && touch $@

clean:  ## remove what was built; .venv and committed rows stay
	rm -rf book/chapters book/generated book/_build .snakemake .grid \
	  .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
