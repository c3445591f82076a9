# make setup      .venv with torch and what the tests need, package installed, C++ built (incrementally)
# make pretrain   trains a small DeepSeek-V3 on real text; flags: make pretrain ARGS="--tokens 500000"
# make test       every test that needs no GPU
# make test-sim   the CUDA kernels without a GPU: the simulator's own tests, then operators on it; needs nvcc
# make test-cubin the CUDA kernels' machine code: no spills, registers within a budget, tables up to date, the module
#                 that ships builds and registers every operator; needs nvcc
# make gpu-check  what only a GPU can show: tests, compute-sanitizer and benchmarks on it, written to docs/gpu-report.md
# make test-kills training killed 20 times at random moments goes on bit for bit; KILLS=100 for more
#
# SYSTEM=1        use the active Python environment instead of .venv (torch is then yours to install)
# TORCH=...       another torch than the pinned one, e.g. TORCH="torch==2.14.*"

TORCH ?= torch==2.13.0
ARGS ?=

ifdef SYSTEM
PYTHON := python3
STAMPS := build/stamps-system
BIN := $(shell python3 -c 'import sysconfig; print(sysconfig.get_path("scripts"))')/
else
PYTHON := .venv/bin/python
STAMPS := .venv/stamps
BIN := .venv/bin/
endif

.PHONY: setup build pretrain test test-sim test-cubin gpu-check test-kills test-sanitized docs docs-kernels lint format bench bench-compare bench-step wheel clean
.DEFAULT_GOAL := setup

setup: build

.venv/bin/python:
	python3 -m venv .venv

$(STAMPS)/torch: $(if $(SYSTEM),,.venv/bin/python)
	@mkdir -p $(@D)
ifdef SYSTEM
	@$(PYTHON) -c "import torch" 2>/dev/null || { echo "SYSTEM=1 uses the active environment: install torch >= 2.11 there first"; exit 1; }
	$(PYTHON) -m pip install -q "setuptools>=77" wheel ninja
else
	$(PYTHON) -m pip install -q "setuptools>=77" wheel ninja "$(TORCH)"
endif
	@touch $@

# Metadata and the console script; the extension modules are built in place by `build`, which is incremental.
$(STAMPS)/installed: pyproject.toml $(STAMPS)/torch
	DSE_SKIP_EXTENSIONS=1 $(PYTHON) -m pip install -q --no-build-isolation -e ".[test]"
	@touch $@

$(STAMPS)/dev: $(STAMPS)/installed
	DSE_SKIP_EXTENSIONS=1 $(PYTHON) -m pip install -q --no-build-isolation -e ".[dev]"
	@touch $@

build: $(STAMPS)/installed
	@mkdir -p build
	@$(PYTHON) setup.py build_ext --inplace > build/build.log 2>&1 || { cat build/build.log; exit 1; }

pretrain: build
	$(PYTHON) examples/pretrain.py $(ARGS)

# Two workers of one thread each; a test about threads sets its own number.
test: build
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadgroup -q --ignore=tests/ptxsim --ignore=tests/cubin $(ARGS)

# SEED=1, 2, ... runs every kernel under another schedule.
SEED ?= 0
test-sim: build
	$(MAKE) -s -j 2 -f tests/ptxsim/extension.mk PYTHON=$(PYTHON)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 -q tests/ptxsim $(ARGS)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 -q tests/ops --backend simulator --simulator-seed $(SEED) $(ARGS)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 -q tests/ops --backend simulator --simulator-seed $$(($(SEED) + 1)) \
	    --simulator-capability 80 $(ARGS)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q benchmarks --device simulator

test-cubin: build
	$(PYTHON) -m pytest -q tests/cubin $(ARGS)

# ARGS="--sanitize EXPRESSION" chooses what runs under compute-sanitizer, --limit the seconds of each step.
gpu-check: build
	$(PYTHON) tests/gpu/check.py $(ARGS)

# Training killed at random moments, more often than in `make test`; for the night.
test-kills: build
	DSE_TEST_KILLS=$(or $(KILLS),20) OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q tests/train/test_kill.py $(ARGS)

# The torch-free kernels under AddressSanitizer and UndefinedBehaviorSanitizer.
test-sanitized:
	bash tests/sanitized/run.sh

# docs/operators.md from the docstrings; a test holds the two together.
docs: build
	$(PYTHON) docs/generate_operators.py

# The tables of CUDA kernels in docs/performance.md; needs nvcc.
docs-kernels: build
	$(MAKE) -s -j 2 -f tests/ptxsim/extension.mk PYTHON=$(PYTHON)
	$(PYTHON) docs/generate_kernels.py

lint: $(STAMPS)/dev
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	git ls-files '*.h' '*.cpp' '*.inc' '*.cu' '*.cuh' | xargs $(BIN)clang-format --dry-run --Werror

format: $(STAMPS)/dev
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
	git ls-files '*.h' '*.cpp' '*.inc' '*.cu' '*.cuh' | xargs $(BIN)clang-format -i

bench: build
	@mkdir -p .benchmarks
	$(PYTHON) -m pytest benchmarks -q --benchmark-json=.benchmarks/latest.json $(ARGS)

# The saved run is BASE (default .benchmarks/base.json; save one with: cp .benchmarks/latest.json .benchmarks/base.json)
BASE ?= .benchmarks/base.json
bench-compare: build
	$(PYTHON) benchmarks/compare.py $(BASE) .benchmarks/latest.json

# A whole training step, speed and peak memory, beside transformers' model of the same shape.
bench-step: build
	$(PYTHON) benchmarks/step.py $(ARGS)

wheel: $(STAMPS)/torch
	$(PYTHON) -m pip wheel -q --no-build-isolation --no-deps -w dist .

clean:
	rm -rf build dist .venv deepseek_ext/*.so *.egg-info
