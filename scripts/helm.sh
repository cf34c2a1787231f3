#!/usr/bin/env bash
# Builds Helm from its Go module and prints where the program is. It is kept in .cache (or TUTTI_CACHE), so that a second
# call finds it there.
set -euo pipefail
version=v3.22.0
here=$(cd "$(dirname "$0")/.." && pwd)
program=${TUTTI_CACHE:-$here/.cache}/helm-$version
if [[ ! -x $program ]]; then
	mkdir -p "${program%/*}"
	work=$(mktemp -d /var/tmp/tutti-helm-build.XXXXXX)
	trap 'rm -rf --one-file-system "$work"' EXIT
	GOFLAGS='' GOBIN=$work CGO_ENABLED=0 go install -trimpath -ldflags "-s -w" "helm.sh/helm/v3/cmd/helm@$version"
	mv "$work/helm" "$program"
fi
echo "$program"
