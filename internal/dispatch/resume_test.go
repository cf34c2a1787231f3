package dispatch_test

import (
	"slices"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/agent"
	"github.com/tutti-run/tutti/internal/dispatch"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// TestANodeThatMovesIsToldWhatChangedSince, by a server that it has never spoken with.
func TestANodeThatMovesIsToldWhatChangedSince(t *testing.T) {
	h := newHall(t)
	h.workload()
	h.commit(placed("i1", "n1"), placed("i2", "n1"), placed("i3", "n2"))
	c := h.client("n1", wire.RoleAgent)
	one := h.address
	second := h.open() // another server, over the same state
	h.connect("n2", greeting("n2")).assign()
	h.address = one
	g := h.connectAs(c, wire.AgentMessage{Hello: greeting("n1")})
	whole, _ := g.next()
	first := g.assign()
	if whole.Network == nil || whole.Network.Since != 0 || len(first.Put) != 2 {
		t.Fatalf("the first session begins with %+v, %+v", whole, first)
	}
	g.stream.Close()
	hello := greeting("n1")
	hello.Instances, hello.Revision, hello.Network = map[string]string{}, first.Revision, whole.Network.Revision
	for _, as := range first.Put {
		hello.Instances[as.Instance.ID] = as.Key
	}

	h.address = second
	h.commit(placed("i4", "n2"))
	stopped := h.instance("i2").Clone()
	stopped.Desired = model.DesiredStop
	h.commit(stopped)
	g = h.connectAs(c, wire.AgentMessage{Hello: hello})
	var network []string
	for {
		m, ok := g.next()
		if !ok {
			t.Fatal("the session ended")
		}
		if m.Network != nil {
			if m.Network.Since == 0 || m.Network.Since > whole.Network.Revision && len(network) == 0 {
				t.Fatalf("a node that has a state is told %+v", m.Network)
			}
			for _, i := range m.Network.Instances {
				network = append(network, i.ID)
			}
		}
		if m.Assign == nil {
			continue
		}
		if a := m.Assign; !a.Full || !slices.Equal(ids(a.Put), []string{"i2"}) || !slices.Equal(a.Keep, []string{"i1"}) || a.Total != 2 {
			t.Errorf("of its instances it is told %+v", a)
		}
		break
	}
	if slices.Sort(network); !slices.Equal(network, []string{"i2", "i4"}) && !slices.Equal(network, []string{"i4"}) {
		t.Errorf("of the network it is told %v, want what changed", network)
	}
	// It says that it lost track, and is told everything.
	g.send(wire.AgentMessage{Lost: true})
	var again *wire.Network
	for {
		m, ok := g.next()
		if !ok {
			t.Fatal("the session ended")
		}
		if m.Network != nil {
			again = m.Network
		}
		if m.Assign != nil {
			if !m.Assign.Full || len(m.Assign.Put) != 2 || again == nil || again.Since != 0 || len(again.Instances) != 4 {
				t.Errorf("a node that lost track is told %+v, %+v", again, m.Assign)
			}
			break
		}
	}
}

// TestALeaseComesAfterWhatIsWanted: a node that is back must not start what was taken from it.
func TestALeaseComesAfterWhatIsWanted(t *testing.T) {
	h := newHall(t)
	h.workload()
	h.commit(placed("i1", "n1"))
	g := h.connect("n1", greeting("n1"))
	g.assign()
	// The leader is ahead of this server by one change: i1 was given up.
	next := h.store.Snapshot().Revision() + 1
	h.servers.mu.Lock()
	h.servers.heard = dispatch.Heard{Revision: next}
	h.servers.mu.Unlock()
	g.send(wire.AgentMessage{Heartbeat: &wire.Heartbeat{Number: 5}})
	deadline := time.After(100 * time.Millisecond)
	for waiting := true; waiting; {
		select {
		case m := <-g.in:
			if m.Lease != nil && m.Lease.Number >= 5 {
				t.Fatalf("a lease came before what the leader knows: %+v", m.Lease)
			}
		case <-deadline:
			waiting = false
		}
	}
	h.report("i1", model.InstanceStatus{State: model.InstanceLost})
	removed := false
	for {
		m := <-g.in
		if m.Assign != nil && slices.Equal(m.Assign.Remove, []string{"i1"}) {
			removed = true
		}
		if m.Lease != nil && m.Lease.Number == 5 {
			if !removed || m.Lease.For != dispatch.LongestLease {
				t.Errorf("the lease %+v came, what was taken away was told before: %v", m.Lease, removed)
			}
			break
		}
	}
	// A node that the leader refuses is confirmed, and gets none.
	h.servers.mu.Lock()
	h.servers.heard = dispatch.Heard{Refused: []string{"n1"}}
	h.servers.mu.Unlock()
	g.send(wire.AgentMessage{Heartbeat: &wire.Heartbeat{Number: 6}})
	for {
		if m := <-g.in; m.Lease != nil && m.Lease.Number == 6 {
			if m.Lease.For != 0 {
				t.Errorf("a node that is refused gets the lease %+v", m.Lease)
			}
			break
		}
	}
}

// TestASlowNodeHoldsUpNobody: it reads nothing, while much is to be told.
func TestASlowNodeHoldsUpNobody(t *testing.T) {
	h := newHall(t)
	h.workload()
	c := h.client("n1", wire.RoleAgent)
	stream, err := c.Stream(h.ctx, h.address, agent.SessionPath)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if err := stream.Send(wire.AgentMessage{Hello: greeting("n1")}); err != nil {
		t.Fatal(err)
	}
	g := h.connect("n2", greeting("n2"))
	g.assign()
	long := make([]byte, 256<<10)
	for k := range 40 { // some megabytes, more than a stream takes
		n := &model.Network{Meta: model.Meta{ID: "big", Name: "big", Labels: map[string]string{"x": string(long[:k]) + string(long)}}, Status: model.NetworkStatus{Subnet: "10.1.9.0/24"}}
		h.commit(n)
	}
	h.commit(placed("i9", "n2"))
	if got := g.assign(); !slices.Equal(ids(got.Put), []string{"i9"}) {
		t.Errorf("the other is told %v", ids(got.Put))
	}
}
