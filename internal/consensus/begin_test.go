package consensus

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"testing"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/store"
)

func (s *server) config() Config {
	return Config{NodeID: s.id, Address: s.address, DataDir: s.dir, FSM: store.New(slog.New(slog.DiscardHandler)), Log: slog.New(slog.DiscardHandler)}
}

// A state taken from one cluster is what another one begins with; servers that were wiped join it.
func TestAClusterBeginsFromAState(t *testing.T) {
	c := newCluster(t, 3)
	var ids []string
	for i := range 20 {
		ids = append(ids, fmt.Sprint("w", i))
		c.leader().mustWrite(ids[i])
	}
	leader := c.leader()
	index, term := leader.raft.Position()
	var state, raised bytes.Buffer
	if err := leader.store.Snapshot().Write(&state); err != nil {
		t.Fatal(err)
	}
	before := leader.store.Snapshot().Revision()
	for _, s := range c.servers {
		s.kill()
	}
	if _, err := store.RaiseSnapshot(&raised, bytes.NewReader(state.Bytes()), 1000); err != nil {
		t.Fatal(err)
	}
	first := c.servers[1]
	if err := Begin(first.config(), index+1000, term+10, &raised); !fault.Is(err, fault.Conflict) {
		t.Errorf("over the state that is there: %v", err)
	}
	for i, s := range c.servers {
		s.dir, s.first = fmt.Sprint(s.dir, "-new", i), false
	}
	if err := Begin(first.config(), index+1000, term+10, bytes.NewReader(raised.Bytes())); err != nil {
		t.Fatal(err)
	}
	if has, err := HasState(first.config()); err != nil || !has {
		t.Errorf("it has a state: %t, %v", has, err)
	}
	first.start()
	first.mustWrite("anew")
	ids = append(ids, "anew")
	first.wantAll(ids)
	if now := first.store.Snapshot().Revision(); now <= before+1000 {
		t.Errorf("it is at revision %d, want beyond %d", now, before+1000)
	}
	for _, s := range c.servers {
		if s != first {
			s.start()
			if err := first.raft.AddServer(c.ctx, s.id, s.address); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.settle()
	for _, s := range c.servers {
		s.wantAll(ids)
	}
}

// Of three servers two are lost for good: the third goes on alone once it is told to.
func TestRecoverFromALostQuorum(t *testing.T) {
	c := newCluster(t, 3)
	var ids []string
	for i := range 20 {
		ids = append(ids, fmt.Sprint("w", i))
		c.servers[i%3].mustWrite(ids[i])
	}
	c.settle()
	for _, s := range c.servers {
		s.kill()
	}
	last := c.servers[2]
	members, err := Members(last.config())
	if err != nil || len(members) != 3 {
		t.Errorf("it knew of %+v, %v", members, err)
	}
	if err := Recover(last.config()); err != nil {
		t.Fatal(err)
	}
	last.start()
	if err := last.write(context.Background(), "alone"); err != nil {
		t.Fatal(err)
	}
	last.wantAll(append(ids, "alone"))
	if s := last.raft.Servers(); len(s) != 1 || s[0].ID != last.id {
		t.Errorf("it knows of %+v, want itself alone", s)
	}
	// It starts again, and others can join.
	c.restart(last)
	fresh := c.servers[0]
	fresh.dir, fresh.first = fresh.dir+"-new", false
	fresh.start()
	if err := last.raft.Sync(c.ctx); err != nil {
		t.Fatal(err)
	}
	if err := last.raft.AddServer(c.ctx, fresh.id, fresh.address); err != nil {
		t.Fatal(err)
	}
	c.settle()
	fresh.wantAll(append(ids, "alone"))
}
