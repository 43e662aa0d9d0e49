# `make demo` and `make test` do everything on a fresh machine; each makes its own .venv first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
NATIVE := $(shell find kernels/native -name '*.cpp' -o -name '*.h' -o -name '*.inc')
CUDA   := $(shell find kernels/cuda tests/kernels -name '*.cu' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.h')

# What `make sanitize` runs; another part of the suite: make sanitize SANITIZED=tests/layers
SANITIZED := tests/kernels tests/export/test_library.py tests/export/test_library_refusals.py
WATCHED   := build/sanitize
# A small quarantine: what was freed is kept for a while, and a test asks that memory stays constant.
ASAN      := detect_leaks=0:detect_odr_violation=0:quarantine_size_mb=4:thread_local_quarantine_size_kb=64

.PHONY: demo test check format sanitize clean

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

# The kernels once more with AddressSanitizer and UndefinedBehaviorSanitizer, by GCC, in an environment of their own that
# borrows the packages of .venv. Python itself is not watched: its sanitizers are loaded first, and its leaks are its own.
sanitize: $(STAMP)
	test -x $(WATCHED)/bin/python || $(BIN)/python -m venv --without-pip $(WATCHED)
	$(BIN)/python -c 'import sys, pathlib; [path] = pathlib.Path("$(WATCHED)").glob("lib/python*/site-packages"); \
	  (path / "borrowed.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))'
	$(BIN)/python -m pip --python $(WATCHED)/bin/python install --disable-pip-version-check -q --no-deps --force-reinstall \
	  -C cmake.define.BINARIZE_SANITIZE=ON -C build-dir=$(WATCHED)/objects .
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=$(ASAN) UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=1 \
	  $(WATCHED)/bin/python -I -m pytest -p no:cacheprovider $(SANITIZED)

# The stamp is older than a native source that changed, so that the kernels are compiled again.
$(STAMP): pyproject.toml kernels/CMakeLists.txt $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "binarize needs Python 3.10 or newer: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[dev]"
	touch $@

clean:
	rm -rf build demo .mypy_cache .pytest_cache .ruff_cache .hypothesis
