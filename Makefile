# Every target is one line or so; CI runs the same ones. Locked versions live in ops/lock/.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SEED ?= 1
SOURCES := pyproject.toml $(wildcard ops/lock/*.txt)

.DEFAULT_GOAL := help
.PHONY: help run test test-all dev lint types sim simulate bench bench-failover bench-calm bench-memory schemas schemas-check lock clean

help: ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(BIN)/python $(SOURCES)
	$(PIP) install -q -r ops/lock/all.txt && $(PIP) install -q --no-deps -e . && touch $@

$(VENV)/.test: $(VENV)/.run
	$(PIP) install -q -r ops/lock/test.txt && touch $@

$(VENV)/.dev: $(VENV)/.test
	$(PIP) install -q -r ops/lock/dev.txt && touch $@

run: $(VENV)/.run ## run the demo on the project's own documents
	$(BIN)/swarmd demo

test: $(VENV)/.test ## run the whole suite, three files at a time: they mostly wait
	$(BIN)/python -m pytest -n 3 --dist loadfile

test-long: $(VENV)/.test ## run what the suite has only a shorter form of
	$(BIN)/python -m pytest -m long

test-all: $(VENV)/.dev ## as test, and demand the tools that some tests need
	SWARMD_DEMAND_TOOLS=1 $(BIN)/python -m pytest -n 3 --dist loadfile

dev: $(VENV)/.dev ## make the environment for working on swarmd

lint: $(VENV)/.dev ## format check and lint
	$(BIN)/ruff format --check . && $(BIN)/ruff check .

types: $(VENV)/.dev ## strict types
	$(BIN)/mypy

sim: $(VENV)/.test ## simulate one seed: make sim SEED=7
	$(BIN)/python -m tests.sim --seed $(SEED)

simulate: $(VENV)/.run ## hold placement to its targets: twenty seeds of every workload
	$(BIN)/swarmd simulate --policy pull,adaptive --seeds 20 --tasks 3000 --check

bench: $(VENV)/.run ## throughput and latency, as JSON
	$(BIN)/swarmd bench throughput --json && $(BIN)/swarmd bench latency --json

bench-failover: $(VENV)/.run ## how long work stands still when processes are killed, as JSON
	$(BIN)/swarmd bench failover --json

bench-calm: $(VENV)/.run ## ten minutes at full load, in which nobody may be given up
	$(BIN)/swarmd bench failover --worker-kills 0 --leader-kills 0 --leader-stops 0 --full-s 600 --json

bench-memory: $(VENV)/.run ## a memory of 100,000 beside pymilvus by itself: fail if a target is missed
	$(BIN)/swarmd bench memory --json --check

schemas: $(VENV)/.run ## write schemas/ from the code
	$(BIN)/swarmd schemas

schemas-check: $(VENV)/.run ## fail if schemas/ differs from the code
	$(BIN)/python -m swarmd schemas --check

lock: $(VENV)/.dev ## resolve ops/lock/ anew
	sh ops/lock/lock.sh

clean: ## remove the environment and caches
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
