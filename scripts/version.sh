#!/usr/bin/env bash
# Prints the version that this tree builds: a release's tag, or the coming version and the commit.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

git() { command git -c safe.directory='*' "$@" 2>/dev/null; }

if tag=$(git describe --tags --exact-match --match 'v[0-9]*' --dirty); then
	echo "${tag#v}"
elif commit=$(git describe --always --exclude '*' --dirty=.changed); then
	echo "$(<VERSION)+$commit"
else
	cat VERSION
fi
