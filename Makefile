# Everything here runs from the repository's root. `make` alone lists the targets.

PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help venv demo demo-down test test-openclaw test-vm lint docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: .venv/.installed ## a virtual environment with what the project needs

.venv/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: $(PYTHON) is older than 3.11. Install Python 3.11 or newer and run: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -q && apt-get install -q -y python3-venv; \
		else \
			echo "error: $(PYTHON) cannot make virtual environments. Install python3-venv and run this again." >&2; exit 1; \
		fi; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@touch $@

demo: venv ## deploy to a container that is like a VPS, check it, ask it a question
	@$(BIN)/python -m sandbox demo

demo-down: venv ## remove the demo's container and its helper process
	@$(BIN)/python -m sandbox down

test: venv ## all tests, those in containers included, on two distributions side by side
	@$(BIN)/python -m sandbox.engine
	@echo "On 2 cores this takes some 35 minutes, and longer the first time: llama.cpp is compiled twice."
	$(BIN)/pytest --numprocesses 2 --dist loadgroup

test-openclaw: venv ## the tests with the real OpenClaw, from npm: some twelve minutes more
	@$(BIN)/python -m sandbox.engine
	$(BIN)/pytest tests/openclaw

test-vm: venv ## the tests on a real kernel, in a virtual machine: half an hour where its CPU is emulated
	@$(BIN)/python -m sandbox.engine
	$(BIN)/pytest tests/vm

lint: venv ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .
	$(BIN)/mypy checks.py

docs: venv ## write docs/SETTINGS.md anew from settings/
	$(BIN)/python -m settings > docs/SETTINGS.md

clean: ## remove the virtual environment and tools' caches
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
