# Two commands for everyone: `make demo` and `make test`; both set up .venv first. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Every tool below runs from the checkout's own environment; nothing is installed outside it.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
PYTEST := $(BIN)/python -m pytest
# Unit tests share the cores; those that start processes and servers of their own take turns.
UNIT := not (integration or slow or soak or slurm)
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: help setup lock demo test test-fast test-all lint gpu-benchmarks clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

setup: $(VENV)/.installed ## create .venv and install the pinned packages into it

$(VENV)/.installed: requirements.lock pyproject.toml $(wildcard data_pipeline/native/*)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip sync --quiet requirements.lock
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps -e .
	@touch $@

lock: ## pin pyproject's dependencies anew into requirements.lock
	$(BIN)/uv pip compile --universal --generate-hashes --python-version 3.11 --extra dev \
	    --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
	    --upgrade pyproject.toml -o requirements.lock

demo: setup ## pretrain on fractals, transfer to handwritten digits, compare with scratch (minutes); AGAIN=1 starts anew
	$(BIN)/python -m launch.demo $(if $(AGAIN),--again)

test: test-fast ## every test but the soak and Slurm ones
	$(PYTEST) -m "(integration or slow) and not (soak or slurm)"

test-fast: setup ## unit tests only (minutes)
	$(PYTEST) $(PARALLEL) -m "$(UNIT)"

test-all: test-fast ## every test
	$(PYTEST) -m "integration or slow or soak or slurm"

lint: setup ## ruff, mypy and the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

gpu-benchmarks: setup ## all benchmarks that need a GPU, into gpu-benchmarks/ (25 minutes)
	benchmarks/on_gpu.sh gpu-benchmarks

clean: ## remove .venv, caches and build leftovers; keeps runs/, mlruns/ and datasets/
	rm -rf $(VENV) build data_pipeline/_jpeg_crop*.so *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
