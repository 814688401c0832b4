#!/usr/bin/env bash
# Formatting, lint and types: the steps that run no code of ours.
set -euo pipefail
cd "$(dirname "$0")/.."

step() {
    echo "check: $*"
    .venv/bin/python -m "$@"
}

step ruff format --quiet --check
step ruff check --quiet
step mypy --no-error-summary
