# Uses an active environment with torch 2.10 or later; otherwise creates .venv.
ACTIVE := $(firstword $(shell for python in python python3; do $$python -c 'import sys, torch; \
  print(sys.executable if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 10) else "")'; done 2>/dev/null))
PYTHON := $(or $(ACTIVE),.venv/bin/python)
export PATH := $(abspath $(dir $(PYTHON))):$(PATH)
SOURCES := setup.py pyproject.toml constraints.txt CMakeLists.txt $(wildcard cmake/* csrc/*.* csrc/*/*.*)
INSTALLED := build/installed$(subst /,-,$(abspath $(PYTHON)))
# What the demo needs, unless everything is installed.
DEMO_INSTALLED := $(or $(wildcard $(INSTALLED)),$(subst installed,demo,$(INSTALLED)))
# One worker per core. A worker has one OpenMP thread, unless a test wants more, and waits asleep.
WORKERS := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
PINNED := $(if $(ACTIVE),,-c constraints.txt)
IN_PARALLEL = $(shell $(PYTHON) -c 'import xdist; print("-n auto --maxprocesses 16 --dist worksteal")' 2>/dev/null)
SANITIZED := build/sanitized
REHEARSAL := build/rehearsal
# The Python of the rehearsal; pyenv's need not be on PATH.
REHEARSING := $(firstword $(shell for python in python3.12 ~/.pyenv/versions/3.12*/bin/python3.12 \
  python3; do $$python -c 'import sys; print(sys.executable)'; done 2>/dev/null))
GPU_PARTS := gpu-build gpu-test gpu-sanitize gpu-bench gpu-tune

.PHONY: demo quick test examples clients docs ptx oldest-triton bench structure paper gpu $(GPU_PARTS) \
  gpu-rehearsal lint format sanitize package clean

demo: $(DEMO_INSTALLED)
	$(PYTHON) -m bench.demo

# The tests that are not marked slow: under three minutes on two cores.
quick: $(INSTALLED)
	$(WORKERS) $(PYTHON) -m pytest -q $(IN_PARALLEL)

# Every test, in six to nine minutes on two cores. Examples run where their libraries are installed.
test: $(INSTALLED)
	$(WORKERS) $(PYTHON) -m pytest -m "" tests -q $(IN_PARALLEL)

# Runs each file of examples/ at a small size, with the libraries that it needs.
examples: $(INSTALLED)
	$(PYTHON) -m pip install -q $(PINNED) -r examples/requirements.txt
	$(PYTHON) -m pip install -q $(PINNED) --no-deps timm
	$(PYTHON) -m pytest -q -m "" tests/project/test_examples.py

# The trainers and wrappers that people use with the optimizer, each with a tiny model.
clients: $(INSTALLED)
	$(PYTHON) -m pip install -q $(PINNED) -r tests/clients/requirements.txt
	$(PYTHON) -m pip install -q $(PINNED) --no-deps timm torchtitan spmd_types torch_checkpointing torchdata
	$(WORKERS) $(PYTHON) -m pytest -q -m "" tests/clients

# Writes the site to build/site. A warning is an error.
docs: $(INSTALLED)
	$(PYTHON) -m pip install -q $(PINNED) -r docs/requirements.txt
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet

# Every case of the compiled kernels, executed from their PTX, for each generation of GPUs. make test
# runs a selection.
ptx: $(INSTALLED)
	for arch in 75 80 90 100 120; do RADAM_PTX=full RADAM_PTX_ARCH=$$arch \
	  $(PYTHON) -m pytest -q -m "" tests/test_ptx.py || exit 1; done

# The Triton backend with the oldest supported Triton.
oldest-triton: $(INSTALLED)
	test -d build/triton || $(PYTHON) -m pip install -q --no-deps --target build/triton triton==3.6.0
	PYTHONPATH=build/triton $(PYTHON) -c 'import triton; assert triton.__version__ == "3.6.0"'
	PYTHONPATH=build/triton $(WORKERS) $(PYTHON) -m pytest -q -m "" $(IN_PARALLEL) -k triton \
	  tests/test_triton_build.py tests/test_triton_launches.py tests/test_triton_driver.py tests/test_ptx.py \
	  tests/test_amp.py tests/test_graphs.py tests/test_backends_agree.py tests/test_grad_norm.py \
	  tests/test_clipping.py tests/test_update_norm.py tests/test_ptx_norms.py tests/test_formats.py

bench: $(INSTALLED)
	$(PYTHON) -m bench

# Compares the step with that of another commit, and with torch, in one run: make structure BEFORE=COMMIT
structure: $(INSTALLED)
	$(PYTHON) -m bench.structure --before $(BEFORE)

# The experiments of docs/evidence.md. One of them: python -m bench.paper variance
paper: $(INSTALLED)
	$(PYTHON) -m bench.paper all

# On a machine with a GPU, in a complete environment: installs only this package. Each part but
# gpu-tune takes less than four minutes and writes logs and results to $OUT (default: build/gpu).
gpu:
	$(PYTHON) -m tests.gpu build test sanitize bench

$(GPU_PARTS): gpu-%:
	$(PYTHON) -m tests.gpu $*

# All of them without a GPU, in an environment like that of a machine with one.
# It works on a copy of the files, so that this checkout has one build of the extension.
gpu-rehearsal: $(REHEARSAL)/installed
	mkdir -p $(REHEARSAL)/copy
	find $(REHEARSAL)/copy -mindepth 1 -maxdepth 1 ! -name build -exec rm -rf {} +
	git ls-files -z -co --exclude-standard | xargs -0 cp -p --parents -t $(REHEARSAL)/copy
	cd $(REHEARSAL)/copy && PATH=$(CURDIR)/$(REHEARSAL)/bin:$$PATH python -m tests.harness.rehearsal

$(REHEARSAL)/installed: tests/harness/rehearsal/requirements.txt
	$(REHEARSING) -m venv $(REHEARSAL)
	$(REHEARSAL)/bin/python -m pip install -q -r $<
	touch $@

lint: $(INSTALLED)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(dir $(PYTHON))clang-format --dry-run --Werror $$(git ls-files '*.h' '*.cpp' '*.cu')
	$(PYTHON) -m mypy

format: $(INSTALLED)
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
	$(dir $(PYTHON))clang-format -i $$(git ls-files '*.h' '*.cpp' '*.cu')

# The tests of the kernels, also of the CUDA grid on the host, with AddressSanitizer and
# UndefinedBehaviorSanitizer, in a copy of the package.
sanitize: $(INSTALLED)
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	cp -r radam_fused tests $(SANITIZED) && rm -f $(SANITIZED)/radam_fused/_C.*
	cmake -S . -B $(SANITIZED)/cmake -G Ninja -DRADAM_SANITIZE=address,undefined -DRADAM_FUSED_CUDA=OFF \
	  -DPython_EXECUTABLE=$$($(PYTHON) -c 'import sys; print(sys.executable)') \
	  -Dpybind11_DIR=$$($(PYTHON) -m pybind11 --cmakedir) \
	  -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/$(SANITIZED)/radam_fused
	cmake --build $(SANITIZED)/cmake --target _C host_grid
	cd $(SANITIZED) && export RADAM_HOST_GRID="$$(ls $(CURDIR)/$(SANITIZED)/radam_fused/host_grid.*.so)" \
	  LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 && \
	  $(abspath $(PYTHON)) -c 'from radam_fused import _C; assert "$(SANITIZED)" in _C.__file__, _C.__file__' && \
	  $(abspath $(PYTHON)) -m pytest -q --capture=no -p no:cacheprovider -c /dev/null --rootdir=. \
	  tests/test_bits.py tests/test_layouts.py tests/test_functional.py tests/test_errors.py \
	  tests/test_device_bits.py tests/test_graphs.py tests/test_amp.py tests/test_flat.py tests/test_options.py \
	  tests/test_torch_contract.py tests/test_changes_between_steps.py tests/test_lifetimes.py \
	  tests/test_flat_gradients.py tests/test_concurrency.py tests/test_corruptions.py \
	  tests/test_grad_norm.py tests/test_clipping.py tests/test_skipped_steps.py tests/test_update_norm.py \
	  tests/test_formats.py tests/test_masters.py tests/test_random_bits.py tests/test_format_checkpoints.py \
	  -k "not triton"

# A source archive, a wheel that is built from it in isolation (with one CUDA architecture, to save time),
# and a check of the wheel in an empty environment.
package: $(INSTALLED)
	rm -rf build/package && mkdir -p build/package
	$(PYTHON) -m venv build/package/venv
	build/package/venv/bin/pip install -q build
	build/package/venv/bin/python -m build -q --sdist --outdir build/package .
	CUDAARCHS=90-real build/package/venv/bin/pip wheel -q --no-deps -w build/package build/package/*.tar.gz
	RADAM_FUSED_CUDA=0 build/package/venv/bin/pip wheel -q --no-deps -w build/package/tree .
	RADAM_FUSED_CUDA=0 build/package/venv/bin/pip wheel -q --no-deps -w build/package/tree .  # again, over the first build
	build/package/venv/bin/pip install -q --no-deps build/package/*.whl
	cd build/package && venv/bin/python $(CURDIR)/tests/project/check_wheel.py

define CREATE_VENV
test -x .venv/bin/python || python3 -m venv .venv
.venv/bin/pip install -q -c constraints.txt torch==2.13.0 setuptools pybind11 cmake ninja
endef

# Without CUDA code where torch has no CUDA: that compiles for minutes.
$(subst installed,demo,$(INSTALLED)): $(SOURCES)
ifeq ($(ACTIVE),)
	@echo "Creates .venv and installs torch, the package and what the demo draws with: two to four minutes."
	$(CREATE_VENV)
endif
	without=$$($(PYTHON) -W ignore -c 'import torch; print("" if torch.version.cuda else "RADAM_FUSED_CUDA=0")'); \
	  env $$without $(PYTHON) -m pip install -q --no-build-isolation $(PINNED) -e '.[demo]' || \
	  env $$without $(PYTHON) -m pip install -q --no-build-isolation --no-deps -e .  # without access to a package index
	mkdir -p build && touch $@

$(INSTALLED): $(SOURCES)
ifeq ($(ACTIVE),)
	@echo "Creates .venv and installs torch, the package and every tool: about five minutes."
	$(CREATE_VENV)
	.venv/bin/pip install -q --no-build-isolation -c constraints.txt -e '.[test,bench,lint]'
else
	$(PYTHON) -m pip install -q --no-build-isolation -e '.[test,bench]' || \
	  $(PYTHON) -m pip install -q --no-build-isolation --no-deps -e .  # without access to a package index
endif
	mkdir -p build && touch $@

clean:
	rm -rf build dist *.egg-info radam_fused/_C.*
