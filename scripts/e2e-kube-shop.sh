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
        command: [bash, -c, 'exec 3<> <(:); while echo "\${EPOCHREALTIME} \$UID_OF_POD" >>/ledger/lines; do read -rt 0.02 -u 3; done']
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
	more() { sleep 0.5; (($(writers | wc -l) > count)); }
	if ! until_true 60 more; then
		fail 'the ledger has no other writer after a minute'
		return
	fi
	awk -v what="$2" '{ split($1, t, /[.,]/); at = t[1] + t[2] / 1e6 }
		$2 != last { if (last) gap = at - before; last = $2 }
		{ before = at }
		END { printf "%s: the StatefulSet writes again elsewhere %.1f s after it did last\n", what, gap }' "$work/ledger/lines"
}

# observe HOST TITLE asks for the shop's front page, four times at once, and the API for Pods, by one program that goes on: commands that begin
# anew for each question take the processors from what is looked at. It says how long after the host has gone all Pods that are not bound to its
# disk were ready on others, how many requests failed, and for how long none was answered; kubectl is asked every three seconds beside
# it: it takes a third of a second of a processor to begin.
observe() {
	python3 - "$1" "$2" "$work" <<'P'
import base64, http.client, json, os, ssl, subprocess, sys, threading, time, urllib.parse
host, title, work = sys.argv[1:]
view = json.loads(subprocess.run(["kubectl", "config", "view", "--raw", "-o", "json"], capture_output=True, check=True).stdout)
user, cluster = view["users"][0]["user"], view["clusters"][0]["cluster"]
def file(name, data):
    with open(os.path.join(work, name), "wb", opener=lambda p, f: os.open(p, f, 0o600)) as f:
        f.write(base64.b64decode(data))
    return f.name
context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
context.load_cert_chain(file("cert", user["client-certificate-data"]), file("key", user["client-key-data"]))
server = urllib.parse.urlparse(cluster["server"])
pods = "/api/v1/namespaces/default/pods?labelSelector=" + urllib.parse.quote("app in (web,catalogue,cart,orders,worker)")
def ready(p):
    return (p["spec"].get("nodeName", host) != host and "deletionTimestamp" not in p["metadata"]
            and any(c["type"] == "Ready" and c["status"] == "True" for c in p["status"].get("conditions", [])))
link = "/sys/class/net/tutti-h%s/operstate" % host.removeprefix("host-")
def up():
    try:
        return open(link).read().strip() == "up"
    except OSError:
        return False
answers, lock, over, elsewhere = {}, threading.Lock(), threading.Event(), threading.Event()
def ask(what, every, question):
    while not over.is_set():
        try:
            ok = question()
        except (OSError, ValueError, http.client.HTTPException, subprocess.SubprocessError):
            ok = False
        with lock:
            answers.setdefault(what, []).append((time.monotonic(), ok))
        time.sleep(every)
def get(c, path):
    try:
        c.request("GET", path)
        answer = c.getresponse()
        return answer.status, answer.read()
    finally:
        c.close()
def page():
    status, body = get(http.client.HTTPConnection("127.0.0.1", 30080, timeout=2), "/")
    return status == 200 and b"Tutti Music" in body
gone = None
connection = http.client.HTTPSConnection(server.hostname, server.port, timeout=1, context=context)
def api():
    try:
        connection.request("GET", pods)
        answer = connection.getresponse()
        status, body = answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        connection.close() # the next question opens another
        raise
    if status == 200 and gone and sum(map(ready, json.loads(body)["items"])) == 11:
        elsewhere.set()
    return status == 200
def kubectl():
    return subprocess.run(["kubectl", "--request-timeout=2s", "get", "deployment", "web"], capture_output=True).returncode == 0
for arguments in [("requests", 0.05, page)] * 4 + [("the API", 0.05, api), ("kubectl", 3, kubectl)]:
    threading.Thread(target=ask, args=arguments, daemon=True).start()
time.sleep(1)
print("observing", flush=True)
while up():
    time.sleep(0.01)
gone = time.monotonic()
done = elsewhere.wait(60)
took = time.monotonic() - gone
time.sleep(3)
over.set()
print("%s: %s" % (title, "all 11 pods are ready elsewhere after %.1f s" % took if done else "FAILED: after a minute not all pods are ready elsewhere"))
with lock:
    for what, list in answers.items():
        good = [at for at, ok in list if ok]
        gap = max((b - a for a, b in zip(good, good[1:])), default=0)
        print("%s: %s: %d answered, %d failed; the longest time without an answer: %.1f s" % (title, what, len(good), len(list) - len(good), gap))
sys.exit(not done)
P
}
home() { k get pod "$1" -o 'jsonpath={.spec.nodeName}'; }
leader() { tutti server ls | awk '/leader/ { print $1 }'; }
# settled: all hosts are there, and so are their API servers, which begin some ten seconds after their hosts.
settled() { (($(tutti kubernetes status | awk '$2 == "ready"' | wc -l) == 3)) && tutti server ls | awk '/host-/ { n++ } /ready|leader|follow/ { up++ } END { exit !(n == 3 && up == 3) }' && (($(tutti nodes | grep -c ready) == 3)); }

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
	observe "$1" "$2" >"$work/observed" &
	watching=$!
	until_true 20 grep -q observing "$work/observed" || fail "$2: nothing can be observed"
	cut_power "$1"
	wait "$watching" || fail "$2: not all pods are ready elsewhere"
	sed 1d "$work/observed"
	until_true 30 page || fail "$2: the shop does not serve"
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
title="$victim, where it ran, loses its power (the leader is $(leader))"
cut_power "$victim"
another "$count" "$title"
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
