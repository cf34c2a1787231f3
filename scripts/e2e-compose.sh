#!/usr/bin/env bash
# Docker Compose, built from its Go module, and docker stack deploy bring up examples/shop, as it
# is, on three virtual hosts; one of them loses its power, and the shop goes on. Between the two,
# Compose's commands are walked. Needs root, docker and a static busybox; COMPOSE names a Compose program that is there.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d /var/tmp/tutti-compose.XXXXXX)
export TUTTI_RUN_DIR=$work/run TUTTI_DATA_DIR=$work/data SHOP_PORT=${SHOP_PORT:-8087}
tutti=$here/bin/tutti
checks=0
wrong=0
for program in docker busybox; do
	command -v "$program" >/dev/null || { echo "e2e-compose: $program is not there (Debian: docker-cli, busybox-static)" >&2; exit 1; }
done

finish() {
	"$tutti" down --purge >/dev/null 2>&1 || true
	rm -rf --one-file-system "$work"
}
trap finish EXIT

die() {
	printf 'e2e-compose: %s\n' "$*" >&2
	exit 1
}

# fail says what is wrong, and the walk goes on.
fail() {
	printf 'e2e-compose: %s\n' "$*" >&2
	wrong=$((wrong + 1))
}

# check TITLE COMMAND… runs a command that has to succeed; its output is in $out.
check() {
	local title=$1 code=0
	shift
	if [[ $(type -t "$1") = function ]]; then
		out=$("$@" 2>&1) || code=$?
	else
		out=$(timeout 180 "$@" 2>&1) || code=$?
	fi
	if ((code)); then
		fail "$title: $* failed with $code: $(tail -n 5 <<<"$out")"
		return
	fi
	checks=$((checks + 1))
	printf '%s\n' "$title"
}

# says TITLE TEXT COMMAND… is check, and the output holds the text.
says() {
	local title=$1 text=$2 before=$wrong
	shift 2
	check "$title" "$@"
	if ((wrong == before)) && ! grep -qF -- "$text" <<<"$out"; then
		checks=$((checks - 1))
		fail "$title: $* does not say $text: $out"
	fi
}

# serves waits until the shop's front page is answered with its goods.
serves() {
	for _ in $(seq 240); do
		if curl -sf -m 3 -o "$work/page" "http://127.0.0.1:$SHOP_PORT/"; then
			checks=$((checks + 1))
			printf '%s\n' "$1"
			return
		fi
		sleep 0.5
	done
	docker ps -a --format '{{.Names}} {{.Status}} {{.Label "com.docker.swarm.task.name"}}' >&2
	die "$1: the shop does not answer"
}

# ask asks for the shop's front page, four times at once, until the file asking is gone; asked TITLE ends that and
# prints how many requests failed, and for how long none was answered.
ask() {
	touch "$work/asking"
	: >"$work/requests"
	asking=()
	for n in 1 2 3 4; do
		while [[ -e $work/asking ]]; do
			how=failed
			! curl -sf -m 2 -o "$work/asked.$n" "http://127.0.0.1:$SHOP_PORT/" || how=answered
			printf '%s %s\n' "${EPOCHREALTIME//[.,]/}" "$how" >>"$work/requests"
			sleep 0.05
		done &
		asking+=($!)
	done
	sleep 2
}
asked() {
	rm "$work/asking"
	wait "${asking[@]}"
	sort -n "$work/requests" | awk -v title="$1" '
		$2 == "answered" { if (last && $1 - last > longest) longest = $1 - last; last = $1; answered++ }
		$2 == "failed" { failed++ }
		END { printf "%s: %d requests answered, %d failed; the longest time without an answer: %.1f s\n", title, answered, failed, longest / 1e6 }'
}

compose=${COMPOSE:-$("$here/scripts/compose.sh")}
"$tutti" up -d --hosts 3
DOCKER_HOST=$("$tutti" env | sed -n 's/export DOCKER_HOST=//p')
export DOCKER_HOST
(cd "$here" && scripts/images.sh --import >/dev/null)

# Compose, with the shop as it is.
cd "$here/examples/shop"
says 'compose config' 'shop/web:v1' "$compose" config
# On a busy machine a health check may fail for too long; another up goes on from where that was.
up() { "$compose" up -d || "$compose" up -d || "$compose" up -d; }
# host-3 is the one that will lose its power, and volumes stay where they are.
victim=host-3
"$tutti" node cordon "$victim" >/dev/null
check 'compose up, what has volumes' "$compose" up -d postgres redis
"$tutti" node activate "$victim" >/dev/null
check 'compose up' up
serves 'the shop serves'
says 'compose ps' 'shop-web-1' "$compose" ps
says 'compose ls' 'running(13)' "$compose" ls
nodes=$(docker ps -q | xargs docker inspect --format '{{.Node.Name}}' | sort -u | wc -l)
[[ $nodes = 3 ]] || fail "the shop is on $nodes hosts"
check 'compose up again changes nothing' up
if grep -q 'Recreate' <<<"$out"; then fail "it was made anew: $out"; fi
says 'compose images' 'shop/web' "$compose" images
says 'compose logs' 'web-1' "$compose" logs --tail 3 web
says 'compose exec' 'PONG' "$compose" exec -T redis redis-cli ping
says 'compose top' 'redis-server' "$compose" top redis
says 'compose port' "0.0.0.0:$SHOP_PORT" "$compose" port web 8080
check 'compose cp, into' "$compose" cp compose.yaml redis:/tmp/compose.yaml
check 'compose cp, out of' "$compose" cp redis:/tmp/compose.yaml "$work/back.yaml"
cmp compose.yaml "$work/back.yaml" || fail 'what was copied came back otherwise'
says 'compose run' 'PONG' "$compose" run --rm -T --no-deps redis redis-cli -h redis ping
check 'compose scale' "$compose" scale --no-deps web=5
[[ $(docker ps -q --filter label=com.docker.compose.service=web | wc -l) = 5 ]] || fail 'there are not five'
check 'compose pause' "$compose" pause worker
says 'it shows' '(Paused)' "$compose" ps -a worker
check 'compose unpause' "$compose" unpause worker
check 'compose restart' "$compose" restart -t 1 cart
check 'compose kill' "$compose" kill worker
check 'compose start' "$compose" start worker
says 'compose stats' 'shop-redis-1' "$compose" stats --no-stream redis
says 'wait' '0' docker wait shop-migrate-1
says 'compose volumes' 'shop_carts' docker volume ls -q
says 'compose events' '"service":"cart"' timeout 60 bash -c '"$0" events --json cart | head -n 1 & sleep 1; "$0" restart -t 1 cart >&2; wait' "$compose"
serves 'the shop still serves'

# What is about images, and about files that change, in a project of its own.
root=$work/busybox project=$work/tried
mkdir -p "$root/bin" "$root/tmp" "$project/src"
cp "$(command -v busybox)" "$root/bin/busybox"
for applet in $(busybox --list); do [[ $applet = busybox ]] || ln -s busybox "$root/bin/$applet"; done
"$tutti" image pack --name busybox:1 --dir "$root" --cmd sh --env PATH=/bin -o "$work/busybox.tar"
check 'load' docker load -q -i "$work/busybox.tar"
check 'tag' docker tag busybox:1 localhost:7405/tried:1
echo one >"$project/src/file"
echo 'FROM busybox:1' >"$project/Dockerfile"
cat >"$project/compose.yaml" <<'YAML'
services:
  seen:
    image: busybox:1
    command: sleep 1d
    stop_grace_period: 0s
    develop:
      watch:
        - {action: sync, path: ./src, target: /src}
  pushed:
    image: localhost:7405/tried:1
    build: .
YAML
cd "$project"
says 'compose pull' 'already present' "$compose" pull --policy missing seen
says 'compose push' 'Pushed' "$compose" push pushed
check 'up, to watch' "$compose" up -d seen
timeout 120 "$compose" watch --no-up seen >"$work/watched" 2>&1 &
watching=$!
for n in $(seq 60); do
	echo "changed $n" >"$project/src/file" # it may not be watched yet
	sleep 1
	! docker exec tried-seen-1 cat /src/file >"$work/synced" 2>/dev/null || break
done
kill "$watching" 2>/dev/null || true
wait "$watching" || true
says 'compose watch' 'changed' cat "$work/synced"
check 'compose commit' "$compose" commit seen tried:committed
check 'compose export' "$compose" export -o "$work/exported.tar" seen
says 'it has the file' 'src/file' tar -tf "$work/exported.tar"
check 'down' "$compose" down -t 0
cd "$here/examples/shop"

# A host without the databases loses its power. Containers of Compose are not replaced, as in Docker; the
# shop's other copies go on, and `up` makes what is missing anew.
ask
check "power cut of $victim" "$tutti" host kill "$victim"
serves 'the shop serves without it'
sleep 5
asked 'Compose, a host dies'
check 'the host comes back' "$tutti" host start "$victim"
check 'compose up makes it whole' up
serves 'the shop serves'
check 'compose down' "$compose" down -v -t 3
[[ -z $(docker ps -aq) ]] || fail "containers are left: $(docker ps -a)"

# The same by docker stack deploy, whose command line refuses three things of the file by itself: a name,
# conditions of depends_on, and restart.
awk '
	/^name:/ { next }
	/^    depends_on:/ { skip = 1; next }
	skip && /^      / { next }
	{ skip = 0 }
	/^    restart: on-failure/ { restart = 1; next }
	{ print }
	restart && /^    deploy:/ { print "      restart_policy: { condition: on-failure }"; restart = 0 }
' compose.yaml >"$work/stack.yaml"
cp -r config secrets "$work/"
"$tutti" node cordon "$victim" >/dev/null
check 'stack deploy' docker stack deploy -d=true -c "$work/stack.yaml" shop
serves 'the shop serves'
"$tutti" node activate "$victim" >/dev/null
says 'stack ls' 'shop' docker stack ls
says 'stack services' 'shop_web' docker stack services shop
says 'stack ps' 'shop_web.1' docker stack ps shop
says 'service logs' 'shop_web.1' docker service logs --tail 3 shop_web
check 'service scale' docker service scale shop_web=6
[[ -n $(docker service ps --filter node="$victim" --filter desired-state=running -q shop_web) ]] || fail "nothing of the shop is on $victim"
ask
died=$SECONDS
check "power cut of $victim" "$tutti" host kill "$victim"
serves 'the shop serves without it'
for _ in $(seq 120); do
	[[ $(docker service ls --filter name=shop_web --format '{{.Replicas}}') = 6/6 ]] && break
	sleep 1
done
printf 'all copies run again after %s s\n' $((SECONDS - died))
asked 'a stack, a host dies'
says 'its copies run elsewhere' '6/6' docker service ls --filter name=shop_web
check 'stack rm' docker stack rm shop
printf '%s checks passed, %s failed\n' "$checks" "$wrong"
((wrong == 0))
