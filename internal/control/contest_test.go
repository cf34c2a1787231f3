package control_test

import (
	"strings"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

func placement(change func(p *model.Placement)) func(w *model.Workload) {
	return func(w *model.Workload) { change(&w.Template.Placement) }
}

func priority(n int) func(w *model.Workload) {
	return placement(func(p *model.Placement) { p.Priority = n })
}

// TestTheLessImportantGiveWay fills a cluster, and lets something more important come: as few as
// needed end, it takes their place, and what had to go waits for room.
func TestTheLessImportantGiveWay(t *testing.T) {
	for _, group := range []string{"", "likes"} { // those of one group are counted together, as Pods of the same labels are
		t.Run(group, func(t *testing.T) { lessImportantGiveWay(t, placement(func(p *model.Placement) { p.Group = group })) })
	}
}

func lessImportantGiveWay(t *testing.T, grouped func(*model.Workload)) {
	inCluster(t, 2, func(c *cluster) {
		c.deploy(workload("batch", 4, reserves(3<<30), grouped))
		for range 3 {
			c.agents()
			c.settle()
		}
		c.deploy(workload("web", 1, reserves(5<<30), priority(10), grouped))
		web := c.instances("web")[0]
		if web.NodeID != "" || !strings.Contains(web.Reason, "waits for what is ending on node0") {
			t.Fatalf("web is on %q: %s", web.NodeID, web.Reason)
		}
		if told := c.events("instance preempted"); len(told) != 1 || told[0] != "gives way to shop/web.1, which is more important" {
			t.Errorf("events: %v; one instance has to go", told)
		}
		time.Sleep(3 * time.Second)
		c.settle()
		if told := c.events("instance preempted"); len(told) != 1 {
			t.Errorf("more had to go while the first was ending: %v", told)
		}
		for range 5 {
			c.agents()
			c.settle()
		}
		if web = c.instances("web")[0]; web.NodeID == "" {
			t.Errorf("web found no room: %s", web.Reason)
		}
		placed := 0
		for _, i := range c.instances("batch") {
			if i.NodeID != "" && i.Desired == model.DesiredRun {
				placed++
			}
		}
		if placed != 3 {
			t.Errorf("%d of batch run beside it, there is room for 3", placed)
		}
	})
}

func TestABudgetKeepsThoseWhoWouldGiveWay(t *testing.T) {
	inCluster(t, 1, func(c *cluster) {
		c.deploy(workload("batch", 2, reserves(4<<30), func(w *model.Workload) { w.MinAvailable = 2 }))
		for range 3 {
			c.agents()
			c.settle()
		}
		c.deploy(workload("web", 1, reserves(4<<30), priority(10)))
		if web := c.instances("web")[0]; web.NodeID != "" || !strings.Contains(web.Reason, "too little memory") {
			t.Errorf("web is on %q: %s", web.NodeID, web.Reason)
		}
		if told := c.events("instance preempted"); len(told) != 0 {
			t.Errorf("instances that must stay had to go: %v", told)
		}
	})
}

func TestACrashLoopIsToldOfOnce(t *testing.T) {
	inCluster(t, 1, func(c *cluster) {
		c.deploy(workload("web", 1))
		c.agents()
		i := c.instances("web")[0]
		for n := range 9 {
			c.setStatus(i, model.InstanceStatus{State: model.InstanceWaiting, Restarts: n, Message: "exit code 3"})
		}
		want := "it was restarted 5 times, and the pause before the next time grows: exit code 3"
		if told := c.events("instance crash-loops"); len(told) != 1 || told[0] != want {
			t.Errorf("events: %q, want one: %s", told, want)
		}
	})
}

// TestApartHoldsBothWays: of two services only the first says that it wants to be alone.
func TestApartHoldsBothWays(t *testing.T) {
	inCluster(t, 2, func(c *cluster) {
		c.deploy(workload("db", 1, placement(func(p *model.Placement) { p.Apart = []model.Affinity{{Workloads: []string{"noisy"}}} })))
		c.deploy(workload("noisy", 2))
		c.deploy(workload("cache", 1, placement(func(p *model.Placement) { p.Near = []model.Affinity{{Workloads: []string{"shop/db"}}} })))
		home := c.instances("db")[0].NodeID
		for _, i := range c.instances("noisy") {
			if i.NodeID == home || i.NodeID == "" {
				t.Errorf("%s is on %q, beside db (%s)", i.Name, i.NodeID, i.Reason)
			}
		}
		if cache := c.instances("cache")[0]; cache.NodeID != home {
			t.Errorf("cache is on %q, db on %q (%s)", cache.NodeID, home, cache.Reason)
		}
	})
}

func TestAGangStartsAsAWhole(t *testing.T) {
	inCluster(t, 2, func(c *cluster) {
		gang := placement(func(p *model.Placement) { p.Gang = true })
		c.deploy(workload("train", 5, reserves(4<<30), gang))
		for _, i := range c.instances("train") {
			if i.NodeID != "" || !strings.Contains(i.Reason, "only 4 of 5 have room") {
				t.Fatalf("%s is on %q: %s", i.Name, i.NodeID, i.Reason)
			}
		}
		c.addNode(2)
		c.settle()
		for _, i := range c.instances("train") {
			if i.NodeID == "" {
				t.Errorf("%s has no place though there is room for all: %s", i.Name, i.Reason)
			}
		}
	})
}

func TestANamespaceHasItsQuota(t *testing.T) {
	inCluster(t, 2, func(c *cluster) {
		cl, _ := store.Get[*model.Cluster](c.store.Snapshot(), model.ClusterID)
		cl = cl.Clone()
		cl.Namespaces = map[string]model.NamespaceShare{"default": {Quota: model.Resources{MemoryBytes: 3 << 30}}}
		c.put(cl)
		c.deploy(workload("web", 5, reserves(1<<30)))
		placed, reason := 0, ""
		for _, i := range c.instances("web") {
			if i.NodeID != "" {
				placed++
			} else {
				reason = i.Reason
			}
		}
		if want := "namespace default has used up its quota of memory: 3 GiB of 3 GiB, and 1 GiB wanted"; placed != 3 || reason != want {
			t.Errorf("%d placed; the others wait as %q", placed, reason)
		}
	})
}
