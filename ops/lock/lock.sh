#!/bin/sh
# Resolve exact versions into base, all, test and dev: each holds everything that its environment needs, and all agree,
# since the smaller ones are constrained by the largest. The files name no host, so any index or mirror serves them.
set -eu
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-.venv/bin/python}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --disable-pip-version-check uv
: > "$work/none.txt"
resolve() { # name, constraints, extras...
  name=$1 constraints=$2
  shift 2
  "$work/venv/bin/uv" pip compile -q --python-version 3.11 --universal --no-header --no-annotate --no-emit-index-url \
    --no-emit-find-links -c "$constraints" "$@" pyproject.toml -o "$work/$name.txt"
  { echo "# Written by make lock."; cat "$work/$name.txt"; } > "ops/lock/$name.txt"
}
resolve dev "$work/none.txt" --all-extras
resolve test "$work/dev.txt" --extra all --extra test
resolve all "$work/dev.txt" --extra all
resolve base "$work/dev.txt"
