# One word does everything, the set-up included:
#   make setup    the .venv, and no more
#   make demo     the quickstart study, from nothing to a report
#   make check    format, lint, types, tests: exactly what CI runs
#   make soak     the long tests, and 200 studies whose controller is killed again and again; SEED=123 plays one again
#   make bench    figures with their peers beside them, see benchmarks/README.md; QUICK=1 for a look
#   make accept   the long list of end-to-end checks, resumable, one result file each
# On an up-to-date checkout only what changed is installed again.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo check format lint types test soak bench accept clean

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; exit; }; done; echo missing)
BIN := .venv/bin
INSTALLED := .venv/.installed
DEMO_HOME ?= runs

help:
	@sed -n 's/^#   //p' Makefile

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@if [ "$(PYTHON)" = missing ]; then \
		echo "Python 3.11 or newer is needed and none was found (python3 is: $$(python3 --version 2>&1 || true))." >&2; \
		echo "Install it, or name one: make PYTHON=/path/to/python3.12 $(or $(MAKECMDGOALS),demo)" >&2; exit 1; fi
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "$(PYTHON) has no venv module; on Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "setting up .venv with $$($(PYTHON) --version) …"
	@[ -x $(BIN)/python ] || "$(PYTHON)" -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[trainer,dev]'
	@touch $(INSTALLED)

demo: $(INSTALLED)
	@$(BIN)/runner launch arms/*.yaml --home "$(DEMO_HOME)"
	@echo
	@echo "Next:"
	@echo "  $(BIN)/runner status --home $(DEMO_HOME)"
	@echo "  $(BIN)/runner launch arms/extras/any_script.yaml --home $(DEMO_HOME)    # any training script is an arm"
	@echo "  $(BIN)/runner init my-study                                      # … and so is yours"

check: format lint types test

format: $(INSTALLED)
	$(BIN)/ruff format --check .

lint: $(INSTALLED)
	$(BIN)/ruff check .

types: $(INSTALLED)
	$(BIN)/mypy

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

soak: $(INSTALLED)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long -n 2
	@OMP_NUM_THREADS=1 $(BIN)/python tests/soak.py $(if $(SEED),--seed $(SEED)) $(if $(CASES),--cases $(CASES))

bench: $(INSTALLED)
	@OMP_NUM_THREADS=1 QUICK=$(QUICK) $(BIN)/python -m benchmarks $(ONLY)

accept: $(INSTALLED)
	@$(BIN)/python tests/accept.py $(LINES)

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache
