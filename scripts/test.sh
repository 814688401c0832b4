#!/usr/bin/env bash
# Every test, in two processes: many of them wait for a server or a clock. Arguments go to pytest.
# The developer's own AK_* variables must not reach them.
set -euo pipefail
cd "$(dirname "$0")/.."

for variable in $(compgen -e); do
    case $variable in [Aa][Kk]_*) unset "$variable" ;; esac
done
echo "test: pytest $*"
exec .venv/bin/python -m pytest --numprocesses 2 --dist worksteal "$@"
