package control_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

func stateful(name string, count int, change ...func(w *model.Workload)) *model.Workload {
	return workload(name, count, append([]func(w *model.Workload){kind(model.StatefulWorkload)}, change...)...)
}

func names(list []*model.Instance) (out []string) {
	for _, i := range list {
		out = append(out, i.Name)
	}
	return out
}

func (c *cluster) setFence(id string, d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fences[id] = time.Now().Add(d)
}

// TestASlotIsFilledElsewhereWhenTheLeaseHasEnded, and not before, also where the node is gone from
// the cluster.
func TestASlotIsFilledElsewhereWhenTheLeaseHasEnded(t *testing.T) {
	for _, removed := range []bool{false, true} {
		t.Run(fmt.Sprint("removed=", removed), func(t *testing.T) {
			inCluster(t, 3, func(c *cluster) {
				c.put(network("front"))
				c.deploy(stateful("db", 3, joins("front")))
				c.agents()
				got := c.instances("db")
				if !slices.Equal(names(got), []string{"db-0", "db-1", "db-2"}) {
					t.Fatalf("instances are called %v", names(got))
				}
				second := got[1]
				if !second.Stateful || !second.Leased {
					t.Errorf("an instance without a volume is %+v; want it under a lease", second)
				}
				c.setFence(second.NodeID, 5*time.Second)
				began := time.Now()
				if removed {
					c.commit(func(cs *store.ChangeSet) { cs.Delete(model.KindNode, second.NodeID) })
				} else {
					c.setNode(second.NodeID, func(n *model.Node) { n.Status.State = model.NodeDown })
				}
				for time.Since(began) < 4900*time.Millisecond {
					c.settle()
					if now := get[*model.Instance](c, second.ID); now.Status.State == model.InstanceLost {
						t.Fatalf("it was given up after %s", time.Since(began))
					}
				}
				if now := get[*model.Instance](c, second.ID); !removed && (now.Status.Ready || !strings.Contains(now.Status.Message, "lease")) {
					t.Errorf("while it is waited for, its status is %+v", now.Status)
				}
				if len(c.instances("db")) != 3 {
					t.Errorf("%d instances are there while the lease may be in force", len(c.instances("db")))
				}
				time.Sleep(300 * time.Millisecond)
				c.settle()
				c.agents()
				got = c.instances("db")
				if len(got) != 3 || got[1].ID == second.ID || got[1].NodeID == second.NodeID || got[1].Replaces != second.ID {
					t.Errorf("after the lease, db-1 is %+v", got[1])
				}
				c.wantRest()
			})
		})
	}
}

// TestANodeThatIsBackKeepsItsSlots: between the last look and the loss, the node may have come back
// and got a lease.
func TestANodeThatIsBackKeepsItsSlots(t *testing.T) {
	inCluster(t, 2, func(c *cluster) {
		c.deploy(stateful("db", 2))
		c.agents()
		mine := c.instances("db")[0]
		c.setOutrun(func() bool { // just before the controller's change is applied
			if n := get[*model.Node](c, mine.NodeID); n.Status.State != model.NodeDown {
				return false
			}
			n := get[*model.Node](c, mine.NodeID).Clone()
			n.Status.State = model.NodeReady
			c.commit(func(cs *store.ChangeSet) { cs.PutStatus(n) })
			return true
		})
		c.setNode(mine.NodeID, func(n *model.Node) { n.Status.State = model.NodeDown })
		c.settle()
		c.wantOutrun()
		c.settle()
		if now := get[*model.Instance](c, mine.ID); now.Status.State.Final() || !now.Status.Ready {
			t.Errorf("the instance of a node that is back is %+v", now.Status)
		}
	})
}

// TestSlotsHaveVolumesOfTheirOwn, which stay with their node, and with the data when the workload
// has gone.
func TestSlotsHaveVolumesOfTheirOwn(t *testing.T) {
	inCluster(t, 3, func(c *cluster) {
		c.put(&model.Volume{Meta: model.Meta{ID: "data", Namespace: "default", Application: "shop", Name: "data"}, Driver: "local"})
		c.put(&model.Volume{Meta: model.Meta{ID: "tools", Namespace: "default", Name: "tools"}, Driver: "local", NodeID: "n02"})
		c.deploy(stateful("db", 2, mounts("data")), stateful("in", 1, mounts("tools")))
		c.agents()
		db := c.instances("db")
		own := map[int]*model.Volume{}
		for k, i := range db {
			v := get[*model.Volume](c, i.Volumes["data"])
			if v.Name != fmt.Sprint("data-db-", k) || v.NodeID != i.NodeID || v.Application != "shop" || i.Leased {
				t.Errorf("%s has the volume %+v, leased: %v", i.Name, v, i.Leased)
			}
			own[k] = v
		}
		if in := c.instances("in")[0]; len(in.Volumes) != 0 || in.NodeID != "n02" || in.Leased {
			t.Errorf("an external volume is shared, but the instance is %+v", in)
		}
		// Its node is away: the slot waits, however long.
		home := db[0].NodeID
		c.setNode(home, func(n *model.Node) { n.Status.State = model.NodeDown })
		time.Sleep(time.Hour)
		c.settle()
		if now := get[*model.Instance](c, db[0].ID); now.Status.State.Final() || now.Status.Ready || !strings.Contains(now.Status.Message, "volume lives there") {
			t.Errorf("a slot whose volume is away is %+v", now.Status)
		}
		if n := len(c.instances("db")); n != 2 {
			t.Errorf("%d instances are there", n)
		}
		c.setNode(home, func(n *model.Node) { n.Status.State = model.NodeReady })
		c.setStatus(db[0], model.InstanceStatus{State: model.InstanceRunning, Ready: true, ReadySince: time.Now()}) // as its node tells anew
		c.wantRest()
		if now := c.instances("db"); now[0].ID != db[0].ID || !now[0].Status.Ready {
			t.Errorf("after its node came back, the slot is %+v", now[0])
		}
		// Another workload of the name finds the data.
		c.commit(func(cs *store.ChangeSet) { cs.Delete(model.KindWorkload, "w-db") })
		c.settle()
		c.agents()
		again := stateful("db", 2, mounts("data"))
		again.ID = "w-db2"
		c.deploy(again)
		c.agents()
		for i := range store.InstancesOfWorkload(c.store.Snapshot(), "w-db2") {
			if k := i.Slot - 1; i.Volumes["data"] != own[k].ID || i.NodeID != own[k].NodeID {
				t.Errorf("%s of the second workload has the volume %s on %s, want %s on %s", i.Name, i.Volumes["data"], i.NodeID, own[k].ID, own[k].NodeID)
			}
		}
	})
}

func TestASlotKeepsItsAddressOnItsNode(t *testing.T) {
	inCluster(t, 1, func(c *cluster) {
		c.put(network("front"))
		c.deploy(workload("web", 3, joins("front")), stateful("db", 1, joins("front")))
		c.agents()
		before := c.instances("db")[0]
		c.deploy(stateful("db", 1, joins("front"), reserves(1<<20)))
		for range 5 {
			c.agents()
			time.Sleep(2 * time.Second)
		}
		after := c.instances("db")
		if len(after) != 1 || after[0].ID == before.ID || !slices.Equal(after[0].Addresses, before.Addresses) {
			t.Errorf("the address was %v, and is %+v", before.Addresses, after)
		}
		c.checkAddresses()
	})
}
