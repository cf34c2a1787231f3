#!/usr/bin/env bash
# Simulates the course of one seed exactly as often as it is asked to: the runtime's own chance
# (select, maps, timers of one instant, math/rand) follows from the seed, too, and goroutines take
# turns only where they wait.
#
#   scripts/sim-exact.sh TAGS SEED [TIMES]
#
# With TIMES (2) above one the courses are compared. The runtime is built anew from the sources of
# the Go in use, with a few lines changed: the first time takes minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tags=$1 seed=$2 times=${3:-2}
goroot=$(go env GOROOT)
dir=${TUTTI_CACHE:-.cache}/sim-exact
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

# change FILE OLD NEW replaces a text that must be there once.
change() {
	FILE=$1 OLD=$2 NEW=$3 perl -0777 -pi -e '
		BEGIN { $n = 0 } $n += s/\Q$ENV{OLD}\E/$ENV{NEW}/; END { die "$ENV{FILE}: this Go differs: $ENV{OLD}\n" unless $n == 1 }
	' "$dir/$1"
}

for f in rand proc synctest; do cp "$goroot/src/runtime/$f.go" "$dir/$f.go"; done
# Every bubble has chance of its own, and it is always the same.
change synctest.go '	id      uint64 // unique id' '	id      uint64 // unique id
	chance  uint64'
change rand.go '	mp := getg().m
	c := &mp.chacha8' '	mp := getg().m
	if gp := mp.curg; gp != nil && gp.bubble != nil {
		gp.bubble.chance += 0x9e3779b97f4a7c15
		x := gp.bubble.chance
		x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
		x = (x ^ x>>27) * 0x94d049bb133111eb
		return x ^ x>>31
	}
	c := &mp.chacha8'
change rand.go 'func cheaprand() uint32 {
	mp := getg().m' 'func cheaprand() uint32 {
	mp := getg().m
	if gp := mp.curg; gp != nil && gp.bubble != nil {
		return uint32(rand() >> 32)
	}'
change rand.go '	globalRand.state.Init(*seed)
	clear' '	clear(seed[:])
	seed[0] = 1
	globalRand.state.Init(*seed)
	clear'
# Nobody is made to give way because time passes outside.
change proc.go 'func retake(now int64) uint32 {' 'func retake(now int64) uint32 {
	if now != 0 {
		return 0
	}'
printf '{"Replace": {"%s/src/runtime/rand.go": "%s/rand.go", "%s/src/runtime/proc.go": "%s/proc.go", "%s/src/runtime/synctest.go": "%s/synctest.go"}}\n' \
	"$goroot" "$dir" "$goroot" "$dir" "$goroot" "$dir" >"$dir/overlay.json"
go test -overlay "$dir/overlay.json" -tags "$tags" -c -o "$dir/sim" ./test/sim

cd test/sim
result=0
for ((i = 1; i <= times; i++)); do
	GOMAXPROCS=1 GOGC=off GOMEMLIMIT=6GiB "$dir/sim" -test.run '^TestSim$' -test.v -seed "$seed" >"$dir/course.$i" 2>&1 || result=1
	sed -i 's/([0-9.]*s)//; s/tutti-sim-[0-9]*//g' "$dir/course.$i"
	if ((i > 1)) && ! cmp -s "$dir/course.1" "$dir/course.$i"; then
		echo "run $i of seed $seed differs from the first:"
		diff "$dir/course.1" "$dir/course.$i" | head -n 6 || true
		exit 2
	fi
done
tail -n 400 "$dir/course.1"
echo "seed $seed: $times runs, the same $(wc -l <"$dir/course.1") lines"
exit $result
