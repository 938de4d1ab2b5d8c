# The two commands of a newcomer are `make demo` and `make test`; each sets up what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CORE_SOURCES := $(shell find csrc -type f)
CXX_SOURCES := $(shell find csrc tests/cuda_host -name '*.cpp' -o -name '*.cu' -o -name '*.h')
DEMO ?= demo

.DEFAULT_GOAL := help
.PHONY: help install demo publish-demo check test test-full vouch lint format bench compare package clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED)  ## Set up a virtual environment with everything in it (editable)

# Machine code for six architectures would be most of the set-up's time; the driver compiles this for any GPU from
# sm_80 on, and the tests compile every kernel for every architecture on their own.
export CPL_CUDA_ARCHS ?= 80-virtual

# Without an NVIDIA driver the CUDA kernels could not run; they are left out of the set-up. `make package` builds them.
WITHOUT_CUDA := $(if $(wildcard /dev/nvidia* /dev/dxg),0,1)

# Versions come from constraints.txt: an unpinned torch could bring gigabytes of CUDA packages. lightly, which a test
# compares a loss with, comes alone: of what it asks for, torchvision does not import with this torch.
$(INSTALLED): pyproject.toml setup.py constraints.txt $(CORE_SOURCES)
	$(PYTHON) -m venv $(VENV)
	CPL_SKIP_CUDA=$${CPL_SKIP_CUDA:-$(WITHOUT_CUDA)} \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,serve,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps lightly
	@touch $@

demo: $(INSTALLED)  ## Train a small model on bundled photos, restore held-out ones, show pictures and figures
	$(BIN)/python examples/demo.py --output $(DEMO)

publish-demo: demo  ## Keep the demo's figures and picture sheet for the README
	cp $(DEMO)/results.json benchmarks/results/demo.json
	$(BIN)/python -c "from PIL import Image; Image.open('$(DEMO)/before_restored_truth.png').convert('RGB').save('docs/images/demo.jpg', quality=88)"

# A process for each core, up to eight (about a GB each), of one thread: tests that are about threads set their number.
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 1); [ $$n -gt 8 ] && n=8; echo $$n)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

# One configuration of each op, the model and the command line; docs/testing.md says what it leaves out.
CHECKED := (test_parity and native-small and float32) or (test_contract and native-small and not compiles and not opcheck)
CHECKED := $(CHECKED) or test_dispatch or test_model_forward or test_main or test_restore.py

check: lint  ## The linters and the tests of daily work: three minutes
	$(PYTEST) -q -m 'not slow and not interpreter and not gpu' -k '$(CHECKED)' \
		tests/kernels/test_parity.py tests/kernels/test_contract.py tests/kernels/test_dispatch.py tests/model tests/cli

test: $(INSTALLED)  ## Run the tests that guard main (Triton's interpreter in processes of its own); JOBS=1 for one at a time
	$(BIN)/python -m tests.kernels.prebuild
	$(PYTEST) -m 'not slow and not interpreter and not gpu'
	TRITON_INTERPRET=1 $(PYTEST) -m 'interpreter and not slow' tests/kernels

test-full: $(INSTALLED)  ## Run the full grid too: every instruction set, target, configuration and slow test
	$(BIN)/python -m tests.kernels.prebuild --full
	$(PYTEST) -m 'not interpreter and not gpu'
	TRITON_INTERPRET=1 $(PYTEST) -m interpreter tests/kernels

vouch: $(INSTALLED)  ## Run changed C++ on every instruction set and under sanitizers, and write down that it passed
	$(BIN)/python -m tests.kernels.vouched

lint: $(INSTALLED)  ## ruff, mypy, import-linter, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)

format: $(INSTALLED)  ## Format everything in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

# bench_step.py measures no op but the whole network, by a command of its own.
BENCHES := $(filter-out step,$(patsubst benchmarks/bench_%.py,%,$(wildcard benchmarks/bench_*.py)))

bench: $(INSTALLED)  ## A look at every kernel on this CPU (which must be idle): a size of each, in ten minutes
	mkdir -p build/bench
	for op in $(BENCHES); do \
		$(BIN)/python -m pytest -q benchmarks/bench_$$op.py --sizes 1 --benchmark-json=build/bench/$$op.json && \
		$(BIN)/python -m benchmarks.report build/bench/$$op.json | tee build/bench/$$op.md || exit 1; \
	done

bench-results: $(addprefix bench-,$(BENCHES)) bench-defaults bench-calls  ## All sizes, into benchmarks/results

bench-defaults: $(INSTALLED)
	$(BIN)/python -m benchmarks.dispatch --out benchmarks/results/cpu_dispatch.json

bench-calls: $(INSTALLED)
	$(BIN)/python -m benchmarks.call_cost --out benchmarks/results/cpu_call_cost.json

bench-step: $(INSTALLED)  ## The whole network, training and inference, ours against plain PyTorch; an hour and a half on a CPU
	$(BIN)/python -m benchmarks.bench_step --device cpu --out benchmarks/results/cpu_step.json
	$(BIN)/python -m benchmarks.step.page benchmarks/results/cpu_step.json --chart benchmarks/results/cpu_step.png > benchmarks/results/cpu_step.md

bench-%: $(INSTALLED)
	$(BIN)/python -m pytest benchmarks/bench_$*.py --benchmark-json=benchmarks/results/cpu_$*.json
	$(BIN)/python -m benchmarks.report benchmarks/results/cpu_$*.json --chart benchmarks/results/cpu_$*.png > benchmarks/results/cpu_$*.md

compare: $(INSTALLED)  ## Kernels of this tree against another commit: make compare REV=main
	$(BIN)/python -m benchmarks.compare $(REV)

package: $(INSTALLED)  ## Build the sdist and, from it, the wheel; install it into an empty environment; use it
	rm -rf dist
	$(BIN)/python -m build --quiet
	PYTHON='$(PYTHON)' sh tests/packaging/wheel_in_empty_environment.sh dist/*.whl

clean:  ## Remove what was built (not the virtual environment)
	rm -rf build dist *.egg-info cpl_kernels/_core*.so cpl_kernels/_build.py
