PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
FOR    ?= 15s

.PHONY: help demo test test-all lint build faults crash debug trace asan generic schema schema-check cover branches bench dist clean

help:                                  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/.installed               ## install into .venv and run the whole pipeline on the local venue
	$(BIN)/hftpipe demo --for $(FOR)

test: $(VENV)/.test                    ## install what the tests need and run them, the long drills aside
	$(BIN)/python -m pytest -m "not slow"

test-all: $(VENV)/.test                ## the long drills too: a thousand kills, every process in turn
	$(BIN)/python -m pytest

lint: $(VENV)/.lint                    ## ruff, cython-lint, mypy, generated files fresh
	$(BIN)/python src/schema.py --check
	$(BIN)/ruff check .
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/cython-lint src
	$(BIN)/mypy

bench: $(VENV)/.bench                  ## latency and throughput, ours and the peers', into bench/results
	$(BIN)/python -m pytest bench -o python_files='bench_*.py' --benchmark-only

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "hftpipe needs Python 3.11 or newer, found `$(PYTHON) -V`; try make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment: install its venv module (Debian: python3-venv)"; exit 1; }

# What an extra asks for; installing hftpipe once more for it would compile everything again.
EXTRA = $(BIN)/python -c 'import sys, tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))\
["project"]["optional-dependencies"][sys.argv[1]], sep="\n")'

SOURCES := $(shell find src -name '*.pyx' -o -name '*.pxd' -o -name '*.h') setup.py pyproject.toml

$(VENV)/.installed: $(VENV)/bin/python $(SOURCES)
	$(BIN)/python -m pip install -q -e .
	@touch $@
$(VENV)/.test: $(VENV)/.installed
	$(EXTRA) test | $(BIN)/python -m pip install -q -r /dev/stdin
	@touch $@
$(VENV)/.lint: $(VENV)/.installed
	$(EXTRA) lint | $(BIN)/python -m pip install -q -r /dev/stdin
	@touch $@
$(VENV)/.bench: $(VENV)/.test
	$(EXTRA) bench | $(BIN)/python -m pip install -q -r /dev/stdin
	@touch $@

dist: $(VENV)/bin/python               ## sdist and wheel, installed and used on each Python found
	$(BIN)/python tests/dist.py $(PYTHONS)

build:                                 ## compile in place with the Python at hand
	$(PYTHON) setup.py -q build_ext --inplace

crash: faults                          ## kill a trading run in a hundred ways, start it again, see what it lost
	PYTHONPATH=build/faults $(BIN)/python -m hftpipe drill crash --rounds 100

faults: $(VENV)/.installed             ## a build with fault points beside this one, for `hftpipe drill crash`
	HFTPIPE_BUILD=faults $(BIN)/python setup.py -q build --build-lib build/faults --build-temp build/temp.faults

debug trace asan generic:              ## the same with checks / line tracing / sanitizers / plain -O2
	HFTPIPE_BUILD=$@ $(PYTHON) setup.py -q build_ext --inplace --force

cover: trace                           ## coverage of the compiled half too
	$(PYTHON) -m coverage run -m pytest && $(PYTHON) -m coverage report

branches: $(VENV)/.test                ## every branch of the risk checks is taken by a test
	$(BIN)/python tests/branches.py

schema:                                ## rewrite what src/schema.py generates, tables included
	$(PYTHON) src/schema.py --write
	PYTHONPATH=build/view $(PYTHON) -m hftpipe.store.layout --write
schema-check:
	$(PYTHON) src/schema.py --check

clean:                                 ## remove what was built; keeps build/view: an editable install points at it
	find src \( -name '*.so' -o -name '_*.c' -o -name '_*.html' \) -delete
	rm -rf build/lib* build/temp* dist *.egg-info
