package dispatch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"
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
	// Tell hands signs of life to the leader.
	Tell(ctx context.Context, beats []Beat) error
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

	mu       sync.Mutex
	sessions map[*session]struct{}
	beats    map[string]heard
	waiting  map[*session]struct{} // for a word that the leader knows of their heartbeat
	network  *networkView          // the newest, nil before the first

	beatWake chan struct{}
}

type heard struct {
	Beat
	at time.Time
}

// New returns Sessions that serve once Run runs.
func New(d Deps) *Sessions {
	return &Sessions{
		Deps: d, sessions: map[*session]struct{}{}, beats: map[string]heard{}, waiting: map[*session]struct{}{},
		beatWake: make(chan struct{}, 1),
	}
}

// session is one connected agent.
type session struct {
	nodeID string
	wake   chan struct{} // capacity 1: the store has news
	lease  chan struct{} // capacity 1: the leader has heard of the node
	log    *slog.Logger
	failed map[string]string // why instances cannot be assigned, as it was logged
}

// networkView is the network state, encoded once for all sessions.
type networkView struct {
	revision uint64
	content  []byte          // without the revision, to compare
	message  cbor.RawMessage // wire.ServerMessage
	serial   uint64          // counts different contents
}

// coalesce is how long changes are collected before agents are told.
const coalesce = 3 * time.Millisecond

// Run follows the store and tells the sessions, until ctx is done.
func (s *Sessions) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.follow(ctx) })
	g.Go(func() error { return s.tell(ctx) })
	return g.Wait()
}

func (s *Sessions) follow(ctx context.Context) error {
	for {
		snap := s.Store.Snapshot()
		if err := s.refresh(snap); err != nil {
			return err
		}
		w := s.Store.Watch(snap.Revision())
		for {
			if _, err := w.Next(ctx); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				if errors.Is(err, store.ErrTooOld) {
					break // start over from a snapshot
				}
				return fmt.Errorf("follow the store: %w", err)
			}
			time.Sleep(coalesce)
			snap := s.Store.Snapshot()
			if err := s.refresh(snap); err != nil {
				return err
			}
			w = s.Store.Watch(snap.Revision())
		}
	}
}

// Wake makes the sessions look again at what their nodes should have, though the state is the same:
// secrets can be opened that could not before.
func (s *Sessions) Wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for sess := range s.sessions {
		select {
		case sess.wake <- struct{}{}:
		default:
		}
	}
}

// refresh computes the network state anew and wakes the sessions.
func (s *Sessions) refresh(snap *store.Snapshot) error {
	n := networkOf(snap)
	content, err := wire.Marshal(n)
	if err != nil {
		return fmt.Errorf("encode network state: %w", err)
	}
	v := &networkView{revision: snap.Revision(), content: content}
	s.mu.Lock()
	old := s.network
	s.mu.Unlock()
	if old != nil && bytes.Equal(old.content, content) {
		v.serial, v.content, v.message = old.serial, old.content, old.message
	} else {
		n.Revision = snap.Revision()
		if v.message, err = wire.Marshal(wire.ServerMessage{Network: n}); err != nil {
			return fmt.Errorf("encode network state: %w", err)
		}
		if old != nil {
			v.serial = old.serial
		}
		v.serial++
	}
	s.mu.Lock()
	s.network = v
	s.mu.Unlock()
	s.Wake()
	return nil
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
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(10 * time.Millisecond):
		}
		now := time.Now()
		s.mu.Lock()
		beats := make([]Beat, 0, len(s.beats))
		for _, h := range s.beats {
			h.Age = now.Sub(h.at)
			beats = append(beats, h.Beat)
		}
		clear(s.beats)
		waiting := s.waiting
		s.waiting = map[*session]struct{}{}
		s.mu.Unlock()
		tellCtx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		err := s.Servers.Tell(tellCtx, beats)
		cancel()
		if err != nil && ctx.Err() == nil && !failing {
			s.Log.Warn("leader could not be told of live nodes", "error", err)
		}
		failing = err != nil
		if err != nil {
			continue // the next heartbeats come soon
		}
		for sess := range waiting {
			select {
			case sess.lease <- struct{}{}:
			default:
			}
		}
	}
}

func (s *Sessions) hear(sess *session, b Beat) {
	s.mu.Lock()
	s.beats[b.NodeID] = heard{b, time.Now()}
	s.waiting[sess] = struct{}{}
	s.mu.Unlock()
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
	sess := &session{
		nodeID: hello.Node.ID, wake: make(chan struct{}, 1), lease: make(chan struct{}, 1),
		log: s.Log.With("node", hello.Node.Name), failed: map[string]string{},
	}
	sess.wake <- struct{}{}
	s.mu.Lock()
	s.sessions[sess] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.sessions, sess)
		delete(s.waiting, sess)
		s.mu.Unlock()
	}()
	sess.log.Debug("session opened")
	s.hear(sess, Beat{NodeID: sess.nodeID, Session: hello.Session}) // a greeting is a sign of life

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	reports := newReports(s.Store, sess)
	g.Go(func() error { defer cancel(); return s.read(ctx, stream, sess, hello.Session, reports) })
	g.Go(func() error { return s.write(ctx, stream, sess) })
	g.Go(func() error { return reports.run(ctx) })
	g.Go(func() error { <-ctx.Done(); stream.Close(); return nil })
	err = g.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	sess.log.Debug("session closed", "error", err)
	return err
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
	if hello.Revision <= s.Store.Snapshot().Revision() {
		return hello, nil
	}
	// This server lags behind one that the agent had before. A change that changes nothing shows
	// here only after all that the leader knows; by less, instances would be taken away that this
	// server has not heard of yet.
	if _, err := s.Store.Commit(ctx, &store.ChangeSet{}); err != nil {
		return nil, fmt.Errorf("catch up with what node %s knows: %w", hello.Node.Name, err)
	}
	if now := s.Store.Snapshot().Revision(); hello.Revision > now {
		s.Log.Warn("node knows of a later state than the cluster: the state was set back", "node", hello.Node.Name, "nodeRevision", hello.Revision, "revision", now)
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
	c.Availability, c.Taints, c.Standby = old.Availability, old.Taints, old.Standby
	c.OverlayAddress, c.Status = old.OverlayAddress, old.Status
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

func (s *Sessions) read(ctx context.Context, stream *wire.Stream, sess *session, id string, reports *reports) error {
	for {
		var m wire.AgentMessage
		if err := stream.Receive(&m); err != nil {
			return err
		}
		switch {
		case m.Heartbeat != nil:
			s.hear(sess, Beat{NodeID: sess.nodeID, Session: id, Applied: m.Heartbeat.Applied})
		case m.Status != nil:
			reports.add(m.Status)
		case m.Node != nil:
			if err := s.register(ctx, wire.PeerOf(ctx), m.Node); err != nil {
				return err // it greets anew
			}
		}
	}
}

// write sends what is new to the agent.
func (s *Sessions) write(ctx context.Context, stream *wire.Stream, sess *session) error {
	sent := map[string]string{} // instance → what the agent was told of it
	full := true
	var serial, revision uint64
	var servers []wire.ServerAddress
	var trust wire.Trust
	from := s.Store.Snapshot().Revision() // nothing older is told, however busy this server is
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-sess.lease:
			if err := stream.Send(wire.ServerMessage{Lease: &wire.Lease{For: DeadAfter}}); err != nil {
				return err
			}
			if now := s.Servers.Addresses(); len(now) > 0 && !sameAddresses(servers, now) {
				servers = now
				if err := stream.Send(wire.ServerMessage{Servers: now}); err != nil {
					return err
				}
			}
			continue
		case <-sess.wake:
		}
		s.mu.Lock()
		v := s.network
		s.mu.Unlock()
		if v == nil || v.revision < from {
			continue // woken again as soon as it is there
		}
		if s.Trust != nil {
			if now := s.Trust(); !bytes.Equal(now.CA, trust.CA) || !bytes.Equal(now.Cross, trust.Cross) {
				trust = now
				if err := stream.Send(wire.ServerMessage{Trust: &now}); err != nil {
					return err
				}
			}
		}
		// The network comes first, so that an instance finds the way to its peers when it starts.
		if v.serial != serial {
			if err := stream.Send(v.message); err != nil {
				return err
			}
			serial, revision = v.serial, 0
		}
		if v.revision != revision {
			if err := stream.Send(wire.ServerMessage{Network: &wire.Network{Revision: v.revision, Unchanged: true}}); err != nil {
				return err
			}
			revision = v.revision
		}
		assign, err := s.assignments(s.Store.Snapshot(), sess, sent)
		if err != nil {
			return err
		}
		assign.Full = full
		if full || len(assign.Put) > 0 || len(assign.Remove) > 0 {
			if err := stream.Send(wire.ServerMessage{Assign: assign}); err != nil {
				return err
			}
			full = false
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
