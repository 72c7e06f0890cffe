# Every target sets up what it needs; CI calls these targets and nothing else.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
DEMO_DIR ?= .fedhub/demo
PYTEST := $(BIN)/python -m pytest
WORKERS ?= 3

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-engines test-slow test-faults test-compose lint bench bench-rounds package lock env clean

help: ## What can be made here
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: $(VENV)/.installed ## A virtual environment with everything, exact versions checked by hash

# uv (also pinned by hash) installs the same lock as pip would, about three times as fast.
$(VENV)/.installed: requirements.lock bootstrap.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fedhub needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Set PYTHON=/path/to/python3.11"; exit 2; }
	@echo "Setting up $(VENV): about 1-3 minutes the first time (PyTorch is large)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r bootstrap.lock
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip install --quiet --require-hashes -r requirements.lock
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup ## The main job, end to end, on real processes: three labs, rounds, release, pull, audit
	$(BIN)/fedhub demo --dir $(DEMO_DIR)

test: setup ## The tests (under 10 minutes; no service needed)
	$(PYTEST) -m "not engines and not slow and not fault and not compose" -n $(WORKERS) --dist loadfile

test-engines: setup ## What make test runs on SQLite and a folder, and only that, on PostgreSQL and a real S3 server
	$(BIN)/python -m tests.servers $(PYTEST) tests/integration tests/fuzz tests/e2e -m "engines and not fault" -n $(WORKERS) --dist loadfile

test-slow: setup ## Tests that take real processes for a minute or more
	$(PYTEST) -m "slow and not engines and not fault" -n 2 --dist loadfile

test-faults: setup ## kill -9 of every process in real runs (FEDHUB_FAULT_POINTS=50 FEDHUB_FAULT_SEED=1)
	$(PYTEST) -m fault -s

test-compose: setup ## compose.yaml on a Docker Engine of its own (root, Debian; tests/compose/README.md)
	$(PYTEST) -m compose tests/compose -s

test-all: test test-engines test-slow test-faults ## Everything but test-compose, each test once on each engine

lint: setup ## Format, style, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: setup ## Rounds beside stock Flower, transfers, verification: figures with machine and sizes
	$(BIN)/python tests/bench/bench_verify.py
	$(BIN)/python tests/bench/bench_transfer.py
	$(BIN)/python tests/bench/bench_registry.py
	$(MAKE) bench-rounds MB=1
	$(MAKE) bench-rounds MB=100 ROUNDS=3

bench-rounds: setup ## Seconds per round and peak memory beside stock Flower (MB= SITES= ROUNDS= JSON=)
	MB="$(MB)" SITES="$(SITES)" ROUNDS="$(ROUNDS)" JSON="$(JSON)" $(BIN)/python tests/bench/bench_rounds.py

package: setup ## Wheel and source archive in dist/
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv build --no-build-isolation --quiet --out-dir dist .

lock: setup ## Resolve the newest allowed versions again and write the lock files
	$(BIN)/uv pip compile pyproject.toml --universal --all-extras --group dev --generate-hashes --no-header \
		--no-emit-index-url --no-emit-find-links --python-version 3.11 --upgrade --quiet -o requirements.lock
	$(BIN)/uv pip compile pyproject.toml --universal --extra hub --group build --generate-hashes --no-header \
		--no-annotate --no-emit-index-url --no-emit-find-links --python-version 3.11 --constraint requirements.lock \
		--quiet -o requirements-hub.lock

env: ## Secrets for compose.yaml: random passwords in files of mode 0600, never overwritten
	$(PYTHON) docker/make_env.py

clean: ## Remove what the targets made here (environment, demo folder, caches)
	rm -rf $(VENV) .fedhub dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
