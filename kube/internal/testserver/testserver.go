// Package testserver stands in for that of k8s.io/apiserver when its tests of storages are run on
// Tutti (scripts/test-kube-storage.sh): instead of an etcd they get a cluster of one server.
package testserver

import (
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	storagetesting "k8s.io/apiserver/pkg/storage/testing"

	"github.com/tutti-run/tutti/kube/internal/storagetest"
)

// NewTestConfig returns what tests change: how often watches hear how far they have come.
func NewTestConfig(testing.TB) *embed.Config { return embed.NewConfig() }

// RunEtcd returns a client of a new cluster, which ends with the test.
func RunEtcd(t testing.TB, cfg *embed.Config) *kubernetes.Client {
	t.Helper()
	if cfg == nil {
		cfg = NewTestConfig(t)
	}
	client, err := kubernetes.New(clientv3.Config{
		Endpoints: []string{storagetest.Etcd(t, cfg.WatchProgressNotifyInterval)}, DialTimeout: 30 * time.Second, Logger: zap.NewNop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	requests := storagetesting.NewKubernetesRecorder(client.Kubernetes)
	client.KV = storagetesting.NewKVRecorder(client.KV, requests)
	client.Kubernetes = requests
	return client
}
