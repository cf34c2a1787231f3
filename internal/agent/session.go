package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// Timing of a node session. A node is taken for dead after DeadAfter without a heartbeat (see
// package dispatch); the connection to a server that went silent must be given up, and another
// made, well before that.
const (
	heartbeatEvery = 250 * time.Millisecond // to begin with; servers ask for fewer in a large cluster
	reportEvery    = 5 * time.Millisecond
)

// silentAfter is when a server that confirms nothing is given up: nearly three heartbeats.
func silentAfter(every time.Duration) time.Duration { return every * 14 / 5 }

// SessionPath is where servers accept node sessions.
const SessionPath = "/node/session"

// ConnectionDeps is what a Connection works with.
type ConnectionDeps struct {
	Client *wire.Client
	Node   func() *model.Node
	Log    *slog.Logger
	// Remember is called with the cluster's servers whenever they change.
	Remember func([]wire.ServerAddress)
	// Believe is called with whom the node should believe, in each session and whenever it changes.
	Believe func(wire.Trust)
}

// Connection keeps one session open with some server of the cluster, and moves to another when
// that goes away.
type Connection struct {
	ConnectionDeps

	agent   *Agent
	session string

	mu      sync.Mutex
	servers []wire.ServerAddress
	pending map[string]model.InstanceStatus
	applied uint64
	changed bool                     // what Node says, since it was told last
	every   time.Duration            // between heartbeats
	number  uint64                   // of the latest one in this session
	sent    map[uint64]time.Duration // when those were sent that are not confirmed yet, by the clock of leases
	retell  bool                     // every status is to be told again
	lost    bool                     // everything is to be told this agent anew
	wake    chan struct{}
}

// NewConnection returns a connection for the agent, which knows these servers to begin with.
func NewConnection(d ConnectionDeps, a *Agent, servers []wire.ServerAddress) *Connection {
	return &Connection{
		ConnectionDeps: d, agent: a, servers: servers, session: model.NewID(),
		pending: map[string]model.InstanceStatus{}, every: heartbeatEvery, sent: map[uint64]time.Duration{}, wake: make(chan struct{}, 1),
	}
}

// Report queues a status; the latest of an instance counts.
func (c *Connection) Report(instance string, st model.InstanceStatus) {
	c.mu.Lock()
	c.pending[instance] = st
	c.mu.Unlock()
	c.poke()
}

// Forget drops what was queued for an instance that is no more.
func (c *Connection) Forget(instance string) {
	c.mu.Lock()
	delete(c.pending, instance)
	c.mu.Unlock()
}

// Applied says which revision of the network state is in force here.
func (c *Connection) Applied(revision uint64) {
	c.mu.Lock()
	c.applied = max(c.applied, revision)
	c.mu.Unlock()
	c.poke()
}

// NodeChanged makes the cluster be told again what Node says.
func (c *Connection) NodeChanged() {
	c.mu.Lock()
	c.changed = true
	c.mu.Unlock()
	c.poke()
}

func (c *Connection) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Servers returns the servers known, in the order in which they should be tried.
func (c *Connection) Servers() []wire.ServerAddress {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.servers)
}

// Knows is the gate of a node that is no server: it lets in the servers of the cluster, as the cluster
// told last.
func (c *Connection) Knows(peer wire.Peer) error {
	if slices.ContainsFunc(c.Servers(), func(s wire.ServerAddress) bool { return s.ID == peer.NodeID }) {
		return nil
	}
	return fault.New(fault.Forbidden, "node %s is no server of this cluster, as far as this node knows", peer.NodeID)
}

// Run holds a session until ctx is done.
func (c *Connection) Run(ctx context.Context) error {
	select {
	case <-c.agent.Adopted(): // before that, the agent knows neither its instances nor its revision
	case <-ctx.Done():
		return nil
	}
	var lastLogged string
	for attempt := 0; ctx.Err() == nil; attempt++ {
		began := time.Now()
		err := c.once(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && err.Error() != lastLogged {
			c.Log.Warn("session with the cluster ended", "error", err)
			lastLogged = err.Error()
		}
		if time.Since(began) > 5*time.Second {
			attempt = 0
		}
		delay := min(20*time.Millisecond<<min(attempt, 6), time.Second)
		select {
		case <-ctx.Done():
		case <-time.After(delay + rand.N(delay)):
		}
	}
	return nil
}

// once opens a stream to the first server that answers and serves it until it breaks.
func (c *Connection) once(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, address, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer stream.Close()
	defer c.demote(address) // whatever ended this session, others come first next time
	c.mu.Lock()
	applied := c.applied
	c.changed = false
	c.number, c.sent, c.lost = 0, map[uint64]time.Duration{0: c.agent.lease.clock()}, false
	c.mu.Unlock()
	hello := &wire.Hello{Session: c.session, Node: c.Node(), Instances: c.agent.Held(), Network: c.agent.NetworkRevision(), Revision: c.agent.Revision()}
	if err := stream.Send(wire.AgentMessage{Hello: hello}); err != nil {
		return fmt.Errorf("greet server %s: %w", address, err)
	}
	if all := c.agent.Statuses(); len(all) > 0 {
		if err := stream.Send(wire.AgentMessage{Status: &wire.Report{Instances: all}}); err != nil {
			return fmt.Errorf("report to server %s: %w", address, err)
		}
	}
	c.Log.Debug("session opened", "server", address, "applied", applied)

	heard := make(chan struct{}, 1)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer cancel()
		for {
			var m wire.ServerMessage
			if err := stream.Receive(&m); err != nil {
				return fmt.Errorf("read from server %s: %w", address, err)
			}
			select {
			case heard <- struct{}{}:
			default:
			}
			if m.Refused != nil {
				return fmt.Errorf("server %s refuses this node: %s", address, m.Refused.Error)
			}
			c.take(&m)
		}
	})
	g.Go(func() error {
		<-gctx.Done()
		stream.Close() // ends the reader
		return nil
	})
	g.Go(func() error { return c.send(gctx, stream) })
	g.Go(func() error { return c.watchSilence(gctx, heard, address) })
	err = g.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// watchSilence ends a session whose server has not been heard for too long. A stall of this
// very process is not the server's silence: when the timer fires late, it waits once more.
func (c *Connection) watchSilence(ctx context.Context, heard <-chan struct{}, address string) error {
	for {
		began, patience := time.Now(), silentAfter(c.interval())
		t := time.NewTimer(patience)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-heard:
			t.Stop()
		case <-t.C:
			if late := time.Since(began) - patience; late > 100*time.Millisecond {
				continue
			}
			select {
			case <-heard:
				continue
			default:
			}
			return fmt.Errorf("server %s has been silent for %s", address, patience)
		}
	}
}

// dial asks all known servers at once and takes the first that answers.
func (c *Connection) dial(ctx context.Context) (*wire.Stream, string, error) {
	servers := c.Servers()
	if len(servers) == 0 {
		return nil, "", errors.New("no server is known")
	}
	type result struct {
		stream  *wire.Stream
		address string
		err     error
	}
	results := make(chan result, len(servers))
	for i, s := range servers {
		go func() {
			// The one used last comes first; the others get their chance shortly after.
			select {
			case <-time.After(time.Duration(i) * c.interval() / 5):
			case <-ctx.Done():
			}
			stream, err := c.Client.Stream(ctx, s.Address, SessionPath)
			results <- result{stream, s.Address, err}
		}()
	}
	var first error
	for n := range servers {
		var r result
		select {
		case r = <-results:
		case <-ctx.Done():
			return nil, "", ctx.Err()
		case <-time.After(2 * time.Second):
			return nil, "", errors.Join(errors.New("no server answered within 2s"), first)
		}
		if r.err == nil {
			go func() { // the slower ones are not needed
				for range len(servers) - n - 1 {
					if other := <-results; other.err == nil {
						other.stream.Close()
					}
				}
			}()
			c.prefer(r.address)
			return r.stream, r.address, nil
		}
		if first == nil {
			first = r.err
		}
	}
	return nil, "", fmt.Errorf("no server answers: %w", first)
}

// prefer puts a server before all others, demote after them.
func (c *Connection) prefer(address string) { c.rank(address, -1) }
func (c *Connection) demote(address string) { c.rank(address, +1) }

func (c *Connection) rank(address string, place int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	servers := slices.Clone(c.servers)
	slices.SortStableFunc(servers, func(a, b wire.ServerAddress) int {
		switch {
		case a.Address == b.Address:
			return 0
		case a.Address == address:
			return place
		case b.Address == address:
			return -place
		}
		return 0
	})
	c.servers = servers
}

func (c *Connection) take(m *wire.ServerMessage) {
	switch {
	case m.Assign != nil:
		if !c.agent.Assign(m.Assign) {
			c.lose()
		}
	case m.Network != nil:
		if !c.agent.SetNetwork(m.Network) {
			c.lose()
		}
	case m.Trust != nil:
		c.Believe(*m.Trust)
	case m.Lease != nil:
		c.confirmed(m.Lease)
	case m.Retell:
		c.mu.Lock()
		c.retell = true
		c.mu.Unlock()
		c.poke()
	case len(m.Servers) > 0:
		c.mu.Lock()
		known := slices.Equal(sortedAddresses(c.servers), sortedAddresses(m.Servers))
		if !known {
			c.servers = m.Servers
		}
		c.mu.Unlock()
		if !known {
			c.Remember(m.Servers)
		}
	}
}

// lose asks for everything anew.
func (c *Connection) lose() {
	c.mu.Lock()
	c.lost = true
	c.mu.Unlock()
	c.poke()
}

// confirmed takes over a lease: it runs from when the heartbeat was sent that it confirms.
func (c *Connection) confirmed(l *wire.Lease) {
	c.mu.Lock()
	at, ok := c.sent[l.Number]
	for n := range c.sent {
		if n <= l.Number {
			delete(c.sent, n)
		}
	}
	if l.Every > 0 {
		c.every = l.Every
	}
	c.mu.Unlock()
	if l.Network > 0 {
		c.agent.networkUnchanged(l.Network)
	}
	if !ok || l.For <= 0 {
		return
	}
	if err := c.agent.renewed(at + l.For); err != nil {
		c.Log.Error("lease could not be renewed on this node", "error", err)
	}
}

func (c *Connection) interval() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.every
}

func sortedAddresses(list []wire.ServerAddress) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = s.ID + "@" + s.Address
	}
	slices.Sort(out)
	return out
}

// send batches statuses and renews the lease.
func (c *Connection) send(ctx context.Context, stream *wire.Stream) error {
	beat := time.NewTimer(c.interval())
	defer beat.Stop()
	var acknowledged uint64
	for {
		due := false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-beat.C:
			due = true
		case <-c.wake:
			select { // what comes at the same time travels together
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(reportEvery):
			}
		}
		c.mu.Lock()
		batch := c.pending
		c.pending = map[string]model.InstanceStatus{}
		applied, retell, lost, changed := c.applied, c.retell, c.lost, c.changed
		c.retell, c.lost, c.changed = false, false, false
		c.mu.Unlock()
		if changed {
			if err := stream.Send(wire.AgentMessage{Node: c.Node()}); err != nil {
				return fmt.Errorf("tell of this node: %w", err)
			}
		}
		if retell {
			batch = c.agent.Statuses() // the same ones, and all others
		}
		if len(batch) > 0 {
			if err := stream.Send(wire.AgentMessage{Status: &wire.Report{Instances: batch}}); err != nil {
				return fmt.Errorf("report: %w", err)
			}
		}
		if lost {
			if err := stream.Send(wire.AgentMessage{Lost: true}); err != nil {
				return fmt.Errorf("ask for everything anew: %w", err)
			}
		}
		if due || applied != acknowledged {
			beat.Reset(c.interval())
			if err := stream.Send(wire.AgentMessage{Heartbeat: &wire.Heartbeat{Number: c.next(), Applied: applied}}); err != nil {
				return fmt.Errorf("renew lease: %w", err)
			}
			acknowledged = applied
		}
	}
}

// next numbers a heartbeat that is about to be sent.
func (c *Connection) next() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.number++
	if len(c.sent) > mostUnconfirmed {
		clear(c.sent) // so far behind, none of them is worth a lease any more
	}
	c.sent[c.number] = c.agent.lease.clock()
	return c.number
}

// mostUnconfirmed bounds how many heartbeats are remembered for their confirmation.
const mostUnconfirmed = 1000
