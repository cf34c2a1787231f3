package sim_test

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/schedule"
	"github.com/tutti-run/tutti/internal/store"
)

// watch follows every change set of a simulated cluster and knows what must hold after each.
type watch struct {
	c         *cluster
	revision  uint64
	instances map[string]*model.Instance
	types     map[string]model.WorkloadKind // by workload ID
	services  map[string]*model.Service
	networks  map[string]*model.Network
	reserved  map[string]int64 // memory by revision ID
	draining  map[string]drain
	doubled   map[string]time.Time // slot → since when two serve
	down      map[string]time.Time // node → since when the cluster knows that it is down
	led       time.Time            // since when the present leader leads
}

// drain is when an instance left the traffic.
type drain struct {
	revision uint64
	since    time.Time
}

func newWatch(c *cluster) *watch {
	return &watch{
		c: c, instances: map[string]*model.Instance{}, types: map[string]model.WorkloadKind{}, services: map[string]*model.Service{}, networks: map[string]*model.Network{},
		reserved: map[string]int64{}, draining: map[string]drain{}, doubled: map[string]time.Time{}, down: map[string]time.Time{}, led: time.Now(),
	}
}

func (w *watch) newLeader() { w.led = time.Now() }

// see takes in a change set.
func (w *watch) see(b store.Batch) {
	if b.Revision != w.revision+1 {
		w.c.fail("change set %d follows upon %d", b.Revision, w.revision)
	}
	w.revision = b.Revision
	for _, ch := range b.Changes {
		w.keep(ch)
	}
	w.checkNodes()
	w.checkAddresses()
}

func (w *watch) keep(ch store.Change) {
	switch n := ch.New.(type) {
	case *model.Instance:
		w.checkStep(w.instances[n.ID], n)
		w.instances[n.ID] = n
	case *model.Service:
		w.services[n.ID] = n
	case *model.Network:
		w.networks[n.ID] = n
	case *model.Revision:
		w.reserved[n.ID] = schedule.Wanted(&n.Template).MemoryBytes
	case *model.Workload:
		w.types[n.ID] = n.Type
		if old, ok := ch.Old.(*model.Workload); ok && old.Status.Rollout != n.Status.Rollout {
			r := &n.Status.Rollout
			w.c.tell("rollout of %s: %s to %s from %s: %s", n.Name, r.State, short(r.Revision), short(r.From), r.Message)
		}
	case *model.Node:
		if old, ok := ch.Old.(*model.Node); ok && old.Status.State != n.Status.State {
			w.c.tell("%s is %s", n.ID, n.Status.State)
			delete(w.down, n.ID)
			if n.Status.State == model.NodeDown {
				w.down[n.ID] = time.Now()
			}
		}
	case nil:
		delete(w.instances, ch.ID)
		delete(w.services, ch.ID)
		delete(w.networks, ch.ID)
		delete(w.draining, ch.ID)
	}
}

func short(id string) string { return id[max(0, len(id)-4):] }

// checkStep holds the change of one instance against its life: it never changes node, ends once,
// and is not stopped while a live balancer may still send it connections.
func (w *watch) checkStep(old, n *model.Instance) {
	if old == nil {
		w.c.tell("%s %s of %s is created in place of %s", n.Name, model.ShortID(n.ID), short(n.RevisionID), model.ShortID(n.Replaces))
		return
	}
	if old.NodeID != n.NodeID || old.Desired != n.Desired || old.Status.State != n.Status.State || old.Status.Ready != n.Status.Ready {
		w.c.tell("%s %s is to %s on %q: %s %s ready=%v", n.Name, model.ShortID(n.ID), n.Desired, n.NodeID, n.Status.State, n.Status.Health, n.Status.Ready)
	}
	switch {
	case old.NodeID != "" && old.NodeID != n.NodeID:
		w.c.fail("%s moves from %s to %q", n.Name, old.NodeID, n.NodeID)
	case old.Status.State.Final() && old.Status.State != n.Status.State:
		w.c.fail("%s was %s and is %s", n.Name, old.Status.State, n.Status.State)
	case old.RevisionID != n.RevisionID || old.Slot != n.Slot || old.WorkloadID != n.WorkloadID:
		w.c.fail("%s becomes another", n.Name)
	case old.Desired != model.DesiredRun && n.Desired == model.DesiredRun:
		w.c.fail("%s was to %s and is to run again", n.Name, old.Desired)
	}
	switch {
	case old.Desired == model.DesiredRun && n.Desired == model.DesiredDrain:
		w.draining[n.ID] = drain{w.revision, time.Now()}
	case old.Desired == model.DesiredRun && n.Desired == model.DesiredStop && old.Status.Ready && !old.Status.State.Final():
		// Its status may have changed between the leader's look and its change; then the
		// leader did not know that it served, which it cannot have done for long.
		if time.Since(old.Status.ReadySince) > time.Second && w.types[n.WorkloadID] != model.JobWorkload {
			w.c.fail("%s serves, and is stopped without being drained (%s)", n.Name, n.Cause)
		}
	case old.Desired == model.DesiredDrain && n.Desired == model.DesiredStop:
		d := w.draining[n.ID]
		for _, node := range w.c.nodes {
			live := node.up && node.connected && time.Since(node.lastBeat) < 400*time.Millisecond
			live = live && time.Since(node.began) > 50*time.Millisecond             // or else the leader may not know yet that it is there
			live = live && (node.lastBeat.After(w.led) || w.down[node.id].IsZero()) // one that was down has to be heard by this leader
			if live && node.applied < d.revision && time.Since(d.since) < 9*time.Second {
				w.c.fail("%s is stopped after %s, while %s has %d in force and would send connections until %d",
					n.Name, time.Since(d.since), node.id, node.applied, d.revision)
			}
		}
	}
}

// checkNodes makes sure that no node has more than it can hold, and no port twice.
func (w *watch) checkNodes() {
	memory, ports := map[string]int64{}, map[string]string{}
	for _, i := range w.instances {
		if i.NodeID == "" || i.Status.State.Final() {
			continue
		}
		memory[i.NodeID] += w.reserved[i.RevisionID]
		for _, p := range i.HostPorts {
			key := fmt.Sprint(i.NodeID, " ", p.Protocol, "/", p.Published)
			if other := ports[key]; other != "" {
				w.c.fail("%s is held by %s and by %s", key, other, i.ID)
			}
			ports[key] = i.ID
		}
	}
	for node, used := range memory {
		if used > nodeMemory {
			w.c.fail("%s bytes are reserved on %s, which has %d", fmt.Sprint(used), node, nodeMemory)
		}
	}
}

// checkAddresses makes sure that no address belongs to two, and that blocks do not overlap.
func (w *watch) checkAddresses() {
	owner := map[model.Address]string{}
	note := func(who string, list []model.Address) {
		for _, a := range list {
			if other := owner[a]; other != "" {
				w.c.fail("%s belongs to %s and to %s", a.IP, other, who)
			}
			owner[a] = who
		}
	}
	for _, i := range w.instances {
		if !i.Status.State.Final() {
			note(i.ID, i.Addresses)
		}
	}
	for _, s := range w.services {
		note("service "+s.Name, s.Status.VirtualIPs)
	}
	for _, n := range w.networks {
		held := map[string]bool{}
		for _, b := range n.Status.Blocks {
			if held[b.CIDR] {
				w.c.fail("block %s of network %s is held twice", b.CIDR, n.Name)
			}
			held[b.CIDR] = true
		}
	}
}

// overTime checks what the leader is to put right, and may take a moment for: that two serve in
// one slot, and that something runs on a node that is down.
func (w *watch) overTime() {
	const patience = time.Second
	if time.Since(w.led) < patience || w.c.quorum.since() < patience {
		return
	}
	for _, i := range w.instances {
		if since, ok := w.down[i.NodeID]; ok && !i.Status.State.Final() && time.Since(since) > patience {
			w.c.fail("%s is still %s, though %s has been down for %s", i.Name, i.Status.State, i.NodeID, time.Since(since))
		}
	}
	type slot struct {
		workload, node string
		number         int
	}
	serving := map[slot]int{}
	for _, i := range w.instances {
		if i.Serving() {
			s := slot{workload: i.WorkloadID, number: i.Slot}
			if w.types[i.WorkloadID] == model.GlobalWorkload {
				s.node = i.NodeID
			}
			serving[s]++
		}
	}
	twice := map[string]int{}
	for s, n := range serving {
		if n > 1 {
			twice[fmt.Sprint(s)] = n
		}
	}
	maps.DeleteFunc(w.doubled, func(slot string, _ time.Time) bool { return twice[slot] == 0 })
	for _, slot := range slices.Sorted(maps.Keys(twice)) {
		since, ok := w.doubled[slot]
		if !ok {
			w.doubled[slot] = time.Now()
			continue
		}
		if time.Since(since) > patience {
			w.c.fail("%d instances have served in slot %s for %s", twice[slot], slot, time.Since(since))
		}
	}
}
