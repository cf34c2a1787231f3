#!/usr/bin/env bash
# The docker command line's session against Tutti and against a Docker Engine, each on sockets and
# data of its own, compared; with HOSTS=3 Tutti has so many virtual hosts; with FLAGS=REGEXP, in place of the session, the flags of the commands that match. Needs root, docker, dockerd and a static busybox.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
tutti=$here/bin/tutti
for program in docker dockerd busybox; do
	command -v "$program" >/dev/null || { echo "e2e-docker: $program is not there (Debian: docker.io, docker-cli, busybox-static)" >&2; exit 1; }
done
[[ $(id -u) = 0 ]] || { echo "e2e-docker: containers need root" >&2; exit 1; }
work=$(mktemp -d /var/tmp/tutti-compat.XXXXXX)
pids=()
finish() {
	local pid
	"$tutti" --run-dir "$work/run" --data-dir "$work/tutti" down ${HOSTS:+--purge} >/dev/null 2>&1 || true
	for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
	for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
	umount "$work"/exec/netns/* 2>/dev/null || true # the namespaces of an Engine outlive it
	rm -rf --one-file-system "$work" || true
}
trap finish EXIT

root=$work/busybox
mkdir -p "$root"/{bin,tmp,root,etc,var}
cp "$(command -v busybox)" "$root/bin/busybox"
for applet in $(busybox --list); do [[ $applet = busybox ]] || ln -s busybox "$root/bin/$applet"; done
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n' >"$root/etc/passwd"
printf 'root:x:0:\nnobody:x:65534:\n' >"$root/etc/group"
export IMAGE=$work/busybox.tar
"$tutti" image pack --name busybox:1 --dir "$root" --cmd sh --env PATH=/bin -o "$IMAGE"

socket=$work/run/docker.sock
if [[ -n ${HOSTS:-} ]]; then
	"$tutti" --run-dir "$work/run" --data-dir "$work/tutti" up -d --hosts "$HOSTS" >"$work/tutti.log" 2>&1
	socket=$work/run/hosts/host-1/docker.sock
else
	"$tutti" --run-dir "$work/run" --data-dir "$work/tutti" up --port "${PORT:-7498}" --name alpha >"$work/tutti.log" 2>&1 &
	pids+=($!)
fi
dockerd --host "unix://$work/engine.sock" --data-root "$work/engine" --exec-root "$work/exec" --pidfile "$work/engine.pid" \
	--bridge none --iptables=false >"$work/engine.log" 2>&1 &
pids+=($!)
for at in "$socket" "$work/engine.sock"; do
	for _ in $(seq 100); do
		docker -H "unix://$at" info >/dev/null 2>&1 && break
		sleep 0.2
	done
	docker -H "unix://$at" version --format 'compared: {{.Server.Platform.Name}} {{.Server.Version}} at '"${at##*/}" || { tail -n 20 "$work"/*.log >&2; exit 1; }
done
(cd "$here" && go run ./test/compat/docker -tutti "$socket" ${HOSTS:+-hosts} -engine "$work/engine.sock" -dir "${SESSION:-test/compat/docker}" ${FLAGS:+-flags "$FLAGS"})
