#!/usr/bin/env bash
# Builds the simulation with each planted bug, and expects it to find the bug.
#
#   scripts/sim-planted.sh TAGS [SEEDS]
#
# A bug must be found within SEEDS (40) courses, by the check that is meant to find it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tags=$1 seeds=${2:-40}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
failed=

# planted TAG WHAT SAYS: a course must end with a message that holds one of the words of SAYS.
planted() {
	local tag=$1 what=$2 says=$3 seed message
	go test -tags "$tags,$tag" -c -o "$dir/sim" ./test/sim
	GOMAXPROCS=1 "$dir/sim" -test.run '^TestSim$' -test.v -test.timeout 10m -shard 0/1 -report "$dir/met" -seeds "$seeds" >"$dir/log" 2>&1 || true
	seed=$(grep -B1 -E "_test.go:[0-9]+: .*($says)" "$dir/log" | grep -oE 'seed=[0-9]+' | head -n 1 || true)
	message=$(grep -oE "_test.go:[0-9]+: .*($says).*" "$dir/log" | head -n 1 | cut -c 1-160 || true)
	if [[ -n $message ]]; then
		printf 'planted: %-20s found by %s: %s\n' "$what" "${seed:-a seed}" "${message#*: }"
	else
		printf 'planted: %-20s NOT FOUND in %d courses\n' "$what" "$seeds"
		tail -n 40 "$dir/log"
		failed=yes
	fi
}

planted plant_skip_fsync 'skipped fsync' 'acknowledged writes were lost|no order in which|set back|missed one'
planted plant_ignore_expect 'ignored expectation' 'no order in which'
planted plant_skip_fence 'skipped fence' 'is written by two'
[[ -z $failed ]]
