# Sourced by scripts/images.sh: the images that Kubernetes' conformance suite asks for, under the names that it
# asks for. Its own programs are built from the modules that test/kubeconformance names; what upstream takes
# from Alpine, Debian and nginx is Debian's here.

# conformance_image NAME ROOT KEY [ARGUMENT…] packs one; KEY has what went into it.
conformance_image() {
	local name=$1 root=$2 key=$3 base archive
	shift 3
	base=${name##*/}
	archive=$cache/conformance-${base//:/-}-$key.tar
	if [[ ! -s $archive ]]; then
		"$tutti" image pack --name "$name" --dir "$root" "$@" -o "$work/out.tar" >&2
		mv "$work/out.tar" "$archive"
		find "$cache" -maxdepth 1 -name "conformance-${base//:/-}-*.tar" ! -path "$archive" -delete
	fi
	made+=("$archive")
}

# applets ROOT links what busybox knows to it, except for what is there already.
applets() {
	local root=$1 name
	mkdir -p "$root"/{bin,usr/bin}
	for name in $(busybox_list "$root"); do
		[[ -e $root/bin/$name || -e $root/usr/bin/$name || -e $root/usr/sbin/$name || -e $root/sbin/$name ]] || ln -s /bin/busybox "$root/bin/$name"
	done
	ln -sf /bin/busybox "$root/bin/sh" # as in Alpine
}

busybox_list() { chroot "$1" /bin/busybox --list; }

conformance_accounts() {
	mkdir -p "$1"/{etc,root,tmp,home}
	chmod 1777 "$1/tmp"
	printf 'root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\nuser-defined-in-image:x:1000:1000::/home:/bin/sh\n' >"$1/etc/passwd"
	printf 'root:x:0:\ndaemon:x:1:\nnobody:x:65534:\nnogroup:x:65534:\nuser-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n' >"$1/etc/group"
}

make_conformance() {
	local e2e=registry.k8s.io/e2e-test-images module=$here/test/kubeconformance bin key source busybox agnhost root
	local path=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
	bin=$cache/conformance-bin
	mkdir -p "$bin"
	say "building the programs of the conformance suite's images"
	(
		cd "$module"
		export CGO_ENABLED=0
		go build -ldflags='-s -w' -o "$bin/" k8s.io/kubernetes/test/images/{agnhost,nonewprivs} k8s.io/sample-apiserver go.etcd.io/etcd/server/v3
		[[ ! -e $bin/server && ! -e $bin/v3 ]] || mv "$bin"/{server,v3} "$bin/etcd" 2>/dev/null || mv "$bin/server" "$bin/etcd"
	) >&2
	source=$(cd "$module" && go list -m -f '{{.Dir}}' k8s.io/kubernetes)
	gcc -Os -static -s -DVERSION=local -o "$bin/pause" "$source/build/pause/linux/pause.c"
	key=$(hash "${BASH_SOURCE[0]}" "$bin"/*)
	if [[ -z $refresh && $(compgen -G "$cache/conformance-*-$key.tar" | wc -l) = 13 ]]; then
		made+=("$cache"/conformance-*-"$key".tar)
		return
	fi
	index

	root=$work/pause
	mkdir -p "$root"
	install -m 0755 "$bin/pause" "$root/pause"
	conformance_image registry.k8s.io/pause:3.10.2 "$root" "$key" --entrypoint /pause --user 65535:65535

	busybox=$work/busybox
	mkdir -p "$busybox/bin"
	unpack "$busybox" busybox-static
	applets "$busybox"
	# Debian's busybox keeps variables with such names as a-b from what its shell starts; upstream's does not, nor does bash.
	ln -sf bash "$busybox/bin/sh"
	conformance_accounts "$busybox"
	conformance_image $e2e/busybox:1.37.0-2 "$busybox" "$key" --cmd sh --env $path

	agnhost=$work/agnhost
	unpack "$agnhost" busybox-static bind9-dnsutils curl netcat-openbsd iproute2 socat hostname
	applets "$agnhost"
	ln -sf nc.openbsd "$agnhost/bin/nc"
	ln -sf bash "$agnhost/bin/sh" # busybox's shell takes its own programs before those of the image
	conformance_accounts "$agnhost"
	conformance_image $e2e/glibc-dns-testing:2.1.1 "$agnhost" "$key" --cmd bash --env $path
	install -m 0755 "$bin/agnhost" "$agnhost/agnhost"
	ln -s agnhost "$agnhost/agnhost-2"
	mkdir -p "$agnhost/uploads"
	install -m 0644 "$source"/test/images/agnhost/porter/localhost.{crt,key} "$agnhost/"
	for tag in 2.66.1 2.55; do
		conformance_image $e2e/agnhost:$tag "$agnhost" "$key" --entrypoint /agnhost --cmd pause --env $path \
			--expose 80/tcp --expose 8080/tcp --expose 8081/tcp --expose 9376/tcp --expose 5000/tcp
	done
	for tag in kitten nautilus; do
		install -m 0644 "$source/test/images/$tag/html/"* "$agnhost/"
		printf 'PRETTY_NAME="Debian, in place of Alpine Linux"\n' >"$agnhost/etc/os-release" # which a case looks for
		conformance_image $e2e/$tag:1.8 "$agnhost" "$key" --entrypoint /agnhost --cmd test-webserver --env $path --expose 80/tcp
	done
	install -D -m 4755 "$bin/nonewprivs" "$busybox/usr/local/bin/nnp"
	conformance_image $e2e/nonewprivs:1.4 "$busybox" "$key" --cmd nnp --env $path
	conformance_image $e2e/nonroot:1.5 "$busybox" "$key" --cmd sh --env $path --user 1234

	root=$work/nginx
	unpack "$root" busybox-static nginx-light
	applets "$root"
	conformance_accounts "$root"
	printf 'www-data:x:33:33::/var/www:/bin/false\n' >>"$root/etc/passwd"
	printf 'www-data:x:33:\n' >>"$root/etc/group"
	mkdir -p "$root"/var/{log/nginx,lib/nginx} "$root/usr/share/nginx/html"
	sed 's/listen .*;/listen 80;/; /\[::\]/d' >"$root/etc/nginx/nginx.conf" <<'N'
worker_processes 1;
error_log /dev/stderr;
pid /run/nginx.pid;
events { worker_connections 64; }
http {
	include mime.types;
	access_log /dev/stdout;
	server { listen 80; root /usr/share/nginx/html; index index.html; }
}
N
	[[ -s $root/usr/share/nginx/html/index.html ]] || printf '<html><title>Welcome to nginx!</title></html>\n' >"$root/usr/share/nginx/html/index.html"
	for tag in 1.27.0-2 1.28.0-2; do
		conformance_image $e2e/nginx:$tag "$root" "$key" --cmd nginx --cmd -g --cmd 'daemon off;' --env $path --expose 80/tcp
	done

	for tag in sample-apiserver:1.29.2 etcd:3.7.0-0; do
		root=$work/${tag%%:*}
		mkdir -p "$root"
		if [[ $tag = etcd* ]]; then
			install -D -m 0755 "$bin/etcd" "$root/usr/local/bin/etcd"
			conformance_image registry.k8s.io/$tag "$root" "$key" --env $path
		else
			install -m 0755 "$bin/sample-apiserver" "$root/sample-apiserver"
			conformance_image $e2e/$tag "$root" "$key" --entrypoint /sample-apiserver --env $path
		fi
	done
}
