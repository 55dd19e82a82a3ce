# Everything runs in a virtual environment of its own, made on first use.
#   VENV      the environment's folder          PYTHON       the interpreter to make it with (3.11 or newer)
#   PIP_ARGS  further arguments for pip          PYTEST_ARGS  further arguments for pytest
VENV ?= .venv
PIP_ARGS ?=
PYTEST_ARGS ?=
RUN := $(VENV)/bin/python -m
TYPES = $(RUN) basedpyright --pythonpath $(VENV)/bin/python && $(VENV)/bin/lint-imports

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHON
# Many small matrices: more threads than this only wait for each other.
test soak bench-control bench-serving: export OMP_NUM_THREADS := 1
test soak: export TOKENIZERS_PARALLELISM := false

.PHONY: help demo demo-model test lint style types soak bench-control bench-serving protos compose-test clean
.DEFAULT_GOAL := help

help:  ## List what make can do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.serve  ## One base model and three adapters answer side by side, from three processes
	@$(RUN) demo.run

test: style  ## Lint, types, import contracts and all tests, by as many processes as there are processors
	@types=$$(mktemp); ($(TYPES)) >"$$types" 2>&1 & beside=$$!; \
	$(RUN) pytest -m "not soak" -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS); \
	tested=$$?; wait $$beside; typed=$$?; cat "$$types"; rm "$$types"; exit $$((tested | typed))

lint: style types  ## Lint, format, types and import contracts

style: $(VENV)/.dev
	$(RUN) ruff check .
	$(RUN) ruff format --check .

types: $(VENV)/.dev
	$(TYPES)

soak: $(VENV)/.dev  ## The long randomised runs
	$(RUN) pytest -m soak --timeout 0 $(PYTEST_ARGS)

bench-control: $(VENV)/.dev  ## Speed of the control plane, without a model
	$(RUN) bench.control_plane

bench-serving: $(VENV)/.dev  ## Speed of client, frontend and executor together, without a model
	$(RUN) bench.serving_path

demo-model: $(VENV)/.dev  ## Train the demo's model and adapters again
	$(RUN) demo.build

protos: $(VENV)/.dev  ## Generate the stubs again from the .proto files
	$(VENV)/bin/python protos/generate.py

compose-test: $(VENV)/.serve  ## Build the images and try the whole stack in containers (needs docker)
	PYTHON=$(VENV)/bin/python deploy/compose_test.sh

clean:  ## Remove caches and the virtual environment
	rm -rf $(VENV) .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@.ci/venv $(VENV)
	@touch $@

$(VENV)/.serve: $(VENV)/.made pyproject.toml constraints.txt
	$(RUN) pip install $(PIP_ARGS) -c constraints.txt -e '.[serve]'
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml constraints.txt
	$(RUN) pip install $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@
