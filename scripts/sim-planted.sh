#!/usr/bin/env bash
# Builds the simulation with each planted bug, and expects it to find the bug.
#
#   scripts/sim-planted.sh TAGS [SEEDS]
#
# A bug must be found within SEEDS (400) courses, by the check that is meant to find it. The first
# such course ends the search; one that another check ends does not.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tags=$1 seeds=${2:-400}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
failed=

# planted TAG WHAT SAYS: a course must end with a message that holds one of the words of SAYS.
planted() {
	local tag=$1 what=$2 says=$3 next=0 seed message
	go test -tags "$tags,$tag" -c -o "$dir/sim" ./test/sim
	while ((next < seeds)); do
		GOMAXPROCS=1 "$dir/sim" -test.run '^TestSim$' -test.v -test.failfast -test.timeout 20m -shard 0/1 -report "$dir/met" \
			-from "$next" -seeds $((seeds - next)) >"$dir/log" 2>&1 && next=$seeds && break
		seed=$(grep -oE '^=== RUN +TestSim/seed=[0-9]+' "$dir/log" | tail -n 1 | grep -oE '[0-9]+$' || true)
		message=$(grep -oE "_test.go:[0-9]+: .*($says).*" "$dir/log" | head -n 1 | cut -c 1-160 || true)
		if [[ -n $message ]]; then
			printf 'planted: %-20s found by seed=%s: %s\n' "$what" "$seed" "${message#*: }"
			return
		fi
		[[ -n $seed ]] && ((seed >= next && seed < seeds)) || break # not one of the courses that are counted
		next=$((seed + 1))
	done
	printf 'planted: %-20s NOT FOUND in %d courses\n' "$what" "$next"
	tail -n 40 "$dir/log"
	failed=yes
}

planted plant_skip_fsync 'skipped fsync' 'acknowledged writes were lost|no order in which|set back|missed one'
planted plant_ignore_expect 'ignored expectation' 'no order in which'
planted plant_skip_fence 'skipped fence' 'is written by two'
[[ -z $failed ]]
