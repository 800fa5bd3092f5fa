# Two commands do everything: `make demo` and `make test`. The first one of them makes the environment in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test slow e2e bench compare lint format docs .venv
.DEFAULT_GOAL := test

demo: $(READY)  ## amplint on two training scripts: findings, fixes, conversion, and all versions training
	@$(BIN)/python fixtures/demo.py build/demo

test: lint  ## format, lint, types, and all tests but the slow ones
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

slow: $(READY)  ## the slow tests: packaging, training runs
	$(BIN)/python -m pytest -m slow

e2e: $(READY)  ## the tests that need npm or a browser
	$(BIN)/python -m pytest -m e2e

bench: $(READY)  ## CPU time from a cold start, and beside ruff, TorchFix and Fixit on the same files (FILES=folder)
	@$(BIN)/python fixtures/bench.py
	@$(BIN)/python fixtures/side_by_side.py --env build/bench $(FILES)

compare: $(READY)  ## the other training scripts before and after the conversion, over seeds: minutes
	@$(BIN)/python fixtures/compare.py build/compare
	@$(BIN)/python fixtures/compare.py build/compare --small

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## the table of rules in README.md, the map of modules in docs/architecture.md
	$(BIN)/python tests/test_docs.py

.venv: $(READY)

$(READY): pyproject.toml
	@echo "Making the environment in $(VENV); fetching torch takes a few minutes …"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@
