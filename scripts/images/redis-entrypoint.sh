#!/bin/sh
# Starts redis-server as user redis, in /data, open to the networks that the container is on:
# they, and not the address, say who may reach it.
set -eu

case "${1-}" in
-* | *.conf) set -- redis-server "$@" ;;
esac

if [ "${1-}" = redis-server ]; then
	if [ "$(id -u)" = 0 ]; then
		chown -R redis:redis .
		exec setpriv --reuid redis --regid redis --clear-groups -- "$0" "$@"
	fi
	shift
	umask 0077
	case "${1-}" in
	*.conf)
		conf=$1
		shift
		exec redis-server "$conf" --protected-mode no "$@"
		;;
	*) exec redis-server --protected-mode no "$@" ;;
	esac
fi

exec "$@"
