#!/usr/bin/env bash
# The shop as plain manifests (examples/shop/kubernetes) on three virtual hosts: hosts lose power and network under
# steady requests, while kubectl goes on; and a StatefulSet that writes all the time never has two writers. Needs root
# and kubectl.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
command -v kubectl >/dev/null || { echo "e2e-kube-shop: kubectl is not there" >&2; exit 1; }
[[ $(id -u) = 0 ]] || { echo "e2e-kube-shop: hosts need root" >&2; exit 1; }
work=$(mktemp -d /var/tmp/tutti-kube-shop.XXXXXX)
export TUTTI_DATA_DIR=$work/data TUTTI_RUN_DIR=/run/${work##*/} KUBECACHEDIR=$work/cache
tutti() { "$here/bin/tutti" "$@"; }
finish() {
	local code=$?
	touch "$work/done"
	if ((code)); then
		kubectl --request-timeout=5s get pods -o wide >&2 || true
		find "$TUTTI_DATA_DIR" -maxdepth 3 -name kubernetes.log -exec tail -n 5 {} + >&2 || true
	fi
	tutti down --purge >/dev/null || code=1
	wait
	rm -rf --one-file-system "$work" "$TUTTI_RUN_DIR"
	exit "$code"
}
trap finish EXIT

tutti up -d --hosts 3 --kubernetes
exports=$(tutti env)
eval "$exports"
wrong=0
fail() {
	printf 'FAILED: %s\n' "$*"
	wrong=$((wrong + 1))
}
k() { kubectl --request-timeout=5s "$@"; }
# until_true SECONDS COMMAND… waits until a command succeeds.
until_true() {
	local end=$((SECONDS + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		((SECONDS < end)) || return 1
		sleep 0.1
	done
}
now() { printf '%s' "$((${EPOCHREALTIME//[.,]/} / 1000))"; }

"$here/scripts/images.sh" --import >/dev/null
k apply -f "$here/examples/shop/kubernetes/" >/dev/null
k wait --for=condition=complete --timeout=300s --request-timeout=0 job/migrate >/dev/null
for what in statefulset/postgres statefulset/redis deployment/{web,catalogue,cart,orders,worker}; do
	k rollout status --timeout=180s --request-timeout=0 "$what" >/dev/null
done
page() { curl -sf -m 2 -o "$work/page" http://127.0.0.1:30080/ && grep -q 'Tutti Music' "$work/page"; }
until_true 60 page || { echo 'the shop does not serve' >&2; exit 1; }
printf 'the shop serves, from %s hosts\n' "$(k get pods -o 'jsonpath={range .items[*]}{.spec.nodeName}{"\n"}{end}' | sort -u | wc -l)"

# Who writes to the ledger, and when: a file that all hosts share.
mkdir -m 777 "$work/ledger"
k apply -f - >/dev/null <<Y
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: ledger}
spec:
  serviceName: ledger
  selector: {matchLabels: {app: ledger}}
  template:
    metadata: {labels: {app: ledger}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: ledger
        image: redis:7
        command: [bash, -c, 'while echo "\${EPOCHREALTIME} \$UID_OF_POD" >>/ledger/lines; do sleep 0.02; done']
        env: [{name: UID_OF_POD, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}]
        volumeMounts: [{name: ledger, mountPath: /ledger}]
      volumes:
      - name: ledger
        hostPath: {path: $work/ledger}
Y
k rollout status --timeout=60s --request-timeout=0 statefulset/ledger >/dev/null
writers() { awk '{ print $2 }' "$work/ledger/lines" | uniq; }
# another waits until the ledger has a writer that it did not have before, and prints how long nobody wrote.
another() {
	local count=$1
	# shellcheck disable=SC2317 # called by name
	more() { (($(writers | wc -l) > count)); }
	if ! until_true 60 more; then
		fail 'the ledger has no other writer after a minute'
		return
	fi
	awk -v what="$2" '{ split($1, t, /[.,]/); at = t[1] + t[2] / 1e6 }
		$2 != last { if (last) gap = at - before; last = $2 }
		{ before = at }
		END { printf "%s: the StatefulSet writes again elsewhere %.1f s after it did last\n", what, gap }' "$work/ledger/lines"
}

# ask asks for the shop's front page, four times at once, and once the API, until asked TITLE ends that and prints how
# many requests failed, and for how long none was answered.
ask() {
	touch "$work/asking"
	: >"$work/requests"
	: >"$work/kubectl"
	asking=()
	for n in 1 2 3 4; do
		while [[ -e $work/asking && ! -e $work/done ]]; do
			how=failed
			! curl -sf -m 2 -o "$work/asked.$n" http://127.0.0.1:30080/ || how=answered
			printf '%s %s\n' "${EPOCHREALTIME//[.,]/}" "$how" >>"$work/requests"
			sleep 0.05
		done &
		asking+=($!)
	done
	while [[ -e $work/asking && ! -e $work/done ]]; do
		how=failed
		! kubectl --request-timeout=2s get deployment web >/dev/null 2>&1 || how=answered
		printf '%s %s\n' "${EPOCHREALTIME//[.,]/}" "$how" >>"$work/kubectl"
		sleep 0.1
	done &
	asking+=($!)
	sleep 2
}
asked() {
	local file
	rm "$work/asking"
	wait "${asking[@]}"
	for file in requests kubectl; do
		sort -n "$work/$file" | awk -v title="$1: $file" '
			$2 == "answered" { if (last && $1 - last > longest) longest = $1 - last; last = $1; answered++ }
			$2 == "failed" { failed++ }
			END { printf "%s: %d answered, %d failed; the longest time without an answer: %.1f s\n", title, answered, failed, longest / 1e6; exit !(answered) }' ||
			fail "$1: no request of $file was answered"
	done
}
# elsewhere HOST: all pods that are not bound to that host's disk are ready on others.
elsewhere() {
	local ready
	ready=$(kubectl --request-timeout=2s get pods -l 'app in (web,catalogue,cart,orders,worker)' \
		-o 'jsonpath={range .items[*]}{.spec.nodeName} {.metadata.deletionTimestamp}{.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}' | grep -cE "^host-[^$1]+ True$")
	((ready == 11))
}
home() { k get pod "$1" -o 'jsonpath={.spec.nodeName}'; }
leader() { tutti server ls | awk '/leader/ { print $1 }'; }
settled() { tutti server ls | awk '/host-/ { n++ } /ready|leader|follow/ { up++ } END { exit !(n == 3 && up == 3) }' && (($(tutti nodes | grep -c ready) == 3)); }

# cut_power HOST ends a host, and returns when it is off the network, which comes first.
cut_power() {
	local link=/sys/class/net/tutti-h${1#host-}/operstate
	tutti host kill "$1" >/dev/null &
	killing=$!
	while [[ $(cat "$link" 2>/dev/null) = up ]]; do
		sleep 0.02
	done
}
# lose HOST TITLE: a host loses its power under requests.
lose() {
	local host=$1 began
	ask
	cut_power "$host"
	began=$(now)
	if until_true 60 elsewhere "${host#host-}"; then
		printf '%s: all 11 pods are ready elsewhere after %s ms\n' "$2" $(($(now) - began))
	else
		fail "$2: after a minute not all pods are ready elsewhere"
	fi
	until_true 30 page || fail "$2: the shop does not serve"
	sleep 2
	asked "$2"
}
back() {
	wait "$killing" || fail "$1 was not killed"
	tutti host start "$1" >/dev/null
	until_true 60 settled || fail "$1 does not come back"
	until_true 120 k wait --for=condition=ready --timeout=1s pod/postgres-0 pod/redis-0 || fail 'the databases do not come back'
	until_true 60 page || fail 'the shop does not serve again'
}

databases=$(home postgres-0; echo; home redis-0)
for victim in host-3 host-2 host-1; do
	grep -qx "$victim" <<<"$databases" || break # or else one that has data is lost: the shop shows what it saw last
done
title="$victim, which is$([[ $victim = "$(leader)" ]] || printf ' not') the leader, loses its power"
lose "$victim" "$title"
back "$victim"

victim=$(home ledger-0)
count=$(writers | wc -l)
cut_power "$victim"
another "$count" "$victim, where it ran, loses its power (the leader is $(leader))"
back "$victim"

victim=$(home ledger-0)
count=$(writers | wc -l)
tutti host cut "$victim" >/dev/null
another "$count" "$victim, where it ran, loses its network"
tutti host heal "$victim" >/dev/null
back_again() { until_true 60 settled || fail "$victim does not come back"; }
back_again
sleep 5

victim=$(leader)
lose "$victim" "$victim, which is the leader, loses its power"
back "$victim"

# Nobody who wrote once others did wrote again.
if [[ $(writers | wc -l) != $(writers | sort -u | wc -l) ]]; then
	fail "there were two writers at a time: $(writers | tr '\n' ' ')"
else
	printf 'the ledger had %s writers and %s lines, one writer after the other\n' "$(writers | wc -l)" "$(wc -l <"$work/ledger/lines")"
fi
printf '%s things went wrong\n' "$wrong"
((wrong == 0))
