# Everything runs in .venv, which each target makes from nothing when it is missing or out of date.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Extra arguments, as in: make test PYTEST_ARGS="tests/unit -x"
PYTEST_ARGS ?=
# and as in: make demo DEMO_ARGS="--output=/tmp/demo"
DEMO_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format clean

help: ## Show the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

install: $(STAMP) ## Make .venv with the tested versions of everything

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off \
	    --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(STAMP) ## Run the whole way on the embedded world, from pictures to a registered prompt
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/prefixworks demo $(DEMO_ARGS)

test: $(STAMP) ## Run all tests
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(STAMP) ## Check style, types and the walls between packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(STAMP) ## Put the code into the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove caches; .venv and runs stay
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info
