# make lint    rules, format, types
# make test    the same, then doctests and tests: what CI runs; PYTEST_ARGS="-x -k name" for some of them
# make dist    source distribution in dist/, and a wheel built from it and tested with the oldest and the newest torch
# make docs    the site in build/docs
# make fuzz    looks for inputs that break the library, for SECONDS=60 in all; python fuzz --help says more. Then libFuzzer on the
#              readers in C++ for as long, where there is a clang, and more and longer sequences of the state machines
# make sanitize, make sanitize-threads
#              builds with AddressSanitizer and UndefinedBehaviorSanitizer, or with ThreadSanitizer, and runs tests
# make demo    trains the SLIDE model on generated data of the shape of Amazon-670K; DATA=train.txt TEST=test.txt for yours
#
# Each but dist sets up .venv first, with PYTHON and TORCH:
#
#   make test VENV=.venv-oldest PYTHON=python3.10 TORCH='torch==2.11.*'
#
# EXTRAS=test leaves out Lightning, transformers and the other trainers (350 MB), whose tests are then skipped.
# On Linux x86, plain `torch` from PyPI brings CUDA. TORCH_INDEX=https://download.pytorch.org/whl/cpu avoids that.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
EXTRAS ?= test,trainers
BIN := $(VENV)/bin
DOCS := sphinx furo myst-parser sphinx-copybutton sphinxcontrib-mermaid
SECONDS ?= 60
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h')

.PHONY: test lint dist docs fuzz sanitize sanitize-threads demo clean
test: lint
	$(BIN)/python -m pytest --doctest-modules torch_lsh tests $(PYTEST_ARGS)

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(SOURCES)
	$(BIN)/mypy

dist:
	PYTHON=$(PYTHON) TORCH='$(TORCH)' TORCH_INDEX=$(TORCH_INDEX) .ci/dist

docs: $(VENV)/.ready
	$(BIN)/python -m pip install -q --disable-pip-version-check $(DOCS)
	$(BIN)/python -m sphinx -qW --keep-going docs build/docs

fuzz: $(VENV)/.ready
	$(BIN)/python fuzz --seconds $(SECONDS)
	fuzz/libfuzzer/run $(BIN)/python -max_total_time=$(SECONDS) -verbosity=0 -print_final_stats=1
	TORCH_LSH_FUZZ=1 $(BIN)/python -m pytest tests/state_machines $(PYTEST_ARGS)

sanitize: $(VENV)/.ready
	.ci/sanitize $(BIN)/python address,undefined $(if $(FUZZ),--seconds $(SECONDS),$(PYTEST_ARGS))

sanitize-threads: $(VENV)/.ready
	.ci/sanitize $(BIN)/python thread $(PYTEST_ARGS)

demo: $(VENV)/.ready
	$(BIN)/python examples/amazon670k.py $(if $(DATA),--train $(DATA)) $(if $(TEST),--test $(TEST)) $(ARGS)

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH)'
	touch $@

$(VENV)/.ready: $(VENV)/.torch setup.py pyproject.toml $(SOURCES)
	$(BIN)/python -m pip install -q --disable-pip-version-check ninja 'setuptools>=77' wheel
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation -e '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info torch_lsh/_C*.so
