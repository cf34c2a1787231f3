//go:build upstream

package testserver

// What tests of k8s.io/apiserver import and nothing here does otherwise, so that go.mod has it.
import (
	_ "k8s.io/apiserver/pkg/apis/example/v1"
	_ "k8s.io/apiserver/pkg/storage/etcd3"
	_ "k8s.io/apiserver/pkg/storage/testing"
)
