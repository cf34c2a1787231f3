package control_test

import (
	"testing"

	"github.com/tutti-run/tutti/internal/model"
)

// TestAKeptInstanceJoinsAndLeavesNetworksAsItIs: it is not replaced, keeps the addresses that it has, and follows to
// the new revision; so it does to other bounds, and another restart policy; any other change replaces it.
func TestAKeptInstanceJoinsAndLeavesNetworksAsItIs(t *testing.T) {
	inCluster(t, 2, func(c *cluster) {
		for _, id := range []string{"front", "back", "side"} {
			c.put(network(id))
		}
		kept := func(w *model.Workload) { w.Template.KeepEnded = true }
		c.deploy(workload("box", 1, kept, joins("front", "back")))
		c.agents()
		before := c.instances("box")[0]
		if len(before.Addresses) != 2 {
			t.Fatalf("it has the addresses %v", before.Addresses)
		}

		c.deploy(workload("box", 1, kept, joins("back", "side")))
		c.agents()
		list := c.instances("box")
		if len(list) != 1 || list[0].ID != before.ID {
			t.Fatalf("there are %v, want the instance of before", names(list))
		}
		now := list[0]
		w := get[*model.Workload](c, "w-box")
		if now.RevisionID != w.RevisionID || len(now.Addresses) != 2 || now.Addresses[0] != before.Addresses[1] ||
			now.Addresses[1].Network != "side" || now.Addresses[1].IP == "" {
			t.Errorf("it is of revision %s with %v; before it had %v", now.RevisionID, now.Addresses, before.Addresses)
		}
		c.checkAddresses()
		c.wantRest()

		c.deploy(workload("box", 1, kept))
		if now := c.instances("box"); len(now) != 1 || now[0].ID != before.ID || len(now[0].Addresses) != 0 {
			t.Errorf("off all networks there are %v", now)
		}
		bounded := func(w *model.Workload) {
			w.Template.Restart.Condition = model.RestartAlways
			t := &w.Template.Tasks[0]
			t.Limit, t.Reserve.NanoCPUs, t.Tuning = model.Resources{NanoCPUs: 1e8, MemoryBytes: 1 << 27, Pids: 7}, 1e7, &model.Tuning{CPUs: "0", IOWeight: 100, CPUShares: 7, SwapBytes: -1}
		}
		c.deploy(workload("box", 1, kept, bounded))
		if now := c.instances("box"); len(now) != 1 || now[0].ID != before.ID || now[0].RevisionID != get[*model.Workload](c, "w-box").RevisionID {
			t.Errorf("bounded otherwise there are %v", now)
		}
		c.deploy(workload("box", 1, kept, joins("front"), bounded, func(w *model.Workload) { w.Template.Tasks[0].Tuning.NoOOMKill = true }))
		c.agents()
		if now := c.instances("box"); len(now) != 1 || now[0].ID == before.ID {
			t.Errorf("another template has left the instance as it was: %v", now)
		}
	})
}

func TestAServiceIsReplacedForOtherNetworks(t *testing.T) {
	inCluster(t, 2, func(c *cluster) {
		c.put(network("front"))
		c.put(network("back"))
		c.deploy(workload("web", 1, joins("front")))
		c.agents()
		before := c.instances("web")[0]
		c.deploy(workload("web", 1, joins("front", "back")))
		c.agents()
		if now := c.instances("web"); len(now) != 1 || now[0].ID == before.ID {
			t.Errorf("there are %v, want another instance", names(now))
		}
	})
}
