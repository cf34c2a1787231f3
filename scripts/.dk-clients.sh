#!/usr/bin/env bash
# Clients of the Docker API that others wrote, as they are, against Tutti: Debian's python3-docker and Go's own
# client through every call that they have, and Traefik's Docker and Swarm providers, built from its module,
# which have to tell of what runs. Needs root, python3-docker, docker and a static busybox.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
tutti=$here/bin/tutti
traefik=v3.5.0
for program in docker busybox python3; do
	command -v "$program" >/dev/null || { echo "e2e-docker-clients: $program is not there (Debian: docker-cli, busybox-static, python3)" >&2; exit 1; }
done
/usr/bin/python3 -c "import docker" 2>/dev/null || { echo "e2e-docker-clients: python's docker is not there (Debian: python3-docker)" >&2; exit 1; }
[[ $(id -u) = 0 ]] || { echo "e2e-docker-clients: containers need root" >&2; exit 1; }
work=$(mktemp -d /var/tmp/tutti-clients.XXXXXX)
pids=()
finish() {
	local pid
	for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
	"$tutti" --run-dir "$work/run" --data-dir "$work/tutti" down >/dev/null 2>&1 || true
	for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
	rm -rf --one-file-system "$work" || true
}
trap finish EXIT

# providers builds a program that prints what Traefik's providers tell it, one configuration a line.
providers() {
	local source
	source=$(cd "$work" && go mod download -json "github.com/traefik/traefik/v3@$traefik" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
	cp -r "$source" "$work/source"
	chmod -R u+w "$work/source"
	mkdir "$work/source/cmd/providers"
	cp "$here/test/compat/clients/providers.go.txt" "$work/source/cmd/providers/main.go"
	(cd "$work/source" && GOFLAGS=-mod=mod nice -n 10 go build -o "$work/providers" ./cmd/providers)
	rm -rf "$work/source"
	echo "$work/providers"
}

# told waits until a provider has told of something.
told() {
	for _ in $(seq 300); do
		if grep -qF -- "$3" <<<"$(tail -n 1 "$work/$1")"; then
			printf '%s\n' "Traefik's $1 provider: $2"
			return
		fi
		sleep 0.2
	done
	printf "e2e-docker-clients: Traefik's %s provider does not tell that %s; it said:\n%s\n" "$1" "$2" "$(tail -n 3 "$work/$1")" >&2
	exit 1
}

root=$work/busybox
mkdir -p "$root"/{bin,tmp,root,etc,var}
cp "$(command -v busybox)" "$root/bin/busybox"
for applet in $(busybox --list); do [[ $applet = busybox ]] || ln -s busybox "$root/bin/$applet"; done
"$tutti" image pack --name busybox:1 --dir "$root" --cmd sh --env PATH=/bin -o "$work/busybox.tar"
"$tutti" --run-dir "$work/run" --data-dir "$work/tutti" up --port "${PORT:-7496}" --name alpha >"$work/tutti.log" 2>&1 &
pids+=($!)
export DOCKER_HOST=unix://$work/run/docker.sock
for _ in $(seq 100); do
	docker info >/dev/null 2>&1 && break
	sleep 0.2
done
docker load -q -i "$work/busybox.tar"

(cd "$work" && /usr/bin/python3 "$here/test/compat/clients/walk.py" busybox:1)
(cd "$here/test/compat/clients" && GOFLAGS=-mod=mod go run . busybox:1)

program=${TRAEFIK_PROVIDERS:-$(providers)}
"$program" docker >"$work/docker" 2>"$work/docker.log" &
pids+=($!)
"$program" swarm >"$work/swarm" 2>"$work/swarm.log" &
pids+=($!)
label='traefik.http.routers.%s.rule=Host(`%s.example`)'
# shellcheck disable=SC2059
docker run -d --name web --label traefik.enable=true --label "$(printf "$label" web web)" --expose 8080 busybox:1 sleep 1000 >/dev/null
told docker 'a container that was started is there, with its rule' 'Host(`web.example`)'
told docker 'and its address' "$(docker inspect web --format '{{.NetworkSettings.IPAddress}}'):8080"
docker stop -t 0 web >/dev/null
told docker 'one that was stopped is not' '"routers":{}'
docker network create -d overlay front >/dev/null
# shellcheck disable=SC2059
docker service create -q -d --name site --network front --label traefik.enable=true --label "$(printf "$label" site site)" \
	--label traefik.http.services.site.loadbalancer.server.port=80 --replicas 2 busybox:1 sleep 1000 >/dev/null
told swarm 'a service is there, with its rule' 'Host(`site.example`)'
docker service rm site >/dev/null
told swarm 'one that was removed is not' '"routers":{}'
