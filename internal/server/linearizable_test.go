package server

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tutti-run/tutti/internal/consensus"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/store"
)

// slowAnswers is the way from a server whose answers come late: what others answered while it was
// stopped, it hears when it goes on.
type slowAnswers struct {
	*raft.InmemTransport
	mu      sync.Mutex
	stopped chan struct{} // closed when the server goes on; nil before it is stopped
}

func (s *slowAnswers) AppendEntries(id raft.ServerID, to raft.ServerAddress, q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) error {
	s.whenItGoesOn()
	err := s.InmemTransport.AppendEntries(id, to, q, a)
	s.whenItGoesOn()
	return err
}

func (s *slowAnswers) whenItGoesOn() {
	s.mu.Lock()
	stopped := s.stopped
	s.mu.Unlock()
	if stopped != nil {
		<-stopped
	}
}

func (s *slowAnswers) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}

func (s *slowAnswers) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = make(chan struct{})
}

func (s *slowAnswers) goOn() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped != nil {
		close(s.stopped)
		s.stopped = nil
	}
}

// TestAnswersOnTheirWayDoNotCount stops a leader, lets the others elect another and acknowledge a write,
// and asks the first one for a linearizable read: it finds answers in its buffers that it was given
// when it led, and must not take them for a confirmation. (Raft's own, VerifyLeader, does.)
func TestAnswersOnTheirWayDoNotCount(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	names := []string{"a", "b", "c"}
	servers := map[string]*consensus.Raft{}
	stores := map[string]*store.Store{}
	transports := map[string]*raft.InmemTransport{}
	for _, n := range names {
		_, transports[n] = raft.NewInmemTransport(raft.ServerAddress(n))
	}
	for _, n := range names {
		for _, other := range names {
			transports[n].Connect(raft.ServerAddress(other), transports[other])
		}
	}
	first := &slowAnswers{InmemTransport: transports["a"]}
	confirmation := &confirmer{
		term:   func() (uint64, bool) { return servers["a"].Term(), servers["a"].IsLeader() },
		voters: func() []string { return []string{"b", "c"} },
		ask: func(_ context.Context, n string) (uint64, error) {
			first.goOn() // the answers of before come in first
			return servers[n].Term(), nil
		},
	}
	for k, n := range names {
		stores[n] = store.New(slog.New(slog.DiscardHandler))
		cfg := consensus.Config{
			NodeID: n, Address: n, DataDir: filepath.Join(t.TempDir(), n), Bootstrap: k == 0, FSM: stores[n], Transport: transports[n],
			Log: slog.New(slog.DiscardHandler),
		}
		if k == 0 { // it does not notice by itself
			cfg.Transport, cfg.HeartbeatTimeout, cfg.ElectionTimeout, cfg.LeaseTimeout = first, time.Minute, time.Minute, 50*time.Second
			cfg.Confirm = confirmation.confirm
		}
		r, err := consensus.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		servers[n] = r
		stores[n].SetProposer(r)
		t.Cleanup(func() {
			first.goOn()
			if err := r.Shutdown(); err != nil {
				t.Error(err)
			}
		})
		if k == 0 {
			if _, err := stores[n].Commit(ctx, put("before")); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := servers["a"].AddServer(ctx, n, n); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := servers["a"].ReadIndexHere(ctx); err != nil {
		t.Fatalf("a leader that nothing has happened to: %v", err)
	}
	for k := 0; k < len(names); { // all have joined
		if servers[names[k]].Applied() == servers["a"].Applied() {
			k++
		} else if time.Sleep(5 * time.Millisecond); ctx.Err() != nil {
			t.Fatal("the others do not follow")
		}
	}
	first.stop()
	for _, n := range names[1:] {
		transports[n].Disconnect("a")
	}
	written := ""
	for written == "" {
		for _, n := range names[1:] {
			if servers[n].IsLeader() {
				if _, err := stores[n].Commit(ctx, put("after")); err == nil {
					written = n
				}
			}
		}
		if ctx.Err() != nil {
			t.Fatal("no other server came to lead")
		}
		time.Sleep(5 * time.Millisecond)
	}
	if !servers["a"].IsLeader() {
		t.Fatal("the first leader has noticed already: this test shows nothing")
	}
	index, err := servers["a"].ReadIndexHere(ctx)
	if !fault.Is(err, fault.Unavailable) {
		t.Errorf("a leader that was replaced lets reads be answered as of index %d (%v); %s has acknowledged one at %d", index, err, written, servers[written].Applied())
	}
}

func put(key string) *store.ChangeSet {
	cs := &store.ChangeSet{}
	cs.PutKey(key, []byte("x"), 0)
	return cs
}
