# `make demo` and `make test` do everything on a fresh machine; each makes its own .venv first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
NATIVE := $(shell find kernels/native -name '*.cpp' -o -name '*.h' -o -name '*.inc')
CUDA   := $(shell find kernels/cuda tests/kernels/cuda -name '*.cu' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.h')

.PHONY: demo test check format clean

demo: $(STAMP)
	$(BIN)/binarize demo

test: $(STAMP)
	$(BIN)/pytest

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(filter-out %.inc,$(NATIVE)) $(CUDA)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(filter-out %.inc,$(NATIVE)) $(CUDA)

# The stamp is older than a native source that changed, so that the kernels are compiled again.
$(STAMP): pyproject.toml kernels/CMakeLists.txt $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "binarize needs Python 3.10 or newer: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[dev]"
	touch $@

clean:
	rm -rf build demo .mypy_cache .pytest_cache .ruff_cache .hypothesis
