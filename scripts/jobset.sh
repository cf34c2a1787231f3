#!/usr/bin/env bash
# Builds JobSet, an operator of the Kubernetes project, from its Go module: prints a directory with its program
# (manager) and its manifests (config). It is kept in .cache (or TUTTI_CACHE), so that a second call finds it there.
set -euo pipefail
version=v0.10.1
here=$(cd "$(dirname "$0")/.." && pwd)
made=${TUTTI_CACHE:-$here/.cache}/jobset-$version
if [[ ! -d $made ]]; then
	mkdir -p "${made%/*}"
	work=$(mktemp -d /var/tmp/tutti-jobset-build.XXXXXX)
	trap 'rm -rf --one-file-system "$work"' EXIT
	source=$(cd "$work" && GOFLAGS='' go mod download -json "sigs.k8s.io/jobset@$version" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
	cp -r "$source" "$work/source"
	chmod -R u+w "$work/source"
	mkdir "$work/made"
	(cd "$work/source" && GOFLAGS='' CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$work/made/manager" .)
	mv "$work/source/config" "$work/made/config"
	mv "$work/made" "$made"
fi
echo "$made"
