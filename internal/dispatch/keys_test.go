package dispatch_test

import (
	"fmt"
	"testing"

	"github.com/tutti-run/tutti/internal/dispatch"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

func (h *hall) key(name string) {
	cs := &store.ChangeSet{}
	cs.PutKey(name, []byte("v"), 0)
	if _, err := h.store.Commit(h.ctx, cs); err != nil {
		h.Error(err)
	}
}

// TestWhatIsChangedAmongKeysIsTold: keys are written all the time, and whatever changes in between reaches the
// nodes, by itself.
func TestWhatIsChangedAmongKeysIsTold(t *testing.T) {
	h := newHall(t)
	g := h.connect("n1", greeting("n1"))
	g.assign()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for k := 0; ; k++ {
			select {
			case <-stop:
				return
			default:
				h.key(fmt.Sprintf("k%d", k%8))
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	for k := range 30 {
		ip := fmt.Sprintf("10.1.1.%d", k+1)
		h.commit(&model.Service{Meta: model.Meta{ID: "s1", Name: "s1"}, Direct: true, Backends: []model.Backend{{Address: ip}}})
		for {
			m, ok := g.next()
			if !ok {
				t.Fatal("the session ended")
			}
			if n := m.Network; n != nil && len(n.Services) == 1 && n.Services[0].Backends[0].Address == ip {
				break
			}
		}
	}
}

// TestKeysHoldUpNoLease: a node's lease waits until its server has followed the leader, though what the leader
// changed was nothing but keys.
func TestKeysHoldUpNoLease(t *testing.T) {
	h := newHall(t)
	g := h.connect("n1", greeting("n1"))
	g.assign()
	for number := uint64(5); number < 10; number++ {
		h.key("k")
		h.servers.mu.Lock()
		h.servers.heard = dispatch.Heard{Revision: h.store.Snapshot().Revision()}
		h.servers.mu.Unlock()
		g.send(wire.AgentMessage{Heartbeat: &wire.Heartbeat{Number: number}})
		for told := false; !told; {
			select {
			case m := <-g.in:
				told = m.Lease != nil && m.Lease.Number == number
			case <-h.ctx.Done():
				t.Fatal("no lease came")
			}
		}
	}
}
