# Every target builds .venv itself, and again when pyproject.toml or constraints.txt change.
PYTHON ?= python3
PIP := .venv/bin/python -m pip
export OMP_NUM_THREADS ?= 1

.PHONY: help demo test test-all check bench docs clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

# The demo is one process, so it gets all cores; tests run in two processes with one thread each.
demo: .venv/.runtime  ## the main job: align SmolLM2-135M-Instruct with the default constitution, write a report
	env -u OMP_NUM_THREADS .venv/bin/alignlab align

test: .venv/.dev  ## the test suite without the slow tests, with coverage
	.venv/bin/pytest -n 2 --cov --cov-report=term --cov-fail-under=90

test-all: .venv/.dev  ## all tests, slow ones too
	.venv/bin/pytest -n 2 -m "slow or not slow"

check: .venv/.dev  ## lint, format, types, import contract, size rule
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/pytest -q tests/house/test_house_size.py

bench: .venv/.dev  ## measurements beside the named peers, in one process each
	@set -e; for file in bench/bench_*.py; do echo "== $$file"; env -u OMP_NUM_THREADS .venv/bin/python "$$file"; done

docs: .venv/.dev  ## the documentation site, into site/
	.venv/bin/mkdocs build --strict

clean:  ## remove what the targets made, except .venv and runs
	rm -rf build dist site htmlcov .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "alignlab needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

# torch comes first and alone: with it in place, nothing that follows picks another build of it.
.venv/.runtime: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) install --quiet "$$(grep '^torch==' constraints.txt)"
	$(PIP) install --quiet -c constraints.txt -e .
	@touch $@

.venv/.dev: .venv/.runtime
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@touch $@
