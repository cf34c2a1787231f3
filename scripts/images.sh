#!/usr/bin/env bash
# Makes the images of examples/shop as OCI archives, without Docker and without a registry:
# redis and postgres from the distribution's packages, the shop's own from its Go programs.
# Nothing is installed on this host.
#
#   scripts/images.sh [--import] [--refresh] [redis] [postgres] [shop] [conformance]      default: the first three
#
# conformance: what Kubernetes' conformance suite runs.
#
# Prints the archives' paths; says on standard error what it does. An archive is kept in
# .cache/images under a name that has a hash of all that went into it, so that a second run
# makes only what changed. --import hands the archives to the running cluster. --refresh asks
# the package index again for newer redis and postgres packages.
#
# Environment: TUTTI the tutti binary (bin/tutti); TUTTI_CACHE the cache (.cache/images).
set -Eeuo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tutti=${TUTTI:-$here/bin/tutti}
cache=${TUTTI_CACHE:-$here/.cache/images}
platform=$(dpkg --print-architecture)
work=

say() { printf 'images: %s\n' "$*" >&2; }
die() {
	say "$*"
	exit 1
}
cleanup() { [[ -z $work ]] || rm -rf --one-file-system "$work"; }
trap cleanup EXIT
trap 'say "line $LINENO failed: $BASH_COMMAND"' ERR

# hash FILE… prints one hash of the files' content and of how images are made here.
hash() { cat "${BASH_SOURCE[0]}" /etc/os-release "$@" | sha256sum | cut -c1-16; }

# finish ARCHIVE KEEP-PATTERN moves the archive just made into the cache and drops older ones.
finish() {
	mv "$work/out.tar" "$1"
	find "$cache" -maxdepth 1 -name "$2" ! -path "$1" -delete
	rm -rf --one-file-system "${work:?}"/*
}

# --- packages ---------------------------------------------------------------------------------

# What is of no use inside the images: what only package scripts need, and the just-in-time
# compiler of postgres, which does without.
unwanted='perl|perl-base|perl-modules-.*|libperl.*|libgdbm.*|libdb5.*|lib(number|text|file|json)-.*perl|usrmerge|dpkg|tar|debconf|cdebconf|'
unwanted+='adduser|passwd|login.*|ucf|sensible-utils|init-system-helpers|sysvinit-utils|lsb-base|sysv-rc|netbase|'
unwanted+='libpam-.*|libsemanage.*|libsepol.*|libaudit-common|libllvm.*|libz3-.*|locales.*|libc-l10n|'
unwanted+='postgresql-common.*|postgresql-client-common|ssl-cert|openssl|readline-common|gcc-.*-base|systemd.*|libapparmor.*|base-files|util-linux-extra|libudev1|libsmartcols1|libmount1|libblkid1|debianutils|mawk'

# Packages that all images have, for their scripts and for people who look inside.
basic=(dash bash coreutils sed grep libc-bin util-linux)

# closure PACKAGE… prints "name=version" of all that these packages need on a bare system. apt leaves
# out what it has downloaded before, so that it is shown an empty directory of downloads.
closure() {
	mkdir -p "$work/apt/archives/partial"
	: >"$work/apt/status"
	apt-get install --print-uris --yes --no-install-recommends --quiet=2 \
		-o Dir::Cache::archives="$work/apt/archives" -o Dir::State::status="$work/apt/status" -o Dir::State::extended_states="$work/apt/extended" "$@" |
		sed -n "s/^'[^']*' \([^_ ]*\)_\([^_ ]*\)_[^ ]*\.deb .*/\1=\2/p" | sed 's/%3a/:/g; s/%2b/+/g; s/%7e/~/gI' |
		grep -Ev "^($unwanted)=" | sort
}

# index makes sure that apt knows what packages there are.
index() {
	if [[ -n $refresh ]] || ! apt-cache show redis-server >/dev/null 2>&1; then
		say "asking for the package index"
		apt-get update --quiet=2 >&2 || die "apt-get update failed: packages cannot be found"
		refresh=
	fi
}

# unpack ROOT PACKAGE… fetches the packages with all that they need and lays them into ROOT.
unpack() {
	local root=$1 list deb name version
	shift
	list=$(closure "$@" "${basic[@]}")
	[[ -n $list ]] || die "apt finds no way to install $*"
	mkdir -p "$cache/debs" "$root"/{bin,etc,lib,run,sbin,tmp,var/tmp,usr/{bin,sbin,lib}}
	rmdir "$root"/{bin,sbin,lib}
	ln -s usr/bin usr/sbin usr/lib "$root/"
	[[ $platform != amd64 ]] || { mkdir "$root/usr/lib64" && ln -s usr/lib64 "$root/"; }
	ln -s /run "$root/var/run"
	chmod 1777 "$root/tmp" "$root/var/tmp"
	local missing=()
	for spec in $list; do
		[[ -n $(deb_file "$spec") ]] || missing+=("$spec")
	done
	if ((${#missing[@]})); then
		say "fetching ${#missing[@]} packages"
		(cd "$cache/debs" && apt-get download --quiet=2 -o APT::Sandbox::User=root "${missing[@]}") >&2 ||
			die "packages could not be fetched"
	fi
	for spec in $list; do
		deb=$(deb_file "$spec")
		[[ -n $deb ]] || die "package $spec was fetched but is not there"
		name=${spec%%=*}
		local only=()
		[[ $name != util-linux ]] || only=(--wildcards '*/setpriv')
		dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$root" --keep-directory-symlink --no-same-owner \
			--exclude='*/share/doc' --exclude='*/share/man' --exclude='*/share/locale' --exclude='*/share/lintian' \
			--exclude='*/share/info' --exclude='*/share/bash-completion' --exclude='*/zoneinfo/right' --exclude='*/zoneinfo/posix' \
			--exclude='*/gconv' --exclude='*/bitcode' --exclude='*llvmjit*' --exclude='*/systemd/system' --exclude='*/init.d' \
			--exclude='*/cron.*' --exclude='*/logrotate.d' "${only[@]}"
	done
	ln -sf bash "$root/usr/bin/rbash"
	ln -sf dash "$root/usr/bin/sh"
	printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
}

deb_file() {
	local name=${1%%=*} version=${1#*=} file
	for file in "$cache/debs/${name}_${version//:/%3a}"_{"$platform",all}.deb; do
		[[ ! -s $file ]] || { printf '%s' "$file"; return; }
	done
}

# users ROOT NAME UID HOME writes the accounts of an image: root and one more.
users() {
	printf 'root:x:0:0:root:/root:/bin/bash\n%s:x:%s:%s::%s:/bin/sh\n' "$2" "$3" "$3" "$4" >"$1/etc/passwd"
	printf 'root:x:0:\n%s:x:%s:\n' "$2" "$3" >"$1/etc/group"
	mkdir -p "$1/root"
}

# runs ROOT PROGRAM… fails unless each program finds its libraries inside ROOT.
runs() {
	local root=$1 loader program lost
	shift
	for loader in "$root"/usr/lib64/ld-linux*.so.* "$root"/usr/lib/ld-linux*.so.* ""; do
		[[ ! -e $loader ]] || break
	done
	[[ -n $loader ]] || die "the image has no dynamic loader"
	for program in "$@"; do
		[[ -x $root$program ]] || die "the image lacks $program"
		# shellcheck disable=SC2015 # either failure means the same
		lost=$(chroot "$root" "${loader#"$root"}" --list "$program" 2>&1) && [[ $lost != *"not found"* ]] ||
			die "$program lacks libraries in the image: $lost"
	done
}

# --- images -----------------------------------------------------------------------------------

make_redis() {
	local script=$here/scripts/images/redis-entrypoint.sh root=$work/redis archive version
	archive=$cache/redis-$(hash "$script").tar
	if [[ ! -s $archive || -n $refresh ]]; then
		index
		unpack "$root" redis-server
		users "$root" redis 999 /data
		install -D -m 0755 "$script" "$root/usr/local/bin/entrypoint"
		install -d -o 999 -g 999 -m 0755 "$root/data"
		rm -rf "$root/etc/redis" "$root/etc/default"
		runs "$root" /usr/bin/redis-server /usr/bin/redis-cli /usr/bin/setpriv /usr/bin/chown /bin/bash
		version=$(chroot "$root" redis-server --version | sed 's/.* v=\([^ ]*\).*/\1/')
		say "redis:7 is redis $version"
		"$tutti" image pack --name redis:7 --dir "$root" --entrypoint /usr/local/bin/entrypoint --cmd redis-server \
			--env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin --env "REDIS_VERSION=$version" --env LANG=C.UTF-8 \
			--workdir /data --volume /data --expose 6379/tcp -o "$work/out.tar" >&2
		finish "$archive" 'redis-*.tar'
	fi
	made+=("$archive")
}

make_postgres() {
	local script=$here/scripts/images/postgres-entrypoint.sh root=$work/postgres archive package major version bin
	archive=$cache/postgres-$(hash "$script").tar
	if [[ ! -s $archive || -n $refresh ]]; then
		index
		package=postgresql-15
		if [[ -z $(apt-cache madison "$package") ]]; then
			package=$(apt-cache depends postgresql | sed -n 's/.*Depends: \(postgresql-[0-9]*\)$/\1/p' | head -n 1)
			[[ -n $package ]] || die "apt knows no PostgreSQL server"
		fi
		major=${package#postgresql-}
		bin=/usr/lib/postgresql/$major/bin
		unpack "$root" "$package"
		users "$root" postgres 999 /var/lib/postgresql
		install -D -m 0755 "$script" "$root/usr/local/bin/entrypoint"
		install -d -o 999 -g 999 -m 0700 "$root/var/lib/postgresql" "$root/var/lib/postgresql/data"
		install -d -o 999 -g 999 -m 3775 "$root/run/postgresql"
		install -d "$root/docker-entrypoint-initdb.d"
		runs "$root" "$bin"/{postgres,initdb,pg_ctl,psql,pg_isready,pg_dump} /usr/bin/setpriv /usr/bin/chown /bin/bash
		version=$(chroot "$root" "$bin/postgres" --version | sed 's/.*) \([0-9.]*\).*/\1/')
		say "postgres:15 is PostgreSQL $version"
		"$tutti" image pack --name postgres:15 --dir "$root" --entrypoint /usr/local/bin/entrypoint --cmd postgres \
			--env "PATH=$bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" --env PGDATA=/var/lib/postgresql/data \
			--env "PG_MAJOR=$major" --env "PG_VERSION=$version" --env LANG=C.UTF-8 --stop-signal SIGINT \
			--volume /var/lib/postgresql/data --expose 5432/tcp -o "$work/out.tar" >&2
		finish "$archive" 'postgres-*.tar'
	fi
	made+=("$archive")
}

# pack_service NAME TAG [ARGUMENT…] packs one of the shop's programs.
pack_service() {
	local name=$1 tag=$2 root=$work/$1 archive
	shift 2
	archive=$cache/shop-$name-$tag-$(printf '%s\n' "$@" | hash - "$work/bin/$name").tar
	if [[ ! -s $archive ]]; then
		mkdir -p "$root/etc"
		install -m 0755 "$work/bin/$name" "$root/$name"
		install -d -m 1777 "$root/tmp"
		printf 'root:x:0:0:root:/:/sbin/nologin\nshop:x:10001:10001::/:/sbin/nologin\n' >"$root/etc/passwd"
		printf 'root:x:0:\nshop:x:10001:\n' >"$root/etc/group"
		"$tutti" image pack --name "shop/$name:$tag" --dir "$root" --entrypoint "/$name" --user shop --expose 8080/tcp "$@" -o "$work/out.tar" >&2
		mv "$work/out.tar" "$archive"
		find "$cache" -maxdepth 1 -name "shop-$name-$tag-*.tar" ! -path "$archive" -delete
		rm -rf --one-file-system "$root"
	fi
	made+=("$archive")
}

make_shop() {
	local name
	say "building the shop's programs"
	(cd "$here/examples/shop" && CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o "$work/bin/" ./catalogue ./cart ./orders ./worker ./migrate ./web) >&2
	for name in catalogue cart orders worker migrate; do
		pack_service "$name" v1
	done
	pack_service web v1 --env SHOP_VERSION=v1 --env SHOP_COLOUR=teal
	pack_service web v2 --env SHOP_VERSION=v2 --env SHOP_COLOUR=plum
	pack_service web bad --env SHOP_VERSION=bad --env SHOP_COLOUR=amber --env SHOP_BROKEN=health
}

# shellcheck source=scripts/images/conformance.sh
source "$here/scripts/images/conformance.sh"

import='' refresh=''
wanted=()
for argument in "$@"; do
	case $argument in
	--import) import=yes ;;
	--refresh) refresh=yes ;;
	redis | postgres | shop | conformance) wanted+=("$argument") ;;
	*) die "unknown argument $argument: give --import, --refresh, redis, postgres, shop or conformance" ;;
	esac
done
((${#wanted[@]})) || wanted=(redis postgres shop)
[[ $(id -u) = 0 ]] || die "run this as root: the images' files belong to several users"
[[ -x $tutti ]] || die "$tutti is not there: run make build first"
mkdir -p "$cache"
work=$(mktemp -d "$cache/work.XXXXXX")
made=()
for image in "${wanted[@]}"; do
	"make_$image"
done
if [[ -n $import ]]; then
	"$tutti" image import "${made[@]}" >&2
fi
printf '%s\n' "${made[@]}"
