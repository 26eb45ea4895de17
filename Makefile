# make install | demo | test | check | bench | clean
#
# PYTHON=python3.12        another interpreter (3.11 or newer)
# TORCH_INDEX=URL          another index for torch alone, e.g. https://download.pytorch.org/whl/cpu for the small CPU build

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install demo test check bench clean
.DELETE_ON_ERROR:

help:
	@echo "make install   virtual environment in $(VENV) with the pinned versions of constraints.txt"
	@echo "make demo      the online algorithm against traditional federated fine-tuning on real reviews; results in runs/demo"
	@echo "make test      tests and doctests"
	@echo "make check     ruff, pyright, import layers, equations"
	@echo "make bench     every benchmark in turn, SCIP, rates and bounds on part of their instances; not Flower, which needs an environment of its own"
	@echo "make clean     remove caches and builds (runs/ and $(VENV) stay)"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "no $(PYTHON) found; airtune needs Python 3.11 or newer: make install PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "airtune needs Python 3.11 or newer and $(PYTHON) is $$($(PYTHON) -V 2>&1); name another: make install PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "could not make $(VENV); on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install
	$(BIN)/airtune compare demo --policies joint,traditional --seeds 1 --out runs/demo

test: install
	$(BIN)/python -m pytest

check: install
	$(BIN)/python tools/check_counts.py

bench: install
	@set -e; for file in benchmarks/bench_*.py; do \
		test -e "$$file" || { echo "no benchmarks/bench_*.py"; exit 1; }; \
		module=$${file%.py}; echo "== $$file"; $(BIN)/python -m "benchmarks.$${module#benchmarks/}"; \
	done
	$(BIN)/python -m benchmarks.study_exact --instances 30 --out runs/bench/gaps.csv
	$(BIN)/python -m benchmarks.study_rates --seeds 1 --out runs/bench/rates
	$(BIN)/airtune verify --instances 2000

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache .grimp_cache
	find . \( -path ./$(VENV) -o -path ./runs \) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
