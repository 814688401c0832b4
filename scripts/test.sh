#!/usr/bin/env bash
# Every test. The developer's own AK_* variables must not reach them.
set -euo pipefail
cd "$(dirname "$0")/.."

for variable in $(compgen -e); do
    case $variable in [Aa][Kk]_*) unset "$variable" ;; esac
done
echo "test: pytest $*"
exec .venv/bin/python -m pytest "$@"
