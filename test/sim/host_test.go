package sim_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tutti-run/tutti/internal/agent"
	"github.com/tutti-run/tutti/internal/consensus"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/fake"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/secret"
	"github.com/tutti-run/tutti/internal/server"
	"github.com/tutti-run/tutti/internal/wire"
	"github.com/tutti-run/tutti/test/sim/internal/simdisk"
	"github.com/tutti-run/tutti/test/sim/internal/simraft"
)

// host is a machine of the simulated cluster with what outlives its processes.
type host struct {
	c        *course
	id       string // also its name in the network
	isServer bool
	identity *wire.Identity
	world    *world
	dir      string // the agent's files
	lives    int
	version  int // counts upgrades

	// What follows is guarded by c.mu: a crash may come from within.

	disk      *simdisk.Disk
	founding  *wire.Authority
	known     []wire.ServerAddress
	proc      *process // nil while nothing runs
	skew      time.Duration
	applied   uint64    // the revision whose network state is in force, as its agent says
	disturbed time.Time // when something happened to it last
}

// process is one life of a host's program: the node half, and the server half where it has one.
type process struct {
	*life
	h         *host
	port      *wire.Port
	srv       *server.Server // nil on hosts that are no servers
	agent     *agent.Agent
	transport *simraft.Transport
	cancel    context.CancelFunc
	closePort context.CancelFunc
	done      chan struct{} // closed when nothing of it is left
	err       error         // valid after done
	crash     sync.Once
}

func (h *host) address() string { return h.id + ":7400" }

// keyFile is where a server keeps what opens the cluster's keys.
func (h *host) keyFile() string { return filepath.Join(h.c.dir, "keys", h.id) }

// tasks returns what runs on the host when it is switched on: nothing yet.
func (h *host) tasks() *fake.State {
	return fake.NewState(programs(h.c.dice, func(slot string) func() { return h.c.write(slot, h) }))
}

// write notes that a task of a host works in a slot of which there must be one writer, on whatever
// hosts, those that are cut off included. It returns what notes the end.
func (c *course) write(slot string, h *host) (end func()) {
	c.mu.Lock()
	other := c.writers[slot]
	if other == nil {
		c.writers[slot] = h
	}
	c.mu.Unlock()
	if other != nil {
		c.broken("%s is written by two: on %s and on %s", slot, other.id, h.id)
		return func() {}
	}
	c.count("writers of slots")
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.writers, slot)
	}
}

// start begins a process. It fails as a real one fails, such as for want of room on the disk.
func (h *host) start() error {
	c := h.c
	c.mu.Lock()
	h.lives++
	h.applied, h.disturbed = 0, time.Now()
	disk, founding, known := h.disk, h.founding, h.known
	dir := h.dir
	c.mu.Unlock()

	p := &process{life: &life{}, h: h, done: make(chan struct{})}
	log := c.logger(p)
	underlay := c.net.Up(h.id)
	var err error
	if p.port, err = wire.ListenOn(underlay, h.address(), h.identity, log); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	portCtx, closePort := context.WithCancel(context.Background())
	p.cancel, p.closePort = cancel, closePort
	hand := &hands{life: p.life, w: h.world, secretsPut: func(instance string, files []secret.File) { c.checkSecrets(h, instance, files) }}
	if h.isServer {
		p.transport = c.exchange.Open(h.address())
		var keys *secret.KeyFile
		if keys, err = secret.LoadKeyFile(h.keyFile()); err != nil {
			return err
		}
		p.srv, err = server.New(server.Config{
			Keys:   keys,
			NodeID: h.id, Name: h.id, Address: h.address(), DataDir: dir,
			Founding: founding, Founded: func() error { return h.founded(p) },
			AddressPool: "10.210.0.0/16", NodePool: "10.211.0.0/16", Known: known,
			Port: p.port, Images: serverImages{images: images{hand}}, Log: log, Transport: p.transport,
			Storage: &consensus.Storage{
				Files: disk, Index: disk, Dir: "server", SegmentBytes: (64 + 64*h.version) << 10,
				SnapshotAfter: 150 + 100*uint64(h.version), KeptEntries: 60, SnapshotEvery: time.Second, Pause: disk.Pause,
			},
		})
	}
	var conn *agent.Connection
	if err == nil {
		conn, err = p.newAgent(hand, known)
	}
	if err != nil {
		c.net.Down(h.id, false)
		if p.transport != nil {
			p.transport.Close()
		}
		cancel()
		closePort()
		c.ghosts.Go(func() { _ = p.port.Serve(portCtx) })
		return err
	}
	c.mu.Lock()
	h.proc = p
	c.mu.Unlock()
	go p.run(ctx, portCtx, conn)
	return nil
}

// founded is called once the cluster's state holds its authority.
func (h *host) founded(p *process) error {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	if err := p.check(); err != nil {
		return err
	}
	h.founding = nil
	return nil
}

func (p *process) newAgent(hand *hands, servers []wire.ServerAddress) (*agent.Connection, error) {
	h, c := p.h, p.h.c
	h.world.mu.Lock()
	tasks := h.world.tasks
	h.world.mu.Unlock()
	a, err := agent.New(agent.Deps{
		NodeID: h.id, NodeName: "node-" + h.id, DataDir: h.dir, RunDir: h.dir, CgroupParent: "/tutti",
		Drivers: map[string]driver.Driver{"oci": reach{fake.New(tasks), p.life}},
		Images:  images{hand}, Links: links{hand}, Volumes: volumes{hand}, Secrets: secretFiles{hand},
		Network: []agent.NetworkState{network{hand, c.dice}}, Log: c.logger(p),
	})
	if err != nil {
		return nil, err
	}
	p.agent = a
	a.Handle(p.port, images{hand})
	if p.srv != nil {
		servers = append([]wire.ServerAddress{{ID: h.id, Address: h.address()}}, servers...)
	}
	conn := agent.NewConnection(agent.ConnectionDeps{
		Client: p.port.Client(), Log: c.logger(p), Node: h.node,
		Believe: func(wire.Trust) {}, // the authority is never replaced here
		Remember: func(servers []wire.ServerAddress) {
			c.mu.Lock()
			defer c.mu.Unlock()
			if p.check() == nil {
				h.known = servers
			}
		},
	}, a, servers)
	if p.srv == nil {
		p.port.SetGate(func(peer wire.Peer, _ bool) error { return conn.Knows(peer) })
	}
	return conn, nil
}

// node describes the host to the cluster.
func (h *host) node() *model.Node {
	return &model.Node{
		Meta:   model.Meta{ID: h.id, Name: "node-" + h.id, Labels: map[string]string{"zone": fmt.Sprint(h.id[1] % 2)}},
		Server: h.isServer, Availability: model.Active, WireAddress: h.address(), HostAddress: "192.168.0." + h.id[1:],
		Capacity: model.Resources{NanoCPUs: 4e9, MemoryBytes: nodeMemory},
	}
}

// run is the process's life, in the order of package node.
func (p *process) run(ctx, portCtx context.Context, conn *agent.Connection) {
	defer close(p.done)
	var port errgroup.Group
	port.Go(func() error { return p.port.Serve(portCtx) })
	g, ctx := errgroup.WithContext(ctx)
	if p.srv != nil {
		g.Go(func() error { return p.srv.Run(ctx) })
	}
	g.Go(func() error {
		if p.srv != nil {
			if err := p.srv.Begin(ctx); err != nil {
				return err
			}
		}
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return p.agent.Run(ctx, &session{conn, p}) })
		g.Go(func() error { return conn.Run(ctx) })
		return g.Wait()
	})
	err := g.Wait()
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || fault.Is(err, fault.Unavailable)) {
		err = nil
	}
	if p.srv != nil {
		err = errors.Join(err, p.srv.Shutdown())
	}
	p.closePort()
	p.err = errors.Join(err, port.Wait())
}

// session lets an agent's clock be wrong, as servers see it, and listens in.
type session struct {
	*agent.Connection
	p *process
}

func (s *session) Report(instance string, st model.InstanceStatus) {
	s.p.h.c.mu.Lock()
	skew := s.p.h.skew
	s.p.h.c.mu.Unlock()
	for _, t := range []*time.Time{&st.Started, &st.Finished, &st.ReadySince} {
		if !t.IsZero() {
			*t = t.Add(skew)
		}
	}
	s.Connection.Report(instance, st)
}

func (s *session) Applied(revision uint64) {
	s.Connection.Applied(revision)
	c := s.p.h.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.p.check() == nil {
		s.p.h.applied = max(s.p.h.applied, revision)
	}
}

// kill ends the process at once: with power, the whole host. It may be called from within what
// the process does.
func (p *process) kill(power bool) {
	p.crash.Do(func() {
		h, c := p.h, p.h.c
		c.mu.Lock()
		p.dead.Store(true)
		c.net.Down(h.id, power)
		if p.transport != nil {
			p.transport.Close()
		}
		h.disk = h.disk.Crash(power)
		h.disturbed, h.proc = time.Now(), nil
		// What is left of the process must not write where the next one reads.
		dir := filepath.Join(c.dir, fmt.Sprint(h.id, ".", h.lives))
		err := os.Rename(h.dir, dir)
		h.dir = dir
		c.mu.Unlock()
		if err != nil {
			c.broken("move the agent's files: %v", err)
		}
		if power {
			c.ghosts.Go(h.world.boot(h.tasks()).End)
			h.tear()
		}
		p.cancel()
		c.ghosts.Go(func() { <-p.done }) // it may end as it likes
	})
}

// stop ends the process as an operator does, and waits for it.
func (p *process) stop() error {
	p.cancel()
	<-p.done
	h, c := p.h, p.h.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.dead.Swap(true) {
		return nil // it was killed meanwhile
	}
	c.net.Down(h.id, false)
	if p.transport != nil {
		p.transport.Close()
	}
	h.disk = h.disk.Crash(false)
	h.disturbed, h.proc = time.Now(), nil
	return p.err
}

// tear does to the agent's files what a power cut does to files that were not synced.
func (h *host) tear() {
	err := filepath.WalkDir(h.dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || e.Name() == "epoch" || h.c.dice(6) > 0 { // that is synced
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		switch h.c.dice(3) {
		case 0:
			return os.Remove(path)
		case 1:
			return os.Truncate(path, h.c.dice(info.Size()+1))
		}
		return os.Truncate(path, 0)
	})
	if err != nil {
		h.c.broken("tear the agent's files: %v", err)
	}
}
