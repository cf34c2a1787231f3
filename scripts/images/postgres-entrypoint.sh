#!/bin/sh
# Makes a database cluster in PGDATA at the first start, and runs postgres as PID 1.
#
#   POSTGRES_PASSWORD[_FILE]   of the superuser; needed unless POSTGRES_HOST_AUTH_METHOD=trust
#   POSTGRES_USER[_FILE]       the superuser (postgres)
#   POSTGRES_DB[_FILE]         a database to make (as the superuser is called)
#   POSTGRES_INITDB_ARGS       more arguments of initdb
#   /docker-entrypoint-initdb.d/*.sql, *.sh   run once, in order, in that database
#
# The first start can be killed at any moment: the cluster grows in PGDATA/.new, where no client
# reaches it, and moves up when it is whole.
set -eu

die() {
	echo "postgres: $*" >&2
	exit 1
}

# setting NAME DEFAULT prints $NAME, or what the file $NAME_FILE holds, or the default.
setting() {
	eval "value=\${$1-} file=\${$1_FILE-}"
	[ -z "$value" ] || [ -z "$file" ] || die "$1 and $1_FILE are both set: say which"
	if [ -n "$file" ]; then
		value=$(cat "$file") || die "$1_FILE cannot be read"
	fi
	printf '%s' "${value:-$2}"
}

# settle moves a whole new cluster from .new into its place, PG_VERSION last.
settle() {
	for entry in "$PGDATA"/.new/*; do
		case "$entry" in
		*/PG_VERSION | *'/*') ;;
		*) mv "$entry" "$PGDATA/" ;;
		esac
	done
	sync
	[ ! -e "$PGDATA/.new/PG_VERSION" ] || mv "$PGDATA/.new/PG_VERSION" "$PGDATA/"
	rm -rf "$PGDATA/.new" "$PGDATA/.whole"
	sync
}

create() {
	for entry in "$PGDATA"/* "$PGDATA"/.[!.]*; do
		case "$entry" in
		*/lost+found | */.new | *'/*' | *'/.[!.]*') ;;
		*) die "$PGDATA holds ${entry##*/} but no database: give an empty volume, or one with a database" ;;
		esac
	done
	user=$(setting POSTGRES_USER postgres)
	database=$(setting POSTGRES_DB "$user")
	password=$(setting POSTGRES_PASSWORD '')
	method=${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}
	[ -n "$password" ] || [ "$method" = trust ] ||
		die "set POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE (or POSTGRES_HOST_AUTH_METHOD=trust to do without)"

	new=$PGDATA/.new
	rm -rf "$new"
	mkdir -m 0700 "$new"
	set --
	if [ -n "$password" ]; then
		printf '%s\n' "$password" >"$PGDATA/.password"
		set -- --pwfile="$PGDATA/.password"
	fi
	# shellcheck disable=SC2086 # the arguments are meant to be several
	initdb --pgdata="$new" --username="$user" --encoding=UTF8 --locale=C.UTF-8 \
		--auth-local=trust --auth-host="$method" "$@" ${POSTGRES_INITDB_ARGS-}
	rm -f "$PGDATA/.password"
	echo "host all all all $method" >>"$new/pg_hba.conf"
	echo "listen_addresses = '*'" >>"$new/postgresql.conf"

	pg_ctl --pgdata="$new" --wait --silent --options="-c listen_addresses='' -c unix_socket_directories='$new'" start
	if [ "$database" != postgres ]; then
		psql -h "$new" -U "$user" -d postgres -v ON_ERROR_STOP=1 -v name="$database" -q <<-'SQL'
			CREATE DATABASE :"name";
		SQL
	fi
	for file in /docker-entrypoint-initdb.d/*; do
		case "$file" in
		*'/*') ;;
		*.sql) psql -h "$new" -U "$user" -d "$database" -v ON_ERROR_STOP=1 -q -f "$file" ;;
		*.sh) PGHOST=$new PGUSER=$user PGDATABASE=$database POSTGRES_USER=$user POSTGRES_DB=$database /bin/sh "$file" ;;
		*) die "$file is neither .sql nor .sh" ;;
		esac
	done
	pg_ctl --pgdata="$new" --wait --silent --mode=fast stop
	sync
	: >"$PGDATA/.whole"
}

case "${1-}" in
-*) set -- postgres "$@" ;;
esac
[ "${1-}" = postgres ] || exec "$@"

sockets=/var/run/postgresql
if [ "$(id -u)" = 0 ]; then
	mkdir -p "$PGDATA" "$sockets"
	chown -R postgres:postgres "$PGDATA" "$sockets"
	chmod 0700 "$PGDATA"
	chmod 3775 "$sockets"
	exec setpriv --reuid postgres --regid postgres --init-groups -- "$0" "$@"
fi

if [ ! -s "$PGDATA/PG_VERSION" ]; then
	rm -f "$PGDATA/.password"
	[ -e "$PGDATA/.whole" ] || create
	settle
elif [ -e "$PGDATA/.whole" ]; then
	settle
fi
exec "$@"
