package dispatch

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// DeadAfter is how long a node may be silent before its work is placed elsewhere.
const DeadAfter = 1500 * time.Millisecond

// Beat is a node's sign of life as one server tells the leader of it.
type Beat struct {
	NodeID  string        `json:"nodeID"`
	Session string        `json:"session"`
	Applied uint64        `json:"applied"`
	Age     time.Duration `json:"age"` // since the server heard it
}

// Liveness knows, on the leader, which nodes are alive. It writes Node.Status, and nobody else does.
type Liveness struct {
	store *store.Store
	log   *slog.Logger

	mu    sync.Mutex
	nodes map[string]*life
	wake  chan struct{}
}

type life struct {
	seen    time.Time
	session string
	applied uint64
}

// NewLiveness returns a Liveness that knows no node yet.
func NewLiveness(s *store.Store, log *slog.Logger) *Liveness {
	return &Liveness{store: s, log: log, nodes: map[string]*life{}, wake: make(chan struct{}, 1)}
}

// Hear takes in signs of life.
func (l *Liveness) Hear(beats []Beat) {
	now := time.Now()
	news := false
	l.mu.Lock()
	for _, b := range beats {
		n := l.nodes[b.NodeID]
		if n == nil {
			n = &life{}
			l.nodes[b.NodeID] = n
		}
		seen := now.Add(-b.Age)
		news = news || n.session != b.Session || now.Sub(n.seen) > DeadAfter/2
		if seen.After(n.seen) {
			if n.session != b.Session {
				n.applied = 0 // a restarted agent has to prove anew what is in force
			}
			n.seen, n.session = seen, b.Session
		}
		if b.Session == n.session && b.Applied > n.applied { // not from before a restart
			n.applied, news = b.Applied, true
		}
	}
	l.mu.Unlock()
	if news {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// Applied returns the store revision whose network state the node has in force; 0 is unknown.
func (l *Liveness) Applied(nodeID string) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := l.nodes[nodeID]; n != nil {
		return n.applied
	}
	return 0
}

// Live reports whether the node was heard of in time.
func (l *Liveness) Live(nodeID string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.nodes[nodeID]
	return n != nil && time.Since(n.seen) < DeadAfter
}

// leaderless is for how long, at least, there was no leader to hear of nodes before one is elected:
// servers miss the old one for that long before they elect another.
const leaderless = 500 * time.Millisecond

// Run keeps the nodes' statuses true until ctx, the leadership, is done. A new leader has heard
// nobody yet: every node that was up counts as heard when the leader before was lost.
func (l *Liveness) Run(ctx context.Context) error {
	l.mu.Lock()
	l.nodes = map[string]*life{}
	lost := time.Now().Add(-leaderless)
	for n := range store.List[*model.Node](l.store.Snapshot()) {
		l.nodes[n.ID] = &life{seen: lost, session: n.Status.Session}
		if n.Status.State == model.NodeDown {
			l.nodes[n.ID].seen = time.Time{} // it has to be heard first
		}
	}
	l.mu.Unlock()

	const every = 50 * time.Millisecond
	tick := time.NewTicker(every)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-l.wake:
		}
		now := time.Now()
		if stalled := now.Sub(last) - 3*every; stalled > 0 {
			l.forgive(stalled) // this process slept, or the machine did: that is no one else's silence
		}
		last = now
		if err := l.settle(ctx, now); err != nil && ctx.Err() == nil {
			l.log.Warn("status of nodes could not be written", "error", err)
		}
	}
}

func (l *Liveness) forgive(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range l.nodes {
		n.seen = n.seen.Add(d)
	}
}

// settle writes the status of every node whose state changed.
func (l *Liveness) settle(ctx context.Context, now time.Time) error {
	snap := l.store.Snapshot()
	cs := &store.ChangeSet{}
	for n := range store.List[*model.Node](snap) {
		l.mu.Lock()
		known, ok := l.nodes[n.ID]
		if !ok { // it joined a moment ago
			known = &life{seen: now}
			l.nodes[n.ID] = known
		}
		seen, session := known.seen, known.session
		l.mu.Unlock()
		silent := now.Sub(seen)
		next := n.Status
		switch {
		case session == "":
			continue // has never been heard of
		case silent >= DeadAfter:
			next.State = model.NodeDown
			next.Message = fmt.Sprintf("silent for %s", DeadAfter)
		default:
			next.State, next.Message = model.NodeReady, ""
		}
		next.Session = session
		if next == n.Status {
			continue
		}
		if next.State != n.Status.State {
			next.Since = now
			l.log.Info("node changed state", "node", n.Name, "state", next.State, "silent", silent.Round(time.Millisecond))
		}
		c := n.Clone()
		c.Status = next
		cs.PutStatus(c)
	}
	if cs.Len() == 0 {
		return nil
	}
	_, err := l.store.Commit(ctx, cs)
	return err
}
