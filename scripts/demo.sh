#!/usr/bin/env bash
# Builds Tutti, brings up three virtual hosts on this machine, and deploys the shop of
# examples/shop on them. A cluster that is up already is used as it is. Run it again at any time:
# what is done is not done twice.
#
# Environment: SHOP_PORT the shop's port (8080); TUTTI_DATA_DIR, TUTTI_RUN_DIR as for tutti.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tutti=bin/tutti
address=http://127.0.0.1:${SHOP_PORT:-8080}
began=$(date +%s%N)
times=()

die() {
	printf 'demo: %s\n' "$*" >&2
	exit 1
}

seconds() { # since a point in time
	local ms=$((($(date +%s%N) - $1) / 1000000))
	printf '%d.%01d s' $((ms / 1000)) $((ms % 1000 / 100))
}

# step TITLE COMMAND… runs and times one step.
step() {
	local title=$1 start
	shift
	printf '\n== %s\n' "$title"
	start=$(date +%s%N)
	"$@" || die "that failed: $title"
	times+=("$(printf '%-34s %8s' "$title" "$(seconds "$start")")")
}

build() { "${MAKE:-make}" --no-print-directory -s build; }

cluster() {
	if $tutti nodes >/dev/null 2>&1; then
		echo "The cluster that is up is used."
	elif taken; then
		echo "Port ${SHOP_PORT:-8080} of 127.0.0.1 belongs to something else: SHOP_PORT=8081 make demo takes another." >&2
		return 1
	else
		$tutti up -d --hosts 3
	fi
	$tutti nodes
}

images() { scripts/images.sh --import >/dev/null; }

deploy() { $tutti deploy -f examples/shop/compose.yaml shop; }

# taken tells whether somebody listens on the shop's port.
taken() { (: <"/dev/tcp/127.0.0.1/${SHOP_PORT:-8080}") 2>/dev/null; }

# front_page prints the first line of the answer.
front_page() {
	{
		exec 3<>"/dev/tcp/127.0.0.1/${SHOP_PORT:-8080}"
		printf 'GET / HTTP/1.0\r\nHost: shop\r\n\r\n' >&3
		head -n 1 <&3
	} 2>/dev/null || true
}

# answers waits until the shop's front page is served.
answers() {
	for _ in $(seq 100); do
		if [[ $(front_page) == *" 200 "* ]]; then
			echo "$address answers."
			return
		fi
		sleep 0.1
	done
	echo "$address does not answer; \`$tutti status\` and \`$tutti logs shop/web\` tell more" >&2
	return 1
}

[[ $(id -u) = 0 ]] || die 'virtual hosts and containers need root: run "sudo make demo"'
step 'what is needed' scripts/needs.sh
step 'build bin/tutti' build
step 'three hosts' cluster
step 'images' images
step 'deploy the shop' deploy
step 'ask for its front page' answers

printf '\n'
printf '   %s\n' "${times[@]}"
printf '   %-34s %8s\n' 'all' "$(seconds "$began")"
with=${SHOP_PORT:+SHOP_PORT=$SHOP_PORT }
cat <<TEXT

The shop is at $address

Things to try:

  see what runs               $tutti status; $tutti ps; $tutti ls shop
  ask why it is as it is      $tutti explain shop/web
  follow what it says         $tutti logs -f shop/web
  more of it                  $tutti scale shop/web=6
  the next version            $with$tutti deploy -f examples/shop/compose.yaml -f examples/shop/compose.v2.yaml shop
  a bad version: rolled back  $with$tutti deploy -f examples/shop/compose.yaml -f examples/shop/compose.bad.yaml shop
  cut a host's power          $tutti host kill host-2; watch $tutti ps; $tutti host start host-2
  cut its network             $tutti host cut host-3; $tutti host heal host-3
  look into the database      $tutti exec -it shop/postgres psql -U shop
  end it, keep its data       $tutti down
  end it, leave nothing       $tutti down --purge
TEXT
