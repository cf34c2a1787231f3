#!/usr/bin/env bash
# The tests that k8s.io/apiserver has for storages, as they are, with Tutti's key space in the place of
# etcd: the packages are copied, and what they import to start an etcd is replaced.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../kube"
apiserver=$(go list -m -f '{{.Dir}}' k8s.io/apiserver)
copy=internal/upstream
trap 'rm -rf "$copy"' EXIT
rm -rf "$copy"
mkdir -p "$copy"
for package in etcd3 cacher; do
	cp -r --no-preserve=mode "$apiserver/pkg/storage/$package" "$copy/"
done
rm -rf "$copy/etcd3/testserver"
# The storage that the tests look into is the copy.
find "$copy" -name '*.go' -exec sed -i \
	-e 's#"k8s.io/apiserver/pkg/storage/etcd3/testserver"#"github.com/tutti-run/tutti/kube/internal/testserver"#' \
	-e 's#"k8s.io/apiserver/pkg/storage/etcd3\(/testing\)\?"#"github.com/tutti-run/tutti/kube/'"$copy"'/etcd3\1"#' {} +
go test "$@" ./"$copy"/etcd3 ./"$copy"/cacher
