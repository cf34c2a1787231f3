#!/usr/bin/env bash
# Two public clients of Marathon, Debian's python3-marathon and the Go module go-marathon, walk every call
# that they have against three virtual hosts. Then: an app in the words of every API, a host that dies, and
# the shop of examples/shop as a Marathon group. Needs root, docker's command line, curl, python3, Go and a
# static busybox; python3-marathon is installed where it is missing.
#
#   scripts/e2e-marathon.sh [clients] [languages] [death] [shop]      default: all
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d /var/tmp/tutti-marathon.XXXXXX)
export TUTTI_RUN_DIR=$work/run TUTTI_DATA_DIR=$work/data
tutti=$here/bin/tutti
python=/usr/bin/python3 # the one that Debian's packages are for
checks=0
wrong=0
following=

finish() {
	[[ -z $following ]] || kill "$following" 2>/dev/null || true
	"$tutti" down --purge >/dev/null 2>&1 || true
	rm -rf --one-file-system "$work"
}
trap finish EXIT

die() {
	printf 'e2e-marathon: %s\n' "$*" >&2
	exit 1
}

good() {
	checks=$((checks + 1))
	printf '%s\n' "$*"
}

bad() {
	printf 'e2e-marathon: %s\n' "$*" >&2
	wrong=$((wrong + 1))
}

# limited SECONDS COMMAND… runs a command for so long at most; functions have limits of their own.
limited() {
	local seconds=$1
	shift
	if [[ $(type -t "$1") = function ]]; then "$@"; else timeout "$seconds" "$@"; fi
}

# check TITLE COMMAND… runs a command that has to succeed; its output is in $out.
check() {
	local title=$1 code=0
	shift
	out=$(limited 300 "$@" 2>&1) || code=$?
	if ((code)); then
		bad "$title: $* failed with $code: $(tail -n 5 <<<"$out")"
	else
		good "$title"
	fi
}

# says TITLE TEXT COMMAND… is check, and the output holds the text.
says() {
	local title=$1 text=$2 code=0
	shift 2
	out=$(limited 60 "$@" 2>&1) || code=$?
	if ((code)) || ! grep -qF -- "$text" <<<"$out"; then
		bad "$title: $* ended with $code and does not say $text: $out"
	else
		good "$title"
	fi
}

# becomes TITLE WANTED COMMAND… waits until the command prints what is wanted.
becomes() {
	local title=$1 wanted=$2 got=
	shift 2
	for _ in $(seq 240); do
		got=$("$@" 2>/dev/null) || true
		if [[ $got = "$wanted" ]]; then
			good "$title"
			return
		fi
		sleep 0.25
	done
	bad "$title: it is $got, not $wanted: $("$@" 2>&1 | tail -n 3)"
}

api() { curl -sS --fail-with-body -m 30 -H 'Content-Type: application/json' -X "$1" "$MARATHON_URL$2" ${3:+-d "$3"}; }

# pick PATH EXPRESSION prints what a Python expression makes of an answer, which is called v.
pick() { api GET "$1" | "$python" -c 'import collections, json, sys
v = json.load(sys.stdin)
print(eval(sys.argv[1]))' "$2"; }

# states APP prints how many of its tasks are in which state.
states() {
	pick /v2/tasks "' '.join('%d %s' % (n, s) for s, n in sorted(collections.Counter(t['state'] for t in v['tasks'] if t['appId'] == '$1').items()))"
}

needs() {
	local program
	for program in docker curl go busybox "$python"; do
		command -v "$program" >/dev/null || die "$program is not there (Debian: docker-cli, curl, golang, busybox-static, python3)"
	done
	[[ $(id -u) = 0 ]] || die 'virtual hosts need root'
	if ! "$python" -c 'import marathon' 2>/dev/null; then
		printf 'installing python3-marathon\n'
		apt-get install --yes --no-install-recommends --quiet=2 python3-marathon >"$work/apt.log" 2>&1 || die "python3-marathon could not be installed: $(tail -n 3 "$work/apt.log")"
	fi
}

up() {
	local root=$work/busybox applet
	"$tutti" up -d --hosts 3
	eval "$("$tutti" env)"
	for _ in $(seq 100); do
		[[ $(api GET /ping 2>/dev/null) = pong ]] && break
		sleep 0.1
	done
	mkdir -p "$root"/{bin,tmp,etc}
	cp "$(command -v busybox)" "$root/bin/busybox"
	for applet in $(busybox --list); do [[ $applet = busybox ]] || ln -s busybox "$root/bin/$applet"; done
	"$tutti" image pack --name busybox:1 --dir "$root" --cmd sh --env PATH=/bin -o "$work/busybox.tar"
	"$tutti" image import "$work/busybox.tar" >/dev/null
}

# The clients are built and run as they are.
clients() {
	(cd "$here/test/compat/marathon" && GOFLAGS= go build -o "$work/go-marathon" .)
	for walk in "$python $here/test/compat/marathon/walk.py" "$work/go-marathon"; do
		# shellcheck disable=SC2086 # words
		check "a walk through a client's calls" $walk
		printf '%s\n' "$out"
	done
}

# follow writes the event stream to $work/events from now on.
follow() {
	[[ -z $following ]] || return 0
	curl -sN -m 600 "$MARATHON_URL/v2/events" >"$work/events" 2>/dev/null &
	following=$!
	becomes 'the event stream is followed' yes sh -c "grep -q event_stream_attached '$work/events' && echo yes"
}

heard() { "$python" - "$work/events" "$1" "$2" <<'P'
import json, sys
n = 0
for line in open(sys.argv[1]):
    if line.startswith("data: "):
        try:
            e = json.loads(line[6:])
        except ValueError:
            continue  # it is being written
        n += e["eventType"] == "status_update_event" and e["appId"] == sys.argv[2] and e["taskStatus"] == sys.argv[3]
print(n)
P
}

languages() {
	follow
	check 'an app is made' api POST /v2/apps '{"id": "/e2e/web", "cmd": "sleep 1000", "instances": 2, "cpus": 0.05, "mem": 16}'
	becomes 'it runs' '2 TASK_RUNNING' states /e2e/web
	becomes 'docker service ls lists it' 'e2e_web 2/2' docker service ls --filter name=e2e_web --format '{{.Name}} {{.Replicas}}'
	says 'tutti ls lists its group' e2e "$tutti" ls
	says 'tutti ls e2e lists it' web "$tutti" ls e2e
	check 'docker service scale' docker service scale -d e2e_web=4
	becomes 'Marathon has four' '4 TASK_RUNNING' states /e2e/web
	becomes 'its app says so' 4 pick /v2/apps/e2e/web "v['app']['instances']"
	becomes 'the event stream has told of the four' 4 heard /e2e/web TASK_RUNNING
	check 'tutti scale' "$tutti" scale e2e/web=1
	becomes 'Marathon has one' '1 TASK_RUNNING' states /e2e/web
	becomes 'the event stream has told of three ends' 3 heard /e2e/web TASK_KILLED
	check 'docker service create' docker service create -d --name other busybox:1 sleep 1000
	becomes 'Marathon lists it' 1 pick /v2/apps/other "v['app']['tasksRunning']"
	check 'Marathon scales it' api PUT /v2/apps/other '{"instances": 3}'
	becomes 'Docker has three' 'other 3/3' docker service ls --filter name=other --format '{{.Name}} {{.Replicas}}'
	check 'both go' sh -c "docker service rm e2e_web && curl -sSf -X DELETE '$MARATHON_URL/v2/apps/other'"
	becomes 'no app is left' '[]' pick /v2/apps "v['apps']"
}

death() {
	local app victim=host-3
	follow
	app() { api POST /v2/apps '{"id": "'"$1"'", "cmd": "sleep 1000", "instances": 3, "cpus": 0.05, "mem": 16, "constraints": [["hostname", "MAX_PER", "2"]]'"$2"'}'; }
	check 'an app whose lost tasks are replaced at once' app /u/fast ''
	check 'one whose lost tasks are replaced after 8 s' app /u/slow ', "unreachableStrategy": {"inactiveAfterSeconds": 8, "expungeAfterSeconds": 60}'
	check 'one whose lost tasks are never replaced' app /u/never ', "unreachableStrategy": "disabled"'
	for app in fast slow never; do becomes "/u/$app runs" '3 TASK_RUNNING' states "/u/$app"; done
	check "$victim loses its power" "$tutti" host kill "$victim"
	becomes 'the slow one has a task that is unreachable' '2 TASK_RUNNING 1 TASK_UNREACHABLE' states /u/slow
	becomes 'the fast one has three again' '3 TASK_RUNNING' states /u/fast
	says 'the slow one still waits' TASK_UNREACHABLE states /u/slow
	becomes 'the slow one has three again' '3 TASK_RUNNING' states /u/slow
	becomes 'the one without replacement waits' '2 TASK_RUNNING 1 TASK_UNREACHABLE' states /u/never
	for app in fast slow never; do
		if [[ $(heard "/u/$app" TASK_UNREACHABLE) -gt 0 ]]; then good "the event stream has told of /u/$app"; else bad "no event told of /u/$app's task"; fi
	done
	check "$victim returns" "$tutti" host start "$victim"
	becomes 'the one without replacement has its task again' '3 TASK_RUNNING' states /u/never
	check 'they go' api DELETE '/v2/groups/u?force=true'
	becomes 'they are gone' '0' pick /v2/tasks "len(v['tasks'])"
}

# serves waits until the shop's front page shows goods, at a host.
serves() {
	for _ in $(seq 240); do
		if curl -sf -m 3 "http://$2:8080/" | grep -q 'value="violin"'; then
			good "$1"
			return
		fi
		sleep 0.5
	done
	bad "$1: the shop does not answer: $(curl -s -m 3 "http://$2:8080/" | head -c 300)"
}

shop() {
	local home victim address
	mkdir -p "$work/shop"
	(cd "$here/examples/shop" && CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o "$work/shop/" ./web)
	cp "$here/examples/shop/config/shop.json" "$work/shop/"
	sed "s,file:///opt/shop/,file://$work/shop/," "$here/examples/shop/marathon.json" >"$work/marathon.json"
	(cd "$here" && scripts/images.sh --import >/dev/null)
	check 'the secret' docker secret create db_password "$here/examples/shop/secrets/db_password.txt"
	says 'a dry run' 'would be created' "$tutti" deploy --dry-run -f "$work/marathon.json"
	check 'tutti deploy' "$tutti" deploy -f "$work/marathon.json"
	printf '%s\n' "$out" | tail -n 4
	check 'the job that makes the tables' api POST /v1/jobs "$(cat "$here/examples/shop/metronome.json")"
	check 'runs' api POST /v1/jobs/shop.migrate/runs
	address=$("$tutti" host ls -o json | "$python" -c 'import json, sys; print(json.load(sys.stdin)[0]["address"])')
	serves 'the shop serves' "$address"
	becomes 'the job has succeeded' 1 pick '/v1/jobs/shop.migrate?embed=historySummary' "v['historySummary']['successCount']"
	says 'its front end is a plain process' '"container": null' pick /v2/apps/shop/web "json.dumps({'container': v['app'].get('container')})"
	becomes 'docker service ls has all of it' 7 sh -c "docker service ls --format '{{.Name}}' | grep -c ^shop_"
	check 'the Compose file is beside it' test -f "$here/examples/shop/compose.yaml"
	says 'again' 'nothing was changed' sh -c "'$tutti' deploy -f - <'$work/marathon.json'"
	home=$("$tutti" ps -o json | "$python" -c 'import json, sys
print(" ".join(i["node"] for i in json.load(sys.stdin) if i["workload"] in ("shop/postgres", "shop/redis")))')
	for victim in host-3 host-2; do [[ " $home " = *" $victim "* ]] || break; done
	check "$victim loses its power" "$tutti" host kill "$victim"
	serves 'the shop serves without it' "$address"
	check 'it returns' "$tutti" host start "$victim"
	check 'tutti rm' "$tutti" rm --volumes shop
	becomes 'nothing of it is left' '[]' pick /v2/apps "[a['id'] for a in v['apps'] if a['id'].startswith('/shop')]"
}

needs
up
for part in "${@:-clients}" $([[ $# -gt 0 ]] || echo languages death shop); do
	case $part in
	clients | languages | death | shop) ;;
	*) die "$part is no part: clients, languages, death and shop are there" ;;
	esac
	began=$SECONDS
	"$part"
	printf '== %s: %d s\n' "$part" $((SECONDS - began))
done
printf '%s checks passed, %s failed\n' "$checks" "$wrong"
((wrong == 0))
