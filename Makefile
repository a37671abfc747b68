# make demo: the demonstration; make test: the tests. Both first make .venv, which needs Python 3.10 or newer.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
DOCS_STAMP := $(VENV)/.docs-done
PYTHONS := python3.11 python3.12 python3.10 python3
RECENT := import sys; sys.exit(sys.version_info < (3, 10))

.PHONY: help setup test demo docs lint wheel

help:
	@echo "make demo    train on noisy data, plain beside adversarial, and write demo/report.html (about three minutes on two free cores)"
	@echo "make test    run the tests"
	@echo "make lint    formatting, lint, types and import layers"
	@echo "make docs    build the documentation into site/"
	@echo "make wheel   build the package into dist/"
	@echo "make setup   only make .venv and install into it"

setup: $(STAMP)

$(STAMP): pyproject.toml
	@found=""; \
	for python in $(PYTHONS); do \
	  if command -v $$python >/dev/null && $$python -c "$(RECENT)" 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo "No Python 3.10 or newer found (tried: $(PYTHONS)). Install one and run make again." >&2; exit 2; fi; \
	if ! [ -x $(BIN)/python ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  echo "Making $(VENV) with $$found."; \
	  $$found -m venv --clear $(VENV) || { echo "$$found could not make $(VENV). Its venv module may be missing (on Debian and Ubuntu: apt install $$found-venv)." >&2; exit 2; }; \
	fi
	@echo "Installing atdm and its dependencies into $(VENV); PyTorch is large, so the first time takes minutes."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]' \
	  || { echo "pip could not install atdm into $(VENV); its message is above." >&2; exit 2; }
	@touch $@

$(DOCS_STAMP): $(STAMP)
	@echo "Installing the documentation tools into $(VENV)."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev,docs]'
	@touch $@

# Two at a time, a file on each, one thread each: more would share too few cores, and the tests' own processes want some, too.
test: setup
	OMP_NUM_THREADS="$${OMP_NUM_THREADS:-1}" $(BIN)/python -m pytest -n 2 --dist loadfile

demo: setup
	$(BIN)/atdm demo

docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q --strict

wheel: setup
	$(BIN)/python -m pip wheel -q --disable-pip-version-check --no-deps -w dist .

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
