package writing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tutti-run/tutti/internal/consensus"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// Paths of the servers' ports for this program's own use.
const (
	pathWrite = "/bench/write" // call: writeRequest → wire.Empty
	pathWatch = "/bench/watch" // stream: wire.Empty, then a change's number for each
)

type writeRequest struct {
	Number int  `json:"number"`
	Object bool `json:"object"` // a config instead of a key
}

// server is the half of a Tutti server that keeps state: port, replication and store.
type server struct {
	id    string
	port  *wire.Port
	raft  *consensus.Raft
	store *store.Store
}

func (s *server) address() string { return s.port.Addr().String() }

// cluster is some servers in this process that reach each other through their ports.
type cluster struct {
	servers []*server
	client  *wire.Port // of a node that is no server
	end     context.CancelFunc
	serving errgroup.Group
}

func (c *cluster) size() int { return len(c.servers) }

// startCluster returns once all servers are voters and ready.
func startCluster(ctx context.Context, dir string, servers int) (_ *cluster, err error) {
	authority, err := wire.NewAuthority()
	if err != nil {
		return nil, err
	}
	serveCtx, end := context.WithCancel(context.WithoutCancel(ctx))
	c := &cluster{end: end}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.stop())
		}
	}()
	for i := range servers {
		id := "server-" + strconv.Itoa(i+1)
		s, err := newServer(authority, id, filepath.Join(dir, fmt.Sprintf("tutti-%d", servers), id), i == 0)
		if err != nil {
			return nil, fmt.Errorf("start Tutti's %s: %w", id, err)
		}
		c.servers = append(c.servers, s)
		c.serving.Go(func() error { return s.port.Serve(serveCtx) })
	}
	if c.client, err = listen(authority, "client", wire.RoleAgent); err != nil {
		return nil, err
	}
	c.serving.Go(func() error { return c.client.Serve(serveCtx) })
	return c, c.form(ctx)
}

func listen(a *wire.Authority, id string, role wire.Role) (*wire.Port, error) {
	csr, key, err := wire.NewRequest()
	if err != nil {
		return nil, err
	}
	cert, err := a.Sign(csr, id, role)
	if err != nil {
		return nil, err
	}
	identity := &wire.Identity{NodeID: id, Role: role, CertPEM: cert, KeyPEM: key, CAPEM: a.CertPEM}
	return wire.Listen("127.0.0.1:0", identity, quiet)
}

var quiet = slog.New(slog.DiscardHandler)

func newServer(a *wire.Authority, id, dir string, first bool) (*server, error) {
	port, err := listen(a, id, wire.RoleServer)
	if err != nil {
		return nil, err
	}
	s := &server{id: id, port: port, store: store.New(quiet)}
	s.raft, err = consensus.New(consensus.Config{
		NodeID: id, Address: s.address(), DataDir: dir, Bootstrap: first, Layer: port.RaftLayer(), FSM: s.store,
		Calls: consensus.OverWire(port.Client()), Log: quiet,
	})
	if err != nil {
		return nil, err
	}
	s.store.SetProposer(s.raft)
	s.raft.Handle(port)
	port.Handle(pathWrite, wire.HandleCall(func(ctx context.Context, r writeRequest) (wire.Empty, error) {
		if r.Object {
			return wire.Empty{}, s.writeObject(ctx, r.Number)
		}
		return wire.Empty{}, s.write(ctx, r.Number)
	}), wire.RoleAgent)
	port.Handle(pathWatch, wire.HandleStream(s.watch), wire.RoleAgent)
	return s, nil
}

// form makes all servers voters; the first one leads.
func (c *cluster) form(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	first := c.servers[0]
	if err := first.raft.Sync(ctx); err != nil {
		return err
	}
	for !first.raft.IsLeader() {
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return fmt.Errorf("the first server of Tutti does not come to lead: %w", err)
		}
	}
	for _, s := range c.servers[1:] {
		if err := first.raft.AddServer(ctx, s.id, s.address()); err != nil {
			return err
		}
		if err := s.raft.Sync(ctx); err != nil {
			return err
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// stop ends all servers.
func (c *cluster) stop() error {
	var errs []error
	for _, s := range c.servers {
		errs = append(errs, s.raft.Shutdown())
	}
	c.end()
	return errors.Join(append(errs, c.serving.Wait())...)
}

// value is what every write writes.
var value = make([]byte, valueBytes)

// write puts a key.
func (s *server) write(ctx context.Context, number int) error {
	cs := &store.ChangeSet{}
	cs.PutKey("key-"+strconv.Itoa(number), value, 0)
	_, err := s.store.Commit(ctx, cs)
	return err
}

// writeObject writes one of the cluster's own objects, which all have indexes and watchers.
func (s *server) writeObject(ctx context.Context, number int) error {
	name := "object-" + strconv.Itoa(number)
	cs := &store.ChangeSet{}
	cs.Put(&model.Config{Meta: model.Meta{ID: name, Namespace: model.DefaultNamespace, Name: name}, Data: value})
	_, err := s.store.Commit(ctx, cs)
	return err
}

// write writes in the leader's process.
func (c *cluster) write(ctx context.Context, number int) error {
	return c.atLeader(ctx, func(s *server) error { return s.write(ctx, number) })
}

// writeRemotely asks the leader through its port, a call for each write.
func (c *cluster) writeRemotely(ctx context.Context, number int) error {
	return c.ask(ctx, writeRequest{Number: number})
}

func (c *cluster) writeObjectRemotely(ctx context.Context, number int) error {
	return c.ask(ctx, writeRequest{Number: number, Object: true})
}

func (c *cluster) ask(ctx context.Context, r writeRequest) error {
	return c.atLeader(ctx, func(s *server) error {
		_, err := wire.Call[writeRequest, wire.Empty](ctx, c.client.Client(), s.address(), pathWrite, r)
		return err
	})
}

// writeAtFollower writes in the process of a server that does not lead; what is written there goes
// through the leader's port, as many writes as wait in one call, and is acknowledged once it shows
// in that process.
func (c *cluster) writeAtFollower(ctx context.Context, number int) error {
	for {
		at := c.servers[0]
		if at.raft.IsLeader() && len(c.servers) > 1 {
			at = c.servers[1]
		}
		err := at.write(ctx, number)
		if !fault.Is(err, fault.Unavailable) || pause(ctx, 10*time.Millisecond) != nil {
			return err
		}
	}
}

// atLeader does something at the server that leads, and again when leadership changes meanwhile,
// as it may where the disk stalls; etcd's client does the same.
func (c *cluster) atLeader(ctx context.Context, do func(*server) error) error {
	for {
		err := do(c.leader())
		if !fault.Is(err, fault.Unavailable) {
			return err
		}
		if pause(ctx, 10*time.Millisecond) != nil {
			return err
		}
	}
}

// leader is the server that leads, or the first one while none does.
func (c *cluster) leader() *server {
	for _, s := range c.servers {
		if s.raft.IsLeader() {
			return s
		}
	}
	return c.servers[0]
}
