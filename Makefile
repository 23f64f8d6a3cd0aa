# Everything runs in .venv, which `make` creates and renews when pyproject.toml or constraints.txt changes.
PYTHON ?= python3
# How many generated cases `make check` tries: smoke, quick or full.
PROFILE ?= smoke
BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt
# The tests' tensors are small: threads would wait for each other many times longer than they work.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup check test lint format browser clean
.NOTPARALLEL:

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## create .venv and install everything (done by the others when needed)
	@$(BIN)/python -V

check: $(READY) ## run the laws for every installed backend, the main job; PROFILE=quick tries more cases
	@$(BIN)/rnn-backends check --profile $(PROFILE)

# All three run, whichever fails, so that one run says everything; pytest's closing line comes last.
test: $(READY) ## check, lint, then all tests
	@status=0; \
	$(MAKE) --no-print-directory check || status=1; \
	$(MAKE) --no-print-directory lint || status=1; \
	echo "== tests"; \
	$(BIN)/python -m pytest --quiet --durations=5 || status=1; \
	exit $$status

lint: $(READY) ## ruff (lint and format) and mypy, changing nothing
	@echo "== lint"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(READY) ## let ruff fix and format the sources
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

browser: ## install chromium and its driver (Debian, as root), so that the tests of the HTML report run too
	apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver

clean: ## remove .venv and caches
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=...")'
	@test -x $(BIN)/python || { echo "== set-up: creating .venv"; $(PYTHON) -m venv .venv; }
	@$(PIP) pip
# torch comes first and alone, so that no later requirement can talk the resolver into another build of it.
	@echo "== set-up: installing torch (minutes, the first time)"
	@$(PIP) torch
	@echo "== set-up: installing rnn-backends and its tools"
	@$(PIP) --editable . --group dev
	@touch $@
