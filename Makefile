# make demo    builds everything and shows what compression does, with the sample model and page in the package
# make test    builds everything, also the unpatched libllama for comparison, and runs all tests
# make check   the quick ones of them, in less than a minute: the pure parts, and the bundled model's answers
# make lint    ruff and mypy
# make test-ray installs Ray, and runs its test on a cluster of two workers
# make pythons the package on each Python from 3.10 to 3.14 that is here, and with the oldest dependencies: noxfile.py
# make build   only builds: the package is then importable from .venv and from here
# make docs-api writes docs/api.md from the docstrings; make plots draws the pictures of README.md anew
# make quality renews the tables of README.md and docs/quality.md with the bundled model (a quarter of an hour); then make plots
# make sanitize, make fuzz, make soak   look for faults: docs/robustness.md
# make clean   removes what was built and fetched; make distclean .venv too
#
# Every target sets up .venv itself. CMAKE_ARGS="-DGGML_CUDA=ON" make build passes options to CMake.

PYTHON ?= python3
TORCH  ?= torch==2.13.0# taken first, by itself: TORCH="--index-url ... torch" picks another build of it
PYTEST_ARGS ?=
NOX_ARGS ?=
TEST_JOBS ?= 2# processes that share the tests; most of these use one core

VENV := .venv
PY   := $(VENV)/bin/python
PIP  := $(PY) -m pip --disable-pip-version-check

# The RPC backend is a device without host memory that needs no GPU: tests run on it. One build for demo and tests.
override CMAKE_ARGS := -DGGML_RPC=ON -DPYAIRCACHE_TESTS=ON $(CMAKE_ARGS)
export CMAKE_ARGS
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

# What the libraries are made of. Python files are not in it: they are used where they lie.
SOURCES := pyproject.toml CMakeLists.txt llama.cpp.lock \
	$(wildcard tests/native/*.cpp tests/native/*.h tests/native/CMakeLists.txt fuzz/*.cpp fuzz/*.h fuzz/CMakeLists.txt) \
	$(shell find cmake native patches -type f -not -name '*.pyc' 2>/dev/null)

.PHONY: demo test test-ray check lint pythons build stock quality docs-api plots clean distclean FORCE

demo: build
	$(PY) -m pyaircache demo

test: build $(VENV)/tests.done stock
	$(PY) -m pytest -n $(TEST_JOBS) --dist loadscope --no-loadscope-reorder $(PYTEST_ARGS)

test-ray: build $(VENV)/tests.done
	$(PIP) install -q $$($(PY) cmake/requires.py ray)
	$(PY) -m pytest $(PYTEST_ARGS) tests/python/test_ray.py

# Nothing here makes a model or starts a server. What is added must not take more than a few seconds.
CHECKS := tests/bench/test_figures.py tests/bench/test_scripts.py tests/build/test_fetch.py \
	tests/convert/test_source.py tests/convert/test_tokenizer.py tests/docs/test_api.py tests/docs/test_links.py \
	tests/engine/test_budgets.py \
	$(filter-out %_bundled.py %/test_documents.py %/test_faults.py %/test_fork.py %/test_interrupts.py %/test_loading.py %/test_typing.py, \
		$(wildcard tests/python/test_*.py)) \
	tests/python/test_chat_bundled.py::test_bundled_samples_are_read

check: build $(VENV)/tests.done
	$(PY) -m pytest -n $(TEST_JOBS) --dist loadscope $(PYTEST_ARGS) $(CHECKS)

quality: build $(VENV)/tests.done
	$(PY) bench/quality.py --method aircache --method last --update README.md
	$(PY) bench/quality.py --pages 100 --update docs/quality.md

docs-api: $(VENV)/tests.done
	$(PY) docs/make_api.py

plots: build $(VENV)/tests.done
	$(PY) docs/img/heatmap.py
	$(PY) docs/img/plots.py

lint: $(VENV)/lint.done
	$(PY) -m ruff check
	$(PY) -m mypy

pythons: build $(VENV)/nox.done
	$(PY) -m nox $(NOX_ARGS)

build: build/build.done

stock: build/stock.done

# --- set-up: a file in .venv or build says that a step is done ---------------------------------------------------------

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed; name one with PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "cannot create $(VENV): Debian and Ubuntu have venv in the package python3-venv"; exit 1; }

# cmake and ninja from PyPI only where the system has none.
$(VENV)/tools.done: | $(PY)
	$(PIP) install -q "scikit-build-core>=0.11" $(shell command -v cmake >/dev/null || echo cmake) \
		$(shell command -v ninja >/dev/null || echo ninja)
	@touch $@

# An editable install: Python files are used from here, libraries and programs are put beside them.
build/build.done: $(SOURCES) build/cmake-args $(VENV)/tools.done
	$(PIP) install -v --no-build-isolation -e .
	@touch $@

STOCK_SOURCES := llama.cpp.lock $(wildcard cmake/stock* cmake/stock/*) cmake/llama-options.cmake cmake/ccache.cmake
build/stock.done: $(STOCK_SOURCES) build/cmake-args | build/build.done
	cmake --build build --target stock
	@touch $@

$(VENV)/tests.done: pyproject.toml | $(PY)
	$(PIP) install -q $(TORCH)
	$(PIP) install -q $$($(PY) cmake/requires.py test)
	@touch $@

$(VENV)/lint.done: pyproject.toml | $(PY)
	$(PIP) install -q $$($(PY) cmake/requires.py lint)
	@touch $@

$(VENV)/nox.done: pyproject.toml | $(PY)
	$(PIP) install -q $$($(PY) cmake/requires.py nox)
	@touch $@

# Rewritten only when the options change: then the build runs again.
build/cmake-args: FORCE
	@mkdir -p build
	@echo '$(CMAKE_ARGS)' | cmp -s - $@ || echo '$(CMAKE_ARGS)' > $@

clean:
	rm -rf build dist vendor pyaircache/lib pyaircache/bin
	find pyaircache tests cmake -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

# --- machines that look for faults: docs/robustness.md ------------------------------------------------------------------

# clang where there is one: its build serves the fuzz targets, too. CI makes do with gcc.
CLANG := $(shell command -v clang++ >/dev/null && echo -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++)
SANITIZED := cmake -S . -G Ninja -DPYAIRCACHE_TESTS=ON -DGGML_RPC=ON -DGGML_OPENMP=OFF $(CLANG)
PROGRAMS  := test-aircache llama-server fuzz/fuzz
SANITIZE_TESTS ?= tests/native tests/fuzz tests/engine/test_layout.py tests/engine/test_modes.py tests/server
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?=
SOAK_ARGS ?=

.PHONY: sanitize sanitize-address sanitize-thread sanitize-quick fuzz fuzz-minimise soak

sanitize: sanitize-address sanitize-thread

# ASan and UBSan over everything, Python and its engine library included.
sanitize-address: build/asan/build.ninja build/build.done $(VENV)/tests.done
	cmake --build build/asan --target pyaircache_engine converter $(PROGRAMS)
	$(PY) fuzz/sanitize.py build/asan $(SANITIZE_TESTS)

# TSan over what has threads: the server, and graphs on two threads. OpenMP is off, TSan does not understand it.
sanitize-thread: build/tsan/build.ninja build/build.done $(VENV)/tests.done
	cmake --build build/tsan --target test-aircache llama-server
	$(PY) fuzz/sanitize.py build/tsan tests/native/test_native.py tests/server/test_server.py tests/server/test_soak.py

# What CI has time for: the decoders of pictures, which read bytes from anywhere and need nothing of llama.cpp.
sanitize-quick: build/asan/build.ninja build/build.done $(VENV)/tests.done
	cmake --build build/asan --target picture-dump fuzz-picture
	$(PY) fuzz/sanitize.py build/asan tests/native/test_pictures.py tests/native/test_picture_limits.py tests/fuzz -k "picture and not python"

fuzz: build/asan/build.ninja build/build.done $(VENV)/fuzz.done
	@test -n "$(CLANG)" || { echo "make fuzz needs clang (Debian: apt-get install clang llvm)"; exit 1; }
	cmake --build build/asan --target fuzz/fuzz
	$(PY) fuzz/run.py --seconds $(FUZZ_SECONDS) $(FUZZ_TARGETS)

fuzz-minimise: $(VENV)/fuzz.done
	$(PY) fuzz/run.py --minimise $(FUZZ_TARGETS)

soak: build
	$(PY) bench/server_soak.py $(SOAK_ARGS)

build/asan/build.ninja: CMakeLists.txt | $(VENV)/tools.done
	$(SANITIZED) -B build/asan -DPYAIRCACHE_SANITIZE="address;undefined" $(if $(CLANG),-DPYAIRCACHE_FUZZ=ON)

build/tsan/build.ninja: CMakeLists.txt | $(VENV)/tools.done
	$(SANITIZED) -B build/tsan -DPYAIRCACHE_SANITIZE=thread

$(VENV)/fuzz.done: | $(PY)
	$(PIP) install -q atheris pillow numpy
	@touch $@
