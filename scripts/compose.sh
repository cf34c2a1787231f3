#!/usr/bin/env bash
# Builds Docker Compose from its Go module, as that says, and prints where the program is. It is kept in .cache (or
# TUTTI_CACHE), so that a second call finds it there.
set -euo pipefail
version=v2.40.3
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
program=${TUTTI_CACHE:-$here/.cache}/compose-$version
if [[ ! -x $program ]]; then
	mkdir -p "${program%/*}"
	work=$(mktemp -d /var/tmp/tutti-compose-build.XXXXXX)
	trap 'rm -rf --one-file-system "$work"' EXIT
	source=$(cd "$work" && GOFLAGS='' go mod download -json "github.com/docker/compose/v2@$version" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
	cp -r "$source" "$work/source"
	chmod -R u+w "$work/source"
	(cd "$work/source" && GOFLAGS='' nice -n 10 go build -trimpath -ldflags "-s -w -X github.com/docker/compose/v2/internal.Version=$version" -o "$work/compose" ./cmd)
	mv "$work/compose" "$program"
fi
echo "$program"
