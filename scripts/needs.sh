#!/usr/bin/env bash
# Makes sure that this machine has what building and testing need, and installs what is missing
# (Debian and Ubuntu). Says nothing when nothing is missing. Usage: needs.sh [PROGRAM…]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'needs: %s\n' "$*" >&2; }
die() {
	say "$*"
	exit 1
}

# Go: it cannot come from the distribution, whose version may be too old.
wanted=$(sed -n 's/^go //p' go.mod)
command -v go >/dev/null || die "Go $wanted or newer is needed: see https://go.dev/doc/install"
have=$(go env GOVERSION) || die "Go $wanted or newer is needed, and \`go env\` fails"
have=${have#go}
if [[ $(printf '%s\n%s\n' "$wanted" "${have%%[ -]*}" | sort -V | head -n 1) != "$wanted" ]]; then
	die "Go $wanted or newer is needed, $have is there: see https://go.dev/doc/install"
fi

missing=()
command -v gcc >/dev/null || missing+=(gcc libc6-dev)
command -v make >/dev/null || missing+=(make)
command -v pkg-config >/dev/null || missing+=(pkg-config)
pkg-config --exists libseccomp 2>/dev/null || missing+=(libseccomp-dev)
[[ -e /etc/ssl/certs/ca-certificates.crt || -e /etc/pki/tls/certs/ca-bundle.crt || -e /etc/ssl/cert.pem ]] || missing+=(ca-certificates)
# What only tests need is named by arguments: programs that are in packages of the same name, or PROGRAM:PACKAGE. Without root
# the tests that need them are left out.
for program in "$@"; do
	[[ $(id -u) != 0 ]] || PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin command -v "${program%%:*}" >/dev/null || missing+=("${program#*:}")
done
((${#missing[@]})) || exit 0

command -v apt-get >/dev/null || die "install ${missing[*]} (as Debian calls them), then try again"
[[ $(id -u) = 0 ]] || die "${missing[*]} must be installed: run this as root, or \`sudo apt-get install ${missing[*]}\`"
say "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
install=(apt-get install --yes --no-install-recommends --quiet=2 "${missing[@]}")
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# The index may be absent or out of date: it is asked for only then.
if ! "${install[@]}" >"$log" 2>&1; then
	if ! { apt-get update --quiet=2 && "${install[@]}"; } >"$log" 2>&1; then
		cat "$log" >&2
		die "${missing[*]} could not be installed"
	fi
fi
