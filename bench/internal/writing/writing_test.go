package writing

import (
	"os/exec"
	"testing"
	"time"

	"github.com/tutti-run/tutti/bench/internal/placing"
)

// Three servers form a cluster, take writes in both ways, tell watchers, and place.
func TestCluster(t *testing.T) {
	c, err := startCluster(t.Context(), t.TempDir(), 3)
	if err != nil {
		t.Fatal(err)
	}
	p := plan{duration: 200 * time.Millisecond, watchers: 10, changes: 5}
	for name, w := range map[string]write{"inside": c.write, "remote": c.writeRemotely} {
		o, err := p.measure(t.Context(), 4, w)
		if err != nil || len(o.latencies) == 0 {
			t.Errorf("%s: %d writes: %v", name, len(o.latencies), err)
		}
	}
	if d, err := p.watched(t.Context(), c.writeObjectRemotely, c.watchRemotely); err != nil || len(d) != p.changes {
		t.Errorf("%d changes were watched: %v", len(d), err)
	}
	leader := c.leader()
	if _, err := placing.Durably(t.Context(), leader.store, leader.raft, 32, 64); err != nil {
		t.Error(err)
	}
	if err := c.stop(); err != nil {
		t.Error(err)
	}
}

func TestEtcd(t *testing.T) {
	if _, err := exec.LookPath("etcd"); err != nil {
		t.Skip("etcd is not installed")
	}
	e, err := startEtcd(t.Context(), t.TempDir(), 1)
	if err != nil {
		t.Fatal(err)
	}
	w, err := e.writer(t.Context(), 4)
	if err != nil {
		t.Fatal(err)
	}
	p := plan{duration: 200 * time.Millisecond}
	if o, err := p.measure(t.Context(), 4, w); err != nil || len(o.latencies) == 0 {
		t.Errorf("%d writes: %v", len(o.latencies), err)
	}
	if _, err := e.putAll(t.Context(), 300); err != nil {
		t.Error(err)
	}
	if err := e.stop(); err != nil {
		t.Error(err)
	}
}
