#!/usr/bin/env bash
# Looks for what tests do not find: formatting, go vet, staticcheck, and shellcheck where it is
# installed.
#
#   scripts/lint.sh TAGS STATICCHECK
#
# Looks at everything, then fails if anything was found.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tags=$1 staticcheck=$2
failed=

check() {
	local what=$1
	shift
	if "$@"; then
		printf 'lint: %-34s good\n' "$what"
	else
		printf 'lint: %-34s FAILED\n' "$what"
		failed=yes
	fi
}

formatted() {
	local files
	files=$(gofmt -l cmd internal test examples bench) || return 1
	[[ -z $files ]] || {
		printf 'gofmt would change: %s\n' "$files"
		return 1
	}
}

in_module() {
	local dir=$1
	shift
	(cd "$dir" && "$@")
}

check gofmt formatted
for module in . examples/shop bench; do
	check "go vet in $module" in_module "$module" go vet -tags "$tags,e2e" ./...
	check "staticcheck in $module" in_module "$module" go run "$staticcheck" -tags "$tags,e2e" ./...
done
if command -v shellcheck >/dev/null; then
	check shellcheck shellcheck -x scripts/*.sh scripts/images/*.sh bench/*.sh .ci/run
fi
[[ -z $failed ]]
