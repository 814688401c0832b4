# make demo    a tour of the library; needs Python 3.11 or later and a package registry, nothing else
# make test    formatting, lint, types, and every test on the real components
# make bench   side by side with peers
# make lint    the first three steps of make test
# make docs    the documentation, into site/
# make setup   the environment of make test
# make clean   takes away what these have made

SHELL := /bin/bash
PYTHON_BIN := .venv/bin
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test bench lint docs setup clean

help:
	@sed -n 's/^# //p' Makefile

demo:
	@scripts/setup.sh demo
	@$(PYTHON_BIN)/agent-sessions demo $(ARGS)

test:
	@scripts/setup.sh test
	@scripts/check.sh
	@scripts/test.sh $(ARGS)

bench:
	@scripts/setup.sh bench
	@$(PYTHON_BIN)/python -m benchmarks $(ARGS)

lint:
	@scripts/setup.sh lint
	@scripts/check.sh

docs:
	@scripts/setup.sh docs
	@NO_MKDOCS_2_WARNING=1 $(PYTHON_BIN)/python -m mkdocs build --quiet --strict $(ARGS)
	@echo "docs: site/index.html"

setup:
	@scripts/setup.sh test

clean:
	rm -rf .venv site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
