#!/usr/bin/env bash
# Writes constraints.txt: the newest versions that resolve together, for every interpreter named.
# usage: scripts/constraints.sh python3.11 [python3.12 ...]    oldest first; a later one adds what the earlier did not need
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
: >"$work/pins"
for python in "${@:-python3}"; do
    echo "constraints: resolving for $("$python" --version)" >&2
    rm -rf "$work/venv"
    "$python" -m venv "$work/venv"
    pip=("$work/venv/bin/python" -m pip --disable-pip-version-check)
    "${pip[@]}" install -qq --upgrade pip
    "${pip[@]}" install -qq --dry-run --ignore-installed --constraint "$work/pins" --report "$work/report.json" \
        pip hatchling editables ".[dev,docs,bench]"
    "$python" - "$work/report.json" >>"$work/pins" <<'PYTHON'
import json
import sys

for package in json.load(open(sys.argv[1]))["install"]:
    metadata = package["metadata"]
    if metadata["name"] != "agent-sessions-runtime":
        print(f"{metadata['name'].lower()}=={metadata['version']}")
PYTHON
    sort -u -o "$work/pins" "$work/pins"
done
{
    echo "# Made by scripts/constraints.sh: one set of versions that works together, for development and CI."
    cat "$work/pins"
} >constraints.txt
