#!/usr/bin/env bash
# Virtual hosts come when work finds no place and go when they are empty, also after the process that
# looks after them was killed on the way. Needs root.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d /var/tmp/tutti-hosts.XXXXXX)
export TUTTI_RUN_DIR=$work/run TUTTI_DATA_DIR=$work/data
tutti=$here/bin/tutti

finish() {
	"$tutti" down --purge >/dev/null 2>&1 || true
	rm -rf --one-file-system "$work"
}
trap finish EXIT

die() {
	printf 'e2e-hosts: %s\n' "$*" >&2
	{ "$tutti" status; "$tutti" host ls; "$tutti" events; cat "$work/data/hosts/ports.log"; } >&2 || true
	exit 1
}

# await N waits until there are N hosts, and says how long that took.
await() {
	local begin=$SECONDS
	until [ "$("$tutti" host ls | tail -n +2 | wc -l)" = "$1" ]; do
		[ $((SECONDS - begin)) -lt 90 ] || die "there are not $1 hosts after 90 s"
		sleep 0.5
	done
	printf '%s hosts after %s s\n' "$1" $((SECONDS - begin))
}

# told asks for an event that is like a pattern.
told() { "$tutti" events | grep "$1" >/dev/null || die "no event tells: $1"; }

if "$tutti" up -d --hosts 3 --max-hosts 2 2>"$work/refusal"; then die "fewer hosts at most than at least are accepted"; fi
grep -q -- '--max-hosts 2 is less than --hosts 3' "$work/refusal" || die "the refusal is $(cat "$work/refusal")"

mkdir -p "$work/root"
(cd "$here/test/e2e/testdata/answer" && CGO_ENABLED=0 go build -o "$work/root/answer" .)
echo v1 >"$work/root/version"
"$tutti" image pack --name answer:v1 --dir "$work/root" --entrypoint /answer -o "$work/image.tar"
"$tutti" up -d --hosts 1 --max-hosts 3 --give-back-after 5s
"$tutti" image import "$work/image.tar"
memory=$(($(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo) / 3 * 2 / 3))k # two thirds of a host's share
cat >"$work/compose.yaml" <<YAML
services:
  big:
    image: answer:v1
    stop_grace_period: 1s
    deploy: {replicas: 3, resources: {reservations: {memory: $memory}}}
YAML
"$tutti" deploy -f "$work/compose.yaml" demo || die "it does not come to run"
await 3
told 'host asked for: .* further: .* waited for a place'

"$tutti" scale -d demo/big=4
sleep 8 # there are as many as there may be
await 3

"$tutti" scale demo/big=1
for _ in $(seq 300); do # one is on its way out
	[ -z "$("$tutti" host ls | grep leaves)" ] || break
	sleep 0.1
done
kill -9 "$(cut -d' ' -f1 "$work/data/hosts/ports.pid")"
"$tutti" down
"$tutti" up -d --hosts 1 --max-hosts 3 --give-back-after 5s
await 1
told 'host given back: it has had nothing to do'
sleep 8
await 1
[ "$("$tutti" nodes | tail -n +2 | wc -l)" = 1 ] || die "the cluster remembers hosts that were given back"
"$tutti" down --purge
[ ! -e "$work/data" ] || die "data is left"
echo "Hosts came and went."
