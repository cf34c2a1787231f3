#!/usr/bin/env bash
# The docker command line makes a swarm of hosts that wait for one, and takes it apart again; a host that is
# an agent only answers at its socket once it is trusted. Needs root, docker and a static busybox.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d /var/tmp/tutti-swarm.XXXXXX)
export TUTTI_RUN_DIR=$work/run TUTTI_DATA_DIR=$work/data
tutti=$here/bin/tutti
for program in docker busybox; do
	command -v "$program" >/dev/null || { echo "e2e-swarm: $program is not there (Debian: docker-cli, busybox-static)" >&2; exit 1; }
done

finish() {
	"$tutti" down --purge >/dev/null 2>&1 || true
	rm -rf --one-file-system "$work"
}
trap finish EXIT

checks=0
die() {
	printf 'e2e-swarm: %s\n' "$*" >&2
	tail -n 15 "$work"/data/hosts/*/tutti.log >&2 || true
	exit 1
}
on() { # HOST ARGUMENT…
	docker -H "unix://$work/run/hosts/host-$1/docker.sock" "${@:2}"
}
tutti_on() { "$tutti" --run-dir "$work/run/hosts/host-$1" "${@:2}"; }
# is TEXT COMMAND… says that a command prints a text, within a while.
is() {
	local want=$1 got begin=$SECONDS
	shift
	until got=$("$@" 2>&1) && [ "$got" = "$want" ]; do
		[ $((SECONDS - begin)) -lt 60 ] || die "$*: printed »$got«, not »$want«"
		sleep 0.3
	done
	checks=$((checks + 1))
}
# refuses TEXT COMMAND… says that a command fails with a text.
refuses() {
	local want=$1 got
	shift
	if got=$("$@" 2>&1); then die "$*: was not refused: $got"; fi
	grep -qF -- "$want" <<<"$got" || die "$*: refused with »$got«, not »$want«"
	checks=$((checks + 1))
}
state='{{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}}'

root=$work/busybox
mkdir -p "$root"/{bin,tmp,etc}
cp "$(command -v busybox)" "$root/bin/busybox"
for applet in sh sleep echo cat; do ln -s busybox "$root/bin/$applet"; done
"$tutti" image pack --name busybox:1 --dir "$root" --cmd sh --env PATH=/bin -o "$work/busybox.tar"

"$tutti" up -d --hosts 3 --waiting
is 'inactive false' on 1 info --format "$state"
is 'Server: Tutti' bash -c "docker -H unix://$work/run/hosts/host-1/docker.sock version --format 'Server: {{.Server.Platform.Name}}'"
refuses 'This node is not a swarm manager' on 1 node ls
refuses 'is of no cluster yet' on 1 ps
refuses 'is of no cluster yet' tutti_on 1 status
refuses 'This node is not part of a swarm' on 1 swarm leave
refuses 'not a join token' on 1 swarm join --token nonsense 10.209.0.12:7400
refuses force-new-cluster on 1 swarm init --force-new-cluster

on 1 swarm init --advertise-addr 10.209.0.11 >"$work/init" || die "no swarm was made"
grep -q 'Swarm initialized: current node (.*) is now a manager' "$work/init" || die "init printed $(cat "$work/init")"
is 'active true' on 1 info --format "$state"
refuses 'already part of a swarm' on 1 swarm init
join=$(sed -n 's/^ *docker swarm join //p' "$work/init")
read -ra join <<<"$join"
is 'This node joined a swarm as a worker.' on 2 swarm join "${join[@]}"
is 'active false' on 2 info --format "$state"
refuses 'tutti node trust host-2' on 2 ps
refuses 'is not a swarm manager' on 2 node ls
is 'host-1
host-2' on 1 node ls --format '{{.Hostname}}'
token=$(on 1 swarm join-token -q manager)
is 'This node joined a swarm as a manager.' on 3 swarm join --token "$token" 10.209.0.11:7400
is 'active true' on 3 info --format "$state"
is '3 2' on 3 info --format '{{.Swarm.Nodes}} {{.Swarm.Managers}}'

on 1 load -q -i "$work/busybox.tar" >/dev/null
on 1 service create -q --name web --replicas 3 --replicas-max-per-node 1 busybox:1 sleep 1d >/dev/null
is '3/3 (max 1 per node)' on 3 service ls --format '{{.Replicas}}'

# A worker that is trusted answers as managers do, streams included.
tutti_on 1 node trust host-2
is 'active true' on 2 info --format "$state"
is 'host-2' on 2 info --format '{{.Name}}'
is 'web' on 2 service ls --format '{{.Name}}'
is 'said there' on 2 run --rm -e constraint:node==host-1 busybox:1 echo said there
is 'typed' bash -c "echo typed | docker -H unix://$work/run/hosts/host-2/docker.sock run -i --rm -e constraint:node==host-3 busybox:1 cat"
on 2 run -d --name long -e constraint:node==host-1 busybox:1 sleep 1d >/dev/null
is 'in it' on 2 exec long echo in it
is 'typed too' bash -c "echo typed too | docker -H unix://$work/run/hosts/host-2/docker.sock exec -i long cat"
on 2 rm -f long >/dev/null
tutti_on 1 node trust host-2 --off
refuses 'tutti node trust host-2' on 2 ps

# Nodes leave: what they ran is replaced, and nothing is left on them.
refuses 'participating as a manager' on 3 swarm leave
is 'Node left the swarm.' on 2 swarm leave
is 'inactive false' on 2 info --format "$state"
[ ! -e "$work/data/hosts/host-2/identity" ] || die "the identity of host-2 is left"
is 'Down' on 1 node inspect host-2 --format '{{if eq .Status.State "down"}}Down{{end}}'
is 'This node joined a swarm as a worker.' on 2 swarm join "${join[@]}"
is 'host-1
host-2
host-3' on 1 node ls --format '{{.Hostname}}'
is '3/3 (max 1 per node)' on 1 service ls --format '{{.Replicas}}'
on 1 node demote host-3 >/dev/null
is 'Node left the swarm.' on 3 swarm leave
is 'inactive false' on 3 info --format "$state"
is 'down' on 1 node inspect host-3 --format '{{.Status.State}}'
refuses 'already: choose another name' on 3 swarm join "${join[@]}"
is 'host-3' on 1 node rm host-3
is 'Node left the swarm.' on 1 swarm leave --force
is 'inactive false' on 1 info --format "$state"

# What a host was it is not any more: it founds another swarm.
on 1 swarm init --advertise-addr 10.209.0.11 --default-addr-pool 10.77.0.0/16 --autolock >"$work/init" || die "no second swarm was made"
grep -q 'SWMKEY\|docker swarm unlock' "$work/init" || die "init --autolock printed $(cat "$work/init")"
is '' on 1 service ls -q
is '10.77.0.0/16' on 1 info --format '{{range .Swarm.Cluster.DefaultAddrPool}}{{.}}{{end}}'
"$tutti" down --purge
printf 'A swarm was made and taken apart: %s checks.\n' "$checks"
