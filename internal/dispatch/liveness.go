package dispatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// Beat is a node's sign of life as one server tells the leader of it.
type Beat struct {
	NodeID  string        `json:"nodeID"`
	Session string        `json:"session"`
	Applied uint64        `json:"applied"`
	Age     time.Duration `json:"age"` // since the server heard it
	// Told: the server grants leases as long as the leader says, not of a length of its own.
	Told bool `json:"told,omitempty"`
}

// Heard is the leader's answer to signs of life. Together with the leader's proof that it still
// leads, which must come after, it grants each node that is not refused a lease.
type Heard struct {
	// Revision is that of the leader's state. Before a lease reaches a node, the node must know
	// what is assigned to it as of this revision: it may have been taken from it while it was away.
	Revision uint64 `json:"revision"`
	// Refused are nodes that get no lease: what they run may be about to be given up.
	Refused []string `json:"refused,omitempty"`
	// Lease is how long the leases of the others are; 0: LongestLease.
	Lease time.Duration `json:"lease,omitempty"`
}

// Liveness knows, on the leader, which nodes are alive. It writes Node.Status, and nobody else does.
//
// All times are this process's monotonic clock. It goes on while the process is stopped, and may
// stand still while the whole machine is: both only make the leader wait longer.
type Liveness struct {
	// Reach reports whether anything listens at an address: a host whose process is stopped answers
	// all the same, by its kernel. Nil asks nobody. It is for the time of building.
	Reach func(ctx context.Context, address string) bool
	// Contact returns when the leader before this one was heard of last by this server, zero when that is not known: nobody
	// hears of nodes from then on. Nil is not known either.
	Contact func() time.Time

	store *store.Store
	log   *slog.Logger

	mu     sync.Mutex
	nodes  map[string]*life
	known  int       // nodes in the store
	leads  bool      // Run is at work
	since  time.Time // when it began
	untold time.Time // when a server was heard of last that grants leases of a length of its own
	wake   chan struct{}
	probes chan struct{} // bounds how many nodes are asked at once
}

type life struct {
	seen    time.Time
	until   time.Time     // until when a lease that was granted here may last
	before  time.Duration // how long one may be that the leader before has granted
	capped  time.Duration // how long one may be, since the status was asked to say so; 0: as that says
	session string
	applied uint64

	// What the store says of it.
	known         bool
	name, address string
	status        model.NodeStatus

	asked    time.Time // when its host was asked last
	answered time.Time // when its host answered last
}

// NewLiveness returns a Liveness that knows no node yet.
func NewLiveness(s *store.Store, log *slog.Logger) *Liveness {
	return &Liveness{store: s, log: log, nodes: map[string]*life{}, wake: make(chan struct{}, 1), probes: make(chan struct{}, mostProbes)}
}

const (
	// Between two looks at all nodes are every, when one is about to be taken for dead, and up to calmly.
	every  = 50 * time.Millisecond
	calmly = time.Second
	// stalledFor is how long this process must have stood still for every node to get its full time
	// again; less is added to the time that each node has.
	stalledFor = 500 * time.Millisecond
	// leaderless is for how long, at least, there was no leader to hear of nodes before one is
	// elected: servers miss the old one for that long before they elect another. What counts beyond that is bounded, as
	// nodes have to find the new one first.
	leaderless     = 300 * time.Millisecond
	leaderlessMost = 600 * time.Millisecond
	// restoredPatience is how long the nodes of a restored cluster have until they must be heard of:
	// they look for servers where those were, and what runs on them is to be adopted, not replaced.
	restoredPatience = time.Minute

	// A host is asked shortly before its node would be taken for dead. For as long as it answers,
	// the node's process is taken for stopped or busy, up to a limit.
	probeAhead   = 500 * time.Millisecond
	probeTimeout = 400 * time.Millisecond
	probeEvery   = 500 * time.Millisecond
	mostProbes   = 256
	patience     = 10 * time.Second
)

// Hear takes in signs of life, and says which of them renew a lease.
func (l *Liveness) Hear(beats []Beat) Heard {
	now := time.Now()
	news := false
	before := make([]time.Time, len(beats))
	until := make([]time.Time, len(beats))
	capped := make([]bool, len(beats))
	l.mu.Lock()
	for _, b := range beats {
		if !b.Told {
			l.untold = now
		}
	}
	leads, dead, lease := l.leads, l.pace().Dead, l.lease(now)
	for k, b := range beats {
		n := l.life(b.NodeID)
		seen := now.Add(-b.Age)
		news = news || n.session != b.Session || now.Sub(n.seen) > dead/2
		if seen.After(n.seen) {
			if n.session != b.Session {
				n.applied = 0 // a restarted agent has to prove anew what is in force
			}
			n.seen, n.session = seen, b.Session
		}
		if b.Session == n.session && b.Applied > n.applied { // not from before a restart
			n.applied, news = b.Applied, true
		}
		// Noted before the state is looked at: who finds the node without a lease after this has
		// seen it down after this, and so does the look below.
		before[k], until[k] = n.until, now.Add(lease)
		if until[k].After(n.until) {
			n.until = until[k]
		}
		capped[k] = n.capped > 0 && n.capped < lease
	}
	l.mu.Unlock()
	if news {
		l.lookSoon()
	}
	snap := l.store.Snapshot()
	h := Heard{Revision: snap.Revision(), Lease: lease}
	for k, b := range beats {
		// A leader that has not begun yet may lack what the one before it decided. Nor is a lease longer than the
		// node's status says: the next leader goes by that.
		n, ok := store.Get[*model.Node](snap, b.NodeID)
		shorter := capped[k] || ok && longest(&n.Status) < lease
		if shorter || !ok || !leads || n.Status.State != model.NodeReady {
			h.Refused = append(h.Refused, b.NodeID)
			l.takeBack(b.NodeID, until[k], before[k])
		}
		if shorter {
			l.lookSoon()
		}
	}
	return h
}

// takeBack forgets a lease that was noted, and not granted after all.
func (l *Liveness) takeBack(id string, noted, before time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := l.nodes[id]; n != nil && n.until.Equal(noted) {
		n.until = before
	}
}

// longest is how long a lease is at most that a node with this status is granted.
func longest(st *model.NodeStatus) time.Duration {
	if st.Lease <= 0 || st.State == model.NodeUnknown {
		return LongestLease
	}
	return st.Lease
}

// untoldFor is for how long a server counts that grants leases of a length of its own, after it was heard of: it
// may be about to be upgraded, or lead in between.
const untoldFor = time.Minute

// lease is how long leases are to be; the lock is held.
func (l *Liveness) lease(now time.Time) time.Duration {
	if !l.untold.IsZero() && now.Sub(l.untold) < untoldFor {
		return LongestLease
	}
	return l.pace().Lease
}

// bound is how long leases of a node are to be as its status says; the lock is held. Longer ones are granted once that
// says so, and it says that they are shorter once no longer one can be in force.
func (l *Liveness) bound(n *life, now time.Time) time.Duration {
	want, have := l.lease(now), longest(&n.status)
	if soon := now.Add(want); want < have && (n.until.After(soon) || l.since.Add(n.before).After(soon)) {
		want = have
	}
	if want < have {
		n.capped = want
	}
	if want == LongestLease {
		return 0
	}
	return want
}

// life returns what is known of a node; the lock is held.
func (l *Liveness) life(id string) *life {
	n := l.nodes[id]
	if n == nil {
		n = &life{before: LongestLease}
		l.nodes[id] = n
	}
	return n
}

func (l *Liveness) pace() Pace { return PaceFor(l.known) }

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
	return n != nil && n.session != "" && l.lives(n, time.Now())
}

// lives judges a node; the lock is held.
func (l *Liveness) lives(n *life, now time.Time) bool {
	silent := now.Sub(n.seen)
	if silent < l.pace().Dead {
		return true
	}
	return silent < patience && now.Sub(n.answered) < 2*probeEvery && n.status.State == model.NodeReady
}

// Fence is for how much longer the node may hold a lease: the longest that a lease granted here, or
// by the leader before, can last, and a margin. Once it is zero it stays so until the node's status
// says that the node is back.
func (l *Liveness) Fence(nodeID string) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.leads {
		return LongestLease + fenceMargin
	}
	until := l.since.Add(LongestLease)
	if n := l.nodes[nodeID]; n != nil {
		if until = l.since.Add(n.before); n.until.After(until) {
			until = n.until
		}
	}
	return max(0, time.Until(until.Add(fenceMargin)))
}

// Run keeps the nodes' statuses true until ctx, the leadership, is done. A new leader has heard
// nobody yet: every node that was up counts as heard when the leader before was lost.
func (l *Liveness) Run(ctx context.Context) error {
	snap := l.store.Snapshot()
	l.mu.Lock()
	l.nodes = map[string]*life{}
	now, without := time.Now(), leaderless
	if l.Contact != nil {
		if last := l.Contact(); !last.IsZero() {
			without = min(max(leaderless, now.Sub(last)), leaderlessMost)
		}
	}
	for n := range store.List[*model.Node](snap) {
		known := l.life(n.ID)
		known.before = longest(&n.Status)
		known.seen, known.session = now.Add(-without), n.Status.Session
		if n.Status.State == model.NodeDown {
			known.seen = time.Time{} // it has to be heard first
		}
	}
	l.learn(snap, now)
	l.since, l.leads = now, true
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		l.leads = false
		l.mu.Unlock()
	}()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.follow(ctx, snap.Revision()) })
	g.Go(func() error { return l.judge(ctx, g) })
	return g.Wait()
}

// learn takes over what the store says of the nodes; the lock is held.
func (l *Liveness) learn(snap *store.Snapshot, now time.Time) {
	for _, n := range l.nodes {
		n.known = false
	}
	l.known = 0
	for n := range store.List[*model.Node](snap) {
		l.learnOne(n, now)
	}
}

func (l *Liveness) learnOne(n *model.Node, now time.Time) {
	known := l.life(n.ID)
	if known.seen.IsZero() && n.Status.State != model.NodeDown { // it joined a moment ago
		known.seen = now
	}
	if !known.known {
		l.known++
	}
	known.known, known.name, known.address, known.status = true, n.Name, n.WireAddress, n.Status
}

// follow keeps up with nodes that come, change and go.
func (l *Liveness) follow(ctx context.Context, from uint64) error {
	w := l.store.Watch(from, model.KindNode)
	for {
		b, err := w.Next(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, store.ErrTooOld):
			snap := l.store.Snapshot()
			w = l.store.Watch(snap.Revision(), model.KindNode)
			l.mu.Lock()
			l.learn(snap, time.Now())
			l.mu.Unlock()
			continue
		case err != nil:
			return fmt.Errorf("follow the nodes: %w", err)
		}
		news := false
		l.mu.Lock()
		for _, c := range b.Changes {
			if n, ok := c.New.(*model.Node); ok {
				l.learnOne(n, time.Now())
				news = news || n.Status.State != model.NodeReady // it may have been heard of before it was known
			} else if gone := l.nodes[c.ID]; gone != nil && gone.known {
				gone.known = false // its leases are still counted
				l.known--
			}
		}
		l.mu.Unlock()
		if news {
			l.lookSoon()
		}
	}
}

// lookSoon has all nodes looked at now.
func (l *Liveness) lookSoon() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *Liveness) judge(ctx context.Context, g *errgroup.Group) error {
	due := time.Now().Add(every)
	timer := time.NewTimer(every)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-l.wake:
		}
		now := time.Now()
		if stalled := now.Sub(due) - 2*every; stalled > 0 {
			l.forgive(stalled, now) // this process slept, or the machine did: that is no one else's silence
		}
		due = now.Add(l.rest(now))
		l.ask(ctx, g, now)
		err := l.settle(ctx, now)
		now = time.Now()
		again := now.Add(l.rest(now)) // of nodes that became ready, too
		if err != nil && ctx.Err() == nil {
			l.log.Warn("status of nodes could not be written", "error", err)
			again = now.Add(every)
		}
		if again.Before(due) {
			due = again
		}
		timer.Reset(time.Until(due))
	}
}

// rest is for how long nothing can come to pass but by signs of life: half of it, so that a process that
// was stopped meanwhile finds nobody overdue.
func (l *Liveness) rest(now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	silence := l.pace().Dead - probeAhead
	rest := calmly
	for _, n := range l.nodes {
		if n.known && n.session != "" && n.status.State == model.NodeReady {
			rest = min(rest, (silence-now.Sub(n.seen))/2)
		}
	}
	return max(rest, every)
}

func (l *Liveness) forgive(d time.Duration, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range l.nodes {
		switch {
		case n.status.State == model.NodeDown:
		case d >= stalledFor:
			n.seen = now
		default:
			n.seen = n.seen.Add(d)
		}
	}
}

// ask finds out of nodes that are about to be taken for dead whether their hosts are there.
func (l *Liveness) ask(ctx context.Context, g *errgroup.Group, now time.Time) {
	if l.Reach == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	from := l.pace().Dead - probeAhead
	for _, n := range l.nodes {
		silent := now.Sub(n.seen)
		if !n.known || n.status.State != model.NodeReady || silent < from || silent > patience || now.Sub(n.asked) < probeEvery {
			continue
		}
		select {
		case l.probes <- struct{}{}:
		default:
			return // enough are asked; if they are all gone, nothing is lost
		}
		n.asked = now
		address := n.address
		g.Go(func() error {
			defer func() { <-l.probes }()
			askCtx, cancel := context.WithTimeout(ctx, probeTimeout)
			defer cancel()
			if l.Reach(askCtx, address) {
				l.mu.Lock()
				n.answered = time.Now()
				l.mu.Unlock()
			}
			return nil
		})
	}
}

// settle writes the status of every node whose state changed.
func (l *Liveness) settle(ctx context.Context, now time.Time) error {
	next := map[string]model.NodeStatus{}
	l.mu.Lock()
	dead := l.pace().Dead
	for id, n := range l.nodes {
		if !n.known { // gone
			continue
		}
		st := n.status
		if n.session == "" { // never heard of
			if st.State == model.NodeUnknown && !st.Since.IsZero() && now.Sub(st.Since) >= restoredPatience {
				st.State, st.Message, st.Since = model.NodeDown, "not heard of since the cluster was restored", now
				next[id] = st
			}
			continue
		}
		st.Session, st.State, st.Message = n.session, model.NodeReady, ""
		switch silent := now.Sub(n.seen); {
		case silent < dead:
		case l.lives(n, now):
			st.Message = fmt.Sprintf("silent for %s, though its host answers: its process is stopped or busy", dead)
		default:
			st.State, st.Message = model.NodeDown, fmt.Sprintf("silent for %s", dead)
		}
		if st.State == model.NodeReady { // others are granted none
			st.Lease = l.bound(n, now)
		}
		longer := n.capped > 0 && longest(&st) > n.capped // which has to be said, too, if it is not known what the status says by now
		if st == n.status && !longer {
			continue
		}
		if st.State != n.status.State {
			st.Since = now
			l.log.Info("node changed state", "node", n.name, "state", st.State, "silent", now.Sub(n.seen).Round(time.Millisecond))
		}
		next[id] = st
	}
	l.mu.Unlock()
	if len(next) == 0 {
		return nil
	}
	cs := &store.ChangeSet{}
	snap := l.store.Snapshot()
	for _, id := range slices.Sorted(maps.Keys(next)) {
		if n, ok := store.Get[*model.Node](snap, id); ok {
			c := n.Clone()
			c.Status = next[id]
			cs.PutStatus(c)
		}
	}
	if _, err := l.store.Commit(ctx, cs); err != nil {
		return err
	}
	l.mu.Lock()
	for id, st := range next {
		n := l.life(id)
		n.status = st
		if longest(&st) > n.capped {
			n.capped = 0
		}
	}
	l.mu.Unlock()
	return nil
}
