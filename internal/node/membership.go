package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"github.com/tutti-run/tutti/internal/api/docker"
	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/server"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// membership is how a host that was started to wait becomes a node, and leaves its cluster again, at
// the wish of who asks at its Docker socket. A host that was not started to wait is one node as long as it runs.
type membership struct {
	cfg   *Config
	door  *door
	ready func()
	asked chan *entering
	// leaving is who waits for the host to have left; nil while nobody does.
	mu      sync.Mutex
	leaving chan error
	leave   context.CancelFunc // ends the node's life
}

// entering is somebody who waits for the host to be a node.
type entering struct {
	docker.Entry
	told chan entered // of room for one
}

type entered struct {
	nodeID string
	err    error
}

func (e *entering) tell(id string, err error) {
	if e == nil {
		return
	}
	select {
	case e.told <- entered{id, err}:
	default: // it was told before
	}
}

// Run is a host's life: it blocks until ctx is done or a part of the node fails. Containers go on
// running when it returns.
func Run(ctx context.Context, cfg Config) (err error) {
	if err := cfg.complete(); err != nil {
		return err
	}
	lock, err := lockData(cfg.DataDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := cfg.checkFormat(); err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.RunDir, 0o711); err != nil {
		return fmt.Errorf("make the run directory: %w", err)
	}
	d, err := openDoor(&cfg)
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	answering, stop := context.WithCancel(context.WithoutCancel(ctx))
	ctx, fail := context.WithCancelCause(ctx)
	go func() {
		err := d.serve(answering)
		fail(err)
		served <- err
	}()
	defer func() {
		stop()
		err = errors.Join(err, <-served)
	}()
	m := &membership{cfg: &cfg, door: d, asked: make(chan *entering), ready: func() {}}
	if cfg.Ready != nil {
		m.ready = sync.OnceFunc(cfg.Ready)
	}
	return m.run(ctx)
}

func (m *membership) run(ctx context.Context) error {
	for {
		c := *m.cfg
		var by *entering
		if m.waits() {
			var err error
			if by, err = m.wait(ctx); err != nil || by == nil {
				return err
			}
			by.change(&c)
		}
		life, end := context.WithCancel(ctx)
		m.mu.Lock()
		m.leave = end
		m.mu.Unlock()
		became, err := m.live(life, &c, by)
		end()
		m.mu.Lock()
		leaving := m.leaving != nil
		m.leave = nil
		m.mu.Unlock()
		switch {
		case ctx.Err() != nil:
			gone := fault.New(fault.Unavailable, "this host's node is being stopped")
			m.left(gone)
			by.tell("", gone)
			return err
		case !leaving && by == nil, !leaving && became:
			return err
		case !leaving && err == nil:
			err = fault.New(fault.Internal, "the node ended before it was ready")
		}
		if leaving && err != nil {
			m.cfg.Log.Warn("the node's end was not a clean one", "error", err)
		}
		if err := m.forget(ctx); err != nil {
			m.cfg.Log.Error("something of the node is left on this host", "error", err)
			if leaving {
				m.left(err)
				return err
			}
		}
		by.tell("", err)
	}
}

// waits reports whether the host is to wait for a cluster: it was told to, is of none, and has no token for one.
func (m *membership) waits() bool {
	_, err := wire.LoadIdentity(m.cfg.identityDir())
	return m.cfg.Waiting && fault.Is(err, fault.NotFound) && m.cfg.JoinToken == ""
}

// wait answers at the host's sockets until somebody asks for the host to be of a cluster; nil when ctx is done.
func (m *membership) wait(ctx context.Context) (*entering, error) {
	api, err := native.Listen(Socket(m.cfg.RunDir))
	if err != nil {
		return nil, err
	}
	self := m.cfg.node("", false)
	phase := m.door.prepare(ctx)
	defer phase.end()
	phase.begin(docker.OfHost(docker.Deps{NodeName: m.cfg.Name, Version: m.cfg.Version, Log: m.cfg.Log, Lifetime: phase.lifetime, Caller: dockerCaller},
		docker.Host{Node: self, Enter: m.enter}))
	serving, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		ended <- native.Serve(serving, api, native.Refuse(fault.New(fault.Unavailable,
			"host %s is of no cluster yet: `docker swarm init` or `docker swarm join` at %s leads to one", m.cfg.Name, DockerSocket(m.cfg.RunDir))))
	}()
	m.cfg.Log.Info("host waits for a cluster", "name", m.cfg.Name, "socket", DockerSocket(m.cfg.RunDir))
	m.left(nil)
	m.ready()
	var by *entering
	select {
	case by = <-m.asked:
	case err = <-ended:
		stop()
		return nil, err
	case <-ctx.Done():
	}
	stop()
	return by, errors.Join(<-ended)
}

// enter has the host become a node and returns when it is ready.
func (m *membership) enter(ctx context.Context, e docker.Entry) (string, error) {
	by := &entering{Entry: e, told: make(chan entered, 1)}
	c := *m.cfg
	by.change(&c)
	if err := c.complete(); err != nil {
		return "", err
	}
	if l, err := net.Listen("tcp", c.wireAddress()); err != nil {
		return "", fault.New(fault.Invalid, "other hosts cannot be answered there: %w", err)
	} else if err := l.Close(); err != nil {
		return "", err
	}
	select {
	case m.asked <- by:
	case <-ctx.Done():
		return "", fault.New(fault.Unavailable, "the host is about to do something else")
	}
	outlast(ctx)
	select {
	case e := <-by.told:
		return e.nodeID, e.err
	case <-ctx.Done():
		// The time of waiting ended, and this request's context with it; whoever asked may be gone as well.
		e := <-by.told
		return e.nodeID, e.err
	}
}

// change makes of the configuration of a host that waits that of the node that is asked for.
func (e *entering) change(c *Config) {
	if e.Address != "" {
		c.Address = e.Address
	}
	if e.Port != 0 {
		c.Port = e.Port
	}
	if e.AddressPool != "" {
		c.AddressPool = e.AddressPool
	}
	if e.Token == "" {
		return
	}
	c.JoinToken, c.JoinAddress = e.Token, e.Server
	if _, _, err := net.SplitHostPort(e.Server); err != nil {
		c.JoinAddress = net.JoinHostPort(e.Server, strconv.Itoa(DefaultPort))
	}
}

// settle does what was asked for of the cluster that was founded.
func (e *entering) settle(ctx context.Context, c *core.Core, name string) error {
	who := core.Local("root", viaDocker)
	if e.Availability != "" && e.Availability != model.Active {
		if err := c.SetAvailability(ctx, who, name, e.Availability); err != nil {
			return err
		}
	}
	if e.Autolock {
		if _, err := c.SetAutolock(ctx, who, true); err != nil {
			return err
		}
	}
	return nil
}

// The Engine's words for managers that are about to leave.
const (
	leavingManager = "You are attempting to leave the swarm on a node that is participating as a manager. "
	leavingLast    = leavingManager + "Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message."
	leavingOne     = leavingManager + "Demote it first (`docker node demote`). Use `--force` to suppress this message."
)

// leaver returns what takes this node out of its cluster: nil where the host was not started to wait.
func (m *membership) leaver(s *server.Server, id string) func(context.Context, bool) error {
	if !m.cfg.Waiting {
		return nil
	}
	return func(ctx context.Context, force bool) error {
		if !force {
			if err := m.mayLeave(s, id); err != nil {
				return err
			}
		}
		if s != nil && len(s.Addresses()) > 1 {
			if err := s.Core().DemoteServer(ctx, core.Local("root", viaDocker), id); err != nil {
				m.cfg.Log.Warn("this server leaves with its vote", "error", err)
			}
		}
		return m.depart(ctx)
	}
}

// mayLeave says what would be lost.
func (m *membership) mayLeave(s *server.Server, id string) error {
	if s != nil {
		n, ok := store.Get[*model.Node](s.Core().Store.Snapshot(), id)
		switch {
		case len(s.Addresses()) == 1:
			return fault.New(fault.Unavailable, "%s", leavingLast)
		case ok && !n.Standby:
			return fault.New(fault.Unavailable, "%s", leavingOne)
		}
	}
	kept, err := os.ReadDir(filepath.Join(m.cfg.DataDir, "volumes"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if len(kept) > 0 {
		return fault.New(fault.Conflict, "this host holds %d volumes of the cluster, which would be gone: remove them, or use --force", len(kept))
	}
	return nil
}

// depart ends the node and returns when nothing of it is left and the host waits again.
func (m *membership) depart(ctx context.Context) error {
	m.mu.Lock()
	if m.leaving != nil || m.leave == nil {
		m.mu.Unlock()
		return fault.New(fault.Conflict, "this host is about to leave already")
	}
	told := make(chan error, 1)
	m.leaving = told
	end := m.leave
	m.mu.Unlock()
	outlast(ctx)
	end()
	return <-told
}

// left tells who waits for the host to have left.
func (m *membership) left(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.leaving != nil {
		m.leaving <- err
		m.leaving = nil
	}
}

// kept is what is this process's own in its data directory, and not the node's.
var kept = []string{"lock", "format", "node.json", "init.json", "init.pid", "tutti.log"}

// forget ends everything that this host ran as a node, and removes all that the node had.
func (m *membership) forget(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	err := teardown(ctx, *m.cfg, true)
	entries, rerr := os.ReadDir(m.cfg.DataDir)
	err = errors.Join(err, rerr)
	for _, e := range entries {
		if !slices.Contains(kept, e.Name()) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(m.cfg.DataDir, e.Name())))
		}
	}
	return err
}
