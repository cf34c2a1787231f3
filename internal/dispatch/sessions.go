package dispatch

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// Servers is what a session needs to know of the cluster's servers.
type Servers interface {
	// Addresses returns all servers of the cluster.
	Addresses() []wire.ServerAddress
	// Tell hands signs of life to the leader. What it returns was said by a leader that has proved,
	// after it heard them, that it led.
	Tell(ctx context.Context, beats []Beat) (Heard, error)
}

// Deps is what Sessions works with.
type Deps struct {
	Store   *store.Store
	Servers Servers
	// Open decrypts a secret.
	Open func(*model.Secret) ([]byte, error)
	// Trust is whom nodes should believe; nil tells them nothing.
	Trust func() wire.Trust
	Log   *slog.Logger
}

// Sessions serves the agents that are connected to this server.
type Sessions struct {
	Deps
	network *network
	reports *reports
	// followed is the revision up to which sessions have been told that they have work.
	followed atomic.Uint64
	// settled is the revision up to which the same is true of the network state.
	settled atomic.Uint64

	mu       sync.Mutex
	sessions map[*session]struct{}
	byNode   map[string]map[*session]struct{}
	beats    map[string]heard
	waiting  map[*session]uint64 // for a word from the leader: the heartbeat's number
	nodes    int                 // in the store
	servers  []wire.ServerAddress

	beatWake  chan struct{} // capacity 1: there are beats
	beatHaste chan struct{} // capacity 1: there is one that others wait for
}

type heard struct {
	Beat
	at time.Time
}

// New returns Sessions that serve once Run runs.
func New(d Deps) *Sessions {
	return &Sessions{
		Deps: d, network: &network{open: d.Open}, reports: newReports(d.Store, d.Log),
		sessions: map[*session]struct{}{}, byNode: map[string]map[*session]struct{}{},
		beats: map[string]heard{}, waiting: map[*session]uint64{}, beatWake: make(chan struct{}, 1), beatHaste: make(chan struct{}, 1),
	}
}

// Timing of what is gathered before it is told.
const (
	coalesce = 3 * time.Millisecond // changes for agents
	haste    = 5 * time.Millisecond // beats that others wait for
	// tellTimeout bounds how long a leader that does not answer holds up signs of life.
	tellTimeout = 500 * time.Millisecond
)

// Run follows the store and tells the sessions, until ctx is done.
func (s *Sessions) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.follow(ctx) })
	g.Go(func() error { return s.tell(ctx) })
	g.Go(func() error { return s.reports.run(ctx) })
	return g.Wait()
}

func (s *Sessions) follow(ctx context.Context) error {
	for {
		snap := s.Store.Snapshot()
		w := s.Store.WatchRevisions(snap.Revision())
		s.network.reset(snap)
		s.count(snap)
		s.mu.Lock()
		for sess := range s.sessions {
			s.mark(sess)
		}
		s.settled.Store(snap.Revision())
		s.followed.Store(snap.Revision())
		s.mu.Unlock()
		if err := s.followFrom(ctx, w); !errors.Is(err, store.ErrTooOld) {
			return err
		}
	}
}

// followFrom returns store.ErrTooOld when everything has to be looked at anew.
func (s *Sessions) followFrom(ctx context.Context, w *store.Watcher) error {
	var calm []store.Change // changes of the network state that are told later, with others
	var since time.Time     // when the first of them came
	for {
		wait := s.calmFor()
		snap, changed, err := gather(ctx, s.Store, w, len(calm) > 0, time.Until(since.Add(wait)))
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, store.ErrTooOld):
			return err
		case err != nil:
			return fmt.Errorf("follow the store: %w", err)
		}
		if len(calm) == 0 {
			since = time.Now()
		}
		told := append(append([]store.Change{}, calm...), changed...)
		if calm = nil; wait > 0 && time.Since(since) < wait && !slices.ContainsFunc(changed, urgent) {
			calm, told = told, nil
		}
		if err := s.see(snap, changed, told); err != nil {
			return err
		}
	}
}

// gather waits for a change, or for a while at most, and returns a snapshot of a little later with
// all changes up to it.
func gather(ctx context.Context, st *store.Store, w *store.Watcher, bounded bool, most time.Duration) (snap *store.Snapshot, changed []store.Change, err error) {
	wait := ctx
	if bounded {
		var cancel context.CancelFunc
		wait, cancel = context.WithTimeout(ctx, most)
		defer cancel()
	}
	b, err := w.Next(wait)
	switch {
	case err == nil:
		changed = append(changed, b.Changes...)
		time.Sleep(coalesce)
	case wait.Err() == nil || ctx.Err() != nil:
		return nil, nil, err
	}
	snap = st.Snapshot()
	for w.Seen() < snap.Revision() { // every revision has its batch: none of a later one is taken
		if b, err = w.Next(ctx); err != nil {
			return nil, nil, err
		}
		changed = append(changed, b.Changes...)
	}
	return snap, changed, nil
}

// calmFor is how long changes that nobody waits for are gathered: every node is told of every other
// one, so that each by itself would be too much when many join a large cluster. Nothing waits for it:
// what is to run on a node that has joined is urgent, and told with it.
func (s *Sessions) calmFor() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nodes <= 100 {
		return 0
	}
	return 2 * PaceFor(s.nodes).Beat
}

// urgent reports whether nodes are to be told of a change at once, as far as the network state is
// concerned: of all but nodes that join, and what is said of them.
func urgent(c store.Change) bool {
	switch c.Kind {
	case model.KindEvent:
		return false
	case model.KindNode:
		old, _ := c.Old.(*model.Node)
		now, _ := c.New.(*model.Node)
		return old != nil && (now == nil || (old.Status.State == model.NodeDown) != (now.Status.State == model.NodeDown))
	}
	return true
}

// see wakes the sessions that changes up to a snapshot concern. Of the network state it takes over
// those that are to be told; none means that they are told later.
func (s *Sessions) see(snap *store.Snapshot, changed, told []store.Change) error {
	differs := false
	if told != nil {
		var err error
		if differs, err = s.network.follow(snap, told); err != nil {
			return err
		}
	}
	nodes := map[string]bool{}    // whose assignments may have changed
	returned := map[string]bool{} // from the dead
	others, drained, counted, trust := false, false, false, false
	for _, c := range changed {
		switch c.Kind {
		case model.KindInstance:
			for _, o := range []model.Object{c.Old, c.New} {
				if i, ok := o.(*model.Instance); ok && i != nil {
					nodes[i.NodeID] = true
					drained = drained || i.Desired == model.DesiredDrain
				}
			}
		case model.KindNode:
			old, _ := c.Old.(*model.Node)
			now, _ := c.New.(*model.Node)
			counted = counted || old == nil || now == nil
			if old != nil && now != nil && old.Status.State == model.NodeDown && now.Status.State == model.NodeReady {
				returned[now.ID] = true
			}
		case model.KindEvent, model.KindApplication:
		default:
			others = true
			if c.Kind == model.KindCluster {
				trust = true
			}
		}
	}
	if counted {
		s.count(snap)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if differs || drained || trust {
		for sess := range s.sessions {
			sess.poke(func(w *work) { w.network, w.told = true, w.told || drained })
		}
	}
	for id := range nodes {
		for sess := range s.byNode[id] {
			s.mark(sess)
		}
	}
	for id := range returned {
		for sess := range s.byNode[id] {
			sess.poke(func(w *work) { w.retell = true })
		}
	}
	if told != nil {
		s.settled.Store(snap.Revision())
	}
	s.followed.Store(snap.Revision())
	for sess := range s.sessions {
		if sess.awaits(others) {
			s.mark(sess)
		}
	}
	return nil
}

// Wake makes the sessions look again at what their nodes should have, though the state is the same:
// secrets can be opened that could not before.
func (s *Sessions) Wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for sess := range s.sessions {
		s.mark(sess)
	}
}

// mark has a session's assignments looked at.
func (s *Sessions) mark(sess *session) { sess.poke(func(w *work) { w.assign, w.network = true, true }) }

func (s *Sessions) count(snap *store.Snapshot) {
	n := 0
	for range store.List[*model.Node](snap) {
		n++
	}
	s.mu.Lock()
	s.nodes = n
	s.mu.Unlock()
}

// pace is that of the cluster; alone says that no other node has its session here.
func (s *Sessions) pace() (p Pace, alone bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return PaceFor(s.nodes), len(s.sessions) <= 1
}

// tell hands heartbeats to the leader, many at a time. Only what has reached the leader is
// confirmed: an agent whose server has lost the leader must look for another one in time.
func (s *Sessions) tell(ctx context.Context) error {
	failing := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.beatWake:
		}
		pace, alone := s.pace()
		if !alone {
			select { // what comes at the same time travels together
			case <-ctx.Done():
				return nil
			case <-s.beatHaste:
				time.Sleep(haste)
			case <-time.After(pace.Beat / 5):
			}
		}
		now := time.Now()
		s.mu.Lock()
		beats := make([]Beat, 0, len(s.beats))
		for _, h := range s.beats {
			h.Age, h.Told = now.Sub(h.at), true
			beats = append(beats, h.Beat)
		}
		clear(s.beats)
		waiting := s.waiting
		s.waiting = make(map[*session]uint64, len(waiting))
		s.mu.Unlock()
		tellCtx, cancel := context.WithTimeout(ctx, tellTimeout)
		said, err := s.Servers.Tell(tellCtx, beats)
		cancel()
		if err != nil && ctx.Err() == nil && !failing {
			s.Log.Warn("leader could not be told of live nodes", "error", err)
		}
		failing = err != nil
		if err != nil {
			continue // the next heartbeats come soon
		}
		s.confirm(said, waiting, pace)
	}
}

func (s *Sessions) confirm(said Heard, waiting map[*session]uint64, pace Pace) {
	refused := make(map[string]bool, len(said.Refused))
	for _, id := range said.Refused {
		refused[id] = true
	}
	servers := s.Servers.Addresses()
	length := cmp.Or(said.Lease, LongestLease)
	s.mu.Lock()
	if len(servers) > 0 && !sameAddresses(s.servers, servers) {
		s.servers = servers
	}
	s.mu.Unlock()
	for sess, number := range waiting {
		lease := &wire.Lease{Number: number, For: length, Every: pace.Beat}
		if refused[sess.nodeID] {
			lease.For = 0
		}
		sess.poke(func(w *work) { w.lease, w.leaseAt = lease, said.Revision })
	}
}

func (s *Sessions) hear(sess *session, number uint64, b Beat) {
	s.mu.Lock()
	s.beats[b.NodeID] = heard{b, time.Now()}
	if !sess.closed {
		s.waiting[sess] = number
	}
	// Instances are drained until every node has followed; and a node that has just come is needed.
	news := number == 0 || b.Applied > sess.applied
	sess.applied = max(sess.applied, b.Applied)
	s.mu.Unlock()
	if news {
		select {
		case s.beatHaste <- struct{}{}:
		default:
		}
	}
	select {
	case s.beatWake <- struct{}{}:
	default:
	}
}

// Serve holds one session; it is the handler of the session path.
func (s *Sessions) Serve(ctx context.Context, stream *wire.Stream) error {
	hello, err := s.greet(ctx, stream)
	if err != nil {
		if ctx.Err() == nil {
			s.Log.Warn("session of a node was refused", "node", wire.PeerOf(ctx).NodeID, "error", err)
		}
		end := &wire.End{Error: err.Error(), Kind: fault.KindOf(err).String()}
		return errors.Join(err, stream.Send(wire.ServerMessage{Refused: end}))
	}
	sess := s.open(stream, hello)
	defer s.close(sess)
	defer context.AfterFunc(ctx, func() { stream.Close() })()
	sess.log.Debug("session opened")
	s.hear(sess, 0, Beat{NodeID: sess.nodeID, Session: hello.Session}) // a greeting is a sign of life
	err = s.read(ctx, stream, sess, hello.Session)
	sess.log.Debug("session closed", "error", err)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (s *Sessions) open(stream *wire.Stream, hello *wire.Hello) *session {
	sess := &session{
		sessions: s, nodeID: hello.Node.ID, stream: stream, log: s.Log.With("node", hello.Node.Name),
		from: s.Store.Snapshot().Revision(), full: true, sent: hello.Instances, revision: hello.Network,
	}
	if sess.sent == nil {
		sess.sent = map[string]string{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions[sess] = struct{}{}
	if s.byNode[sess.nodeID] == nil {
		s.byNode[sess.nodeID] = map[*session]struct{}{}
	}
	s.byNode[sess.nodeID][sess] = struct{}{}
	s.mark(sess)
	return sess
}

// close forgets a session once nothing more is written to it.
func (s *Sessions) close(sess *session) {
	s.mu.Lock()
	sess.closed = true
	delete(s.sessions, sess)
	delete(s.waiting, sess)
	delete(s.byNode[sess.nodeID], sess)
	if len(s.byNode[sess.nodeID]) == 0 {
		delete(s.byNode, sess.nodeID)
	}
	s.mu.Unlock()
	sess.stream.Close()
	sess.end()
}

// greet reads the greeting, registers the node, and makes sure that this server knows at least
// what the agent was told by others.
func (s *Sessions) greet(ctx context.Context, stream *wire.Stream) (*wire.Hello, error) {
	peer := wire.PeerOf(ctx)
	var first wire.AgentMessage
	if err := stream.Receive(&first); err != nil {
		return nil, fmt.Errorf("read greeting: %w", err)
	}
	hello := first.Hello
	if hello == nil || hello.Node == nil {
		return nil, fault.New(fault.Invalid, "a session begins with a greeting")
	}
	if err := s.register(ctx, peer, hello.Node); err != nil {
		return nil, err
	}
	newest := max(hello.Revision, hello.Network)
	if newest <= s.Store.Snapshot().Revision() {
		return hello, nil
	}
	// This server lags behind one that the agent had before. A change that changes nothing shows
	// here only after all that the leader knows; by less, instances would be taken away that this
	// server has not heard of yet.
	if _, err := s.Store.Commit(ctx, &store.ChangeSet{}); err != nil {
		return nil, fmt.Errorf("catch up with what node %s knows: %w", hello.Node.Name, err)
	}
	if now := s.Store.Snapshot().Revision(); newest > now {
		s.Log.Warn("node knows of a later state than the cluster: the state was set back", "node", hello.Node.Name, "nodeRevision", newest, "revision", now)
		hello.Network = 0
	}
	return hello, nil
}

// register writes what the agent says of its host, where it differs from what is known. What
// people set (availability, labels, taints) is theirs. A node that was not admitted, or was
// removed, does not become one by saying so.
func (s *Sessions) register(ctx context.Context, peer wire.Peer, n *model.Node) error {
	if n.ID != peer.NodeID {
		return fault.New(fault.Forbidden, "node %s greets as node %s", peer.NodeID, n.ID)
	}
	for attempt := 1; ; attempt++ {
		err := s.tryRegister(ctx, peer, n)
		if attempt == 5 || !fault.Is(err, fault.Conflict) {
			return err
		}
	}
}

func (s *Sessions) tryRegister(ctx context.Context, peer wire.Peer, n *model.Node) error {
	old, ok := store.Get[*model.Node](s.Store.Snapshot(), n.ID)
	if !ok {
		return fault.New(fault.Forbidden, "node %s is not, or no more, of this cluster: empty its data directory and join again", n.Name)
	}
	c := n.Clone()
	c.Meta = old.Clone().Meta
	c.Name = n.Name
	c.Server = peer.Role == wire.RoleServer // its certificate says so, not the node
	c.Availability, c.Taints, c.Standby, c.Trusted = old.Availability, old.Taints, old.Standby, old.Trusted
	c.OverlayAddress, c.Status = old.OverlayAddress, old.Status
	c.Overcommit, c.Reserved = old.Overcommit, old.Reserved
	keepCounted(c, old)
	a, err := wire.Marshal(c)
	if err != nil {
		return err
	}
	b, err := wire.Marshal(old)
	if err != nil {
		return err
	}
	if bytes.Equal(a, b) {
		return nil
	}
	cs := &store.ChangeSet{}
	cs.Expect(model.KindNode, c.ID, old.Revision) // whoever removes it meanwhile has the last word
	cs.Put(c)
	if _, err := s.Store.Commit(ctx, cs); err != nil {
		return fmt.Errorf("register node %s: %w", n.Name, err)
	}
	return nil
}

// keepCounted adds to the devices that a node counts by itself those that people said it has.
func keepCounted(n, old *model.Node) {
	for kind, count := range old.Capacity.Custom {
		_, own := n.Capacity.Custom[kind]
		if _, was := old.Attributes[model.CDIAttribute+kind]; own || was {
			continue
		}
		if n.Capacity.Custom == nil {
			n.Capacity.Custom = map[string]int64{}
		}
		n.Capacity.Custom[kind] = count
		if names := old.Devices[kind]; len(names) > 0 {
			if n.Devices == nil {
				n.Devices = map[string][]string{}
			}
			n.Devices[kind] = names
		}
	}
}

func (s *Sessions) read(ctx context.Context, stream *wire.Stream, sess *session, id string) error {
	for {
		var m wire.AgentMessage
		if err := stream.Receive(&m); err != nil {
			return err
		}
		switch {
		case m.Heartbeat != nil:
			s.hear(sess, m.Heartbeat.Number, Beat{NodeID: sess.nodeID, Session: id, Applied: m.Heartbeat.Applied})
		case m.Status != nil:
			s.reports.add(sess.nodeID, m.Status)
		case m.Node != nil:
			if err := s.register(ctx, wire.PeerOf(ctx), m.Node); err != nil {
				return err // it greets anew
			}
		case m.Lost:
			sess.log.Warn("node lost track of what it was told; it is told everything anew")
			sess.poke(func(w *work) { w.anew, w.assign, w.network = true, true, true })
		}
	}
}

func sameAddresses(a, b []wire.ServerAddress) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
