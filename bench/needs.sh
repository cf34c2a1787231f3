#!/usr/bin/env bash
# Makes sure that the peers which Tutti is measured against are on this machine, and installs
# what is missing (Debian and Ubuntu):
#
#   bench/needs.sh [schedule] [store] [tables] [million] [sessions] [net] [start] [replicas] [standing] [docker] [marathon] [kube]      default: all
#
# store and kube need etcd; net needs nginx and wrk; start, replicas, standing and docker need Docker Engine. No daemon is started, now or at the
# next boot: the benchmarks run their own, apart from everything else on the machine. Says
# nothing when nothing is missing.
set -euo pipefail

say() { printf 'bench/needs: %s\n' "$*" >&2; }
die() {
	say "$*"
	exit 1
}

missing=()
for group in "${@:-all}"; do
	case $group in
	store | kube | all) command -v etcd >/dev/null || missing+=(etcd-server) ;;&
	start | replicas | standing | docker | all) { command -v dockerd && command -v docker; } >/dev/null || missing+=(docker.io) ;;&
	net | all) command -v nginx >/dev/null || missing+=(nginx-light) ;;&
	net | all) command -v wrk >/dev/null || missing+=(wrk) ;;&
	schedule | store | tables | million | sessions | net | start | replicas | standing | docker | marathon | kube | all) ;;
	*) die "unknown group $group: schedule, store, tables, million, sessions, net, start, replicas, standing, docker, marathon and kube are there" ;;
	esac
done
((${#missing[@]})) || exit 0

command -v apt-get >/dev/null || die "install ${missing[*]} (as Debian calls them), then try again"
[[ $(id -u) = 0 ]] || die "${missing[*]} must be installed: run this as root"

# Packages ask this file whether their daemons may be started.
policy=/usr/sbin/policy-rc.d
log=$(mktemp)
ours=
finish() {
	rm -f "$log"
	[[ -z $ours ]] || rm -f "$policy"
}
trap finish EXIT
if [[ ! -e $policy ]]; then
	ours=yes
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
fi

say "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
install=(apt-get install --yes --no-install-recommends --quiet=2 "${missing[@]}")
# The index may be absent or out of date: it is asked for only then.
if ! "${install[@]}" >"$log" 2>&1; then
	if ! { apt-get update --quiet=2 && "${install[@]}"; } >"$log" 2>&1; then
		cat "$log" >&2
		die "${missing[*]} could not be installed"
	fi
fi
if [[ -d /run/systemd/system ]]; then
	units=()
	for package in "${missing[@]}"; do
		case $package in
		etcd-server) units+=(etcd.service) ;;
		nginx-light) units+=(nginx.service) ;;
		docker.io) units+=(docker.socket docker.service containerd.service) ;;
		esac
	done
	systemctl disable --quiet "${units[@]}"
fi
