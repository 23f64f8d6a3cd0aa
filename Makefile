# Everything runs in .venv, which `make` creates and renews when pyproject.toml or constraints.txt changes.
PYTHON ?= python3
# How many generated cases `make check` tries: smoke, quick or full.
PROFILE ?= smoke
BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt
# Tests run side by side, a process for each core.
PYTEST := $(BIN)/python -m pytest --quiet --durations=5 --numprocesses=auto --maxprocesses=4 --dist=worksteal
# The tests' tensors are small: threads would wait for each other many times longer than they work.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup check test lint sanitize fuzz docs matrix mutants mutants-suite triton-defects dist format browser clean
.NOTPARALLEL:

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## create .venv and install everything (done by the others when needed)
	@$(BIN)/python -V

check: $(READY) ## run the laws for every installed backend, the main job; PROFILE=quick tries more cases
	@$(BIN)/rnn-backends check --profile $(PROFILE)

# All three run, whichever fails, so that one run says everything; pytest's closing line comes last.
test: $(READY) ## check, lint, then all tests; branch coverage of core and plugins
	@status=0; \
	$(MAKE) --no-print-directory check || status=1; \
	$(MAKE) --no-print-directory lint || status=1; \
	echo "== tests"; \
	$(PYTEST) --cov --cov-report=term core/tests plugins/tests || status=1; \
	$(PYTEST) conformance/tests asv_benchmarks/tests examples/tests || status=1; \
	exit $$status

lint: $(READY) ## ruff (lint and format) and mypy, changing nothing
	@echo "== lint"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: $(READY) ## the documentation site, into site/; a broken link, anchor or reference is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet && echo "look at it: python3 -m http.server -d site"

# PYTHONS, ONLY: see tools/matrix.py --help.
matrix: $(READY) ## tests on other versions of Python, torch, tensordict, TorchRL; ONLY=py3.12, ENVIRONMENT=python
	@$(BIN)/python tools/matrix.py $(if $(ONLY),--only $(ONLY)) $(if $(ENVIRONMENT),--environment $(ENVIRONMENT))

mutants: $(READY) ## mutation testing of core's smallest files, hours; FILES="resets stack" for a part, BUDGET=20 minutes
	@$(BIN)/python tools/mutants.py $(FILES) $(if $(BUDGET),--minutes $(BUDGET))

# MINUTES: the budget of one run; the next one continues. TARGETS: "stack tiled" for a part.
MINUTES ?= 30
mutants-suite: $(READY) ## mutants of core and of kernels in Python against the laws, MINUTES of them; writes the page
	@$(BIN)/python tools/mutants_suite.py $(TARGETS) --minutes $(MINUTES) --write

triton-defects: $(READY) ## edits of the Triton kernels, each of which must be found, without a GPU, four minutes; writes the page
	@TRITON_INTERPRET=1 TRITON_DEFAULT_FP_FUSION=1 $(BIN)/python plugins/tests/triton_defects.py --write

dist: $(READY) ## wheel and source distribution, into dist/; the wheel is installed into a fresh environment and imported
	@rm -rf dist && $(BIN)/python -m build --quiet . && $(BIN)/python tools/try_wheel.py dist

# CASES: how many.
CASES ?= 400
sanitize: $(READY) ## the C++ kernel under AddressSanitizer and UBSan over CASES random cases, a minute or two
	@$(BIN)/python plugins/tests/sanitize.py --cases $(CASES)

# CALLS: how many. The other fuzzers (reports, tokens, names, crossovers) are tests with a budget of their own.
CALLS ?= 400
fuzz: $(READY) ## CALLS bad calls of the public interface, each in a process of its own, a minute or two
	@$(BIN)/python core/tests/fuzz_calls.py --calls $(CALLS)

format: $(READY) ## let ruff fix and format the sources
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

browser: ## install chromium and its driver (Debian, as root), so that the tests of the HTML report run too
	apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver

clean: ## remove .venv and caches
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .mutants .matrix site dist

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

# Benchmarks: docs/performance.md. asv and matplotlib come with the first of them; N commits, BENCH a regex of names.
N ?= 3
BENCH ?= .
MACHINE ?= local
BENCH_READY := .venv/.bench
ASV = cd asv_benchmarks && ../$(BIN)/asv
ASV_ENV = -E virtualenv:$(shell $(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
.PHONY: bench figures ppo-times dashboard bench-compare dashboard-check

bench: $(READY) ## R and Q of every backend and shape, under five minutes
	@$(BIN)/python -m rnn_benchmarks.quick

figures: $(BENCH_READY) ## measure docs/performance.md's tables and pictures, a quarter of an hour
	@$(BIN)/python -m rnn_benchmarks.page measure fill

ppo-times: $(BENCH_READY) ## measure whole PPO iterations and their parts, five minutes; fills docs/performance.md
	@$(BIN)/python tools/ppo_times.py --write

dashboard: $(BENCH_READY) ## asv over the last N commits, and its site in .asv/html; BENCH=regex for a part
	@$(ASV) machine --yes --machine $(MACHINE)
	@git rev-list -n $(N) HEAD | (cd asv_benchmarks && ../$(BIN)/asv run $(ASV_ENV) HASHFILE:- --machine $(MACHINE) \
		--skip-existing --bench '$(BENCH)')
	@$(ASV) publish
	@echo "look at it: python3 -m http.server -d .asv/html"

# The table counts: asv's exit status is 1 for a regression and also where nothing could be measured.
bench-compare: $(BENCH_READY) ## asv: what changed from BASE to HEAD; BENCH=regex for a part
	@test -n "$(BASE)" || { echo "say which commit: make bench-compare BASE=main"; exit 2; }
	@$(ASV) machine --yes --machine $(MACHINE)
	-@$(ASV) continuous $(ASV_ENV) --machine $(MACHINE) --factor 1.1 --show-stderr --bench '$(BENCH)' $(BASE) HEAD

dashboard-check: $(BENCH_READY) ## the dashboard in a real browser (chromium), minutes
	@RNN_BENCH_BROWSER=1 $(BIN)/python -m pytest -q asv_benchmarks/tests

# On the machine with a GPU: docs/gpu.md. The bundle has the packages that a machine without a network lacks.
DEVICE ?= cuda
OUT ?= gpu-results
MINUTES ?= 6
PARTS ?=
GPU_ARGS ?=
GPU_OPTIONS = --device $(DEVICE) --out $(OUT) --minutes $(MINUTES) $(if $(PARTS),--parts $(PARTS)) $(GPU_ARGS)
.PHONY: gpu-bundle gpu gpu-page

gpu-bundle: $(READY) ## a folder to carry to a machine with a GPU and no network: wheels, tests, run.sh
	@$(BIN)/python tools/gpu_bundle.py gpu-bundle

gpu: ## laws, CUDA tests, figures, crossovers on a GPU into OUT, in MINUTES; DEVICE, PARTS, GPU_ARGS="--shape S1"
	@if test ! -x $(BIN)/python && test -x gpu-bundle/run.sh; then gpu-bundle/run.sh $(GPU_OPTIONS); \
	else $(MAKE) --no-print-directory setup && \
	  $(BIN)/python -m rnn_benchmarks.gpu run --tests plugins/tests/test_cuda.py $(GPU_OPTIONS); fi

gpu-page: $(READY) ## fill the GPU parts of docs/ and the shipped crossovers from the folder OUT
	@$(BIN)/python -m rnn_benchmarks.gpu page $(OUT)

$(BENCH_READY): $(READY)
	@echo "== set-up: installing asv and matplotlib"
	@$(PIP) --editable '.[bench]'
	@touch $@
