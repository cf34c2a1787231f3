package holding

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/sync/errgroup"

	"github.com/tutti-run/tutti/internal/agent"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// fleet is the simulated nodes.
type fleet struct {
	nodes []*node
	every atomic.Int64 // between heartbeats, as the servers ask for
	beats atomic.Int64 // confirmed
	lost  atomic.Int64 // sessions that ended by themselves

	mu   sync.Mutex
	down map[string]chan struct{} // by node: closed when another node was told that it is down
}

// node is a simulated host: one session.
type node struct {
	fleet   *fleet
	id      string
	client  *wire.Client
	address string
	tells   bool // it tells of what happens to others

	mu     sync.Mutex
	stream *wire.Stream
	number uint64
	beat   *time.Timer
	last   time.Time // of its heartbeats
	ended  bool
	leased chan struct{} // closed with the first lease
	once   sync.Once
}

// deaf is a network on which nobody listens: simulated nodes only connect.
type deaf struct{ wire.TCP }

func (deaf) Listen(context.Context, string) (net.Listener, error) { return nowhere{}, nil }

type nowhere struct{}

func (nowhere) Accept() (net.Conn, error) { return nil, net.ErrClosed }
func (nowhere) Close() error              { return nil }
func (nowhere) Addr() net.Addr            { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }

// abreast is how many nodes connect at the same time: enough to keep the machine's cores busy, with
// which the servers share them.
const abreast = 16

// openFleet returns once every node holds a lease.
func (c *cluster) openFleet(ctx context.Context, size int) (*fleet, error) {
	f := &fleet{down: map[string]chan struct{}{}}
	f.every.Store(int64(250 * time.Millisecond))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(abreast)
	for k := range size {
		n := &node{fleet: f, id: fmt.Sprintf("node-%05d", k), tells: k >= size-servers, leased: make(chan struct{})}
		f.nodes = append(f.nodes, n)
		g.Go(func() error { return n.open(gctx, c, c.addresses[k%servers]) })
	}
	if err := g.Wait(); err != nil {
		f.close()
		return nil, err
	}
	for _, n := range f.nodes {
		select {
		case <-n.leased:
		case <-time.After(2 * time.Minute):
			f.close()
			return nil, fmt.Errorf("node %s gets no lease", n.id)
		case <-ctx.Done():
			f.close()
			return nil, ctx.Err()
		}
	}
	return f, nil
}

func (n *node) open(ctx context.Context, c *cluster, address string) error {
	var joined *wire.Joined
	err := again(ctx, func() (err error) { joined, err = c.join(ctx, n.id, address, c.agentToken); return err })
	if err != nil {
		return err
	}
	port, err := wire.ListenOn(deaf{}, "", joined.Identity, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	n.client, n.address = port.Client(), address
	return again(ctx, func() error { return n.connect(ctx) })
}

// connect opens a session.
func (n *node) connect(ctx context.Context) error {
	stream, err := n.client.Stream(context.WithoutCancel(ctx), n.address, agent.SessionPath)
	if err != nil {
		return fmt.Errorf("node %s: %w", n.id, err)
	}
	hello := &wire.Hello{Session: n.id, Node: &model.Node{
		Meta: model.Meta{ID: n.id, Name: n.id}, WireAddress: "192.0.2.1:7400", HostAddress: "192.0.2.1",
		Capacity: model.Resources{NanoCPUs: 4e9, MemoryBytes: 8 << 30}, Attributes: map[string]string{"os": "linux", "arch": "amd64"},
	}}
	if err := stream.Send(wire.AgentMessage{Hello: hello}); err != nil {
		stream.Close()
		return fmt.Errorf("node %s: %w", n.id, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ended {
		stream.Close()
		return nil
	}
	n.stream, n.number = stream, 0
	n.beat = time.AfterFunc(time.Duration(n.fleet.every.Load()), n.pulse)
	go n.listen(stream)
	return nil
}

// again tries until it works, as agents do: servers are busy when all come at once.
func again(ctx context.Context, do func() error) error {
	for try := 0; ; try++ {
		err := do()
		if err == nil || try == 20 || pause(ctx, time.Second) != nil {
			return err
		}
	}
}

// pulse sends a heartbeat.
func (n *node) pulse() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ended {
		return
	}
	n.number++
	n.last = time.Now()
	if n.stream.Send(wire.AgentMessage{Heartbeat: &wire.Heartbeat{Number: n.number}}) == nil {
		n.beat.Reset(time.Duration(n.fleet.every.Load()))
	}
}

// heard is wire.ServerMessage as far as simulated nodes look into it.
type heard struct {
	Lease   *wire.Lease     `json:"lease"`
	Network cbor.RawMessage `json:"network"`
}

func (n *node) listen(stream *wire.Stream) {
	for {
		var m heard
		if err := stream.Receive(&m); err != nil {
			n.mu.Lock()
			ended := n.ended
			n.beat.Stop()
			n.mu.Unlock()
			if !ended { // as agents do
				n.fleet.lost.Add(1)
				again(context.Background(), func() error { return n.connect(context.Background()) }) // what never works shows as a node without a lease
			}
			return
		}
		switch {
		case m.Lease != nil:
			if m.Lease.For > 0 {
				n.once.Do(func() { close(n.leased) })
			}
			n.fleet.every.Store(int64(m.Lease.Every))
			n.fleet.beats.Add(1)
		case len(m.Network) > 0 && n.tells:
			var network wire.Network
			if wire.Unmarshal(m.Network, &network) != nil {
				continue // it is held against the servers by what is not noticed
			}
			for _, other := range network.Nodes {
				if other.Down {
					n.fleet.told(other.ID)
				}
			}
		}
	}
}

func (f *fleet) told(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.down[id]; c != nil {
		close(c)
		delete(f.down, id)
	}
}

// silence makes a node give no more signs of life, and returns how long after the last one it was
// noticed.
func (f *fleet) silence(ctx context.Context, k int) (time.Duration, error) {
	n := f.nodes[k]
	noticed := make(chan struct{})
	f.mu.Lock()
	f.down[n.id] = noticed
	f.mu.Unlock()
	n.mu.Lock()
	n.ended = true
	last := n.last
	n.mu.Unlock()
	select {
	case <-noticed:
		return time.Since(last), nil
	case <-time.After(time.Minute):
		return 0, errors.New("the silence of " + n.id + " is not noticed")
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (f *fleet) close() {
	for _, n := range f.nodes {
		n.mu.Lock()
		n.ended = true
		if n.stream != nil {
			n.stream.Close()
		}
		n.mu.Unlock()
	}
}
