package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/tutti-run/tutti/internal/agent"
	"github.com/tutti-run/tutti/internal/api/access"
	"github.com/tutti-run/tutti/internal/api/docker"
	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/server"
	"github.com/tutti-run/tutti/internal/wire"
)

// live is a node's life, from finding out who it is; became is whether it came to be ready. by, unless nil,
// waits for that.
func (m *membership) live(ctx context.Context, cfg *Config, by *entering) (became bool, err error) {
	var ready atomic.Bool
	defer func() { became = ready.Load() }()
	id, err := cfg.identify(ctx)
	if err != nil {
		return false, err
	}
	port, err := wire.Listen(cfg.wireAddress(), id.Identity, cfg.Log)
	if err != nil {
		return false, err
	}
	// The port outlives the work: what ends wants to tell others so.
	portCtx, closePort := context.WithCancel(context.WithoutCancel(ctx))
	var ports errgroup.Group
	defer func() {
		closePort()
		err = errors.Join(err, ports.Wait())
	}()

	blobs := &peers{client: port.Client(), self: id.NodeID, servers: func() []wire.ServerAddress { return id.servers }}
	images, err := openImages(cfg, blobs)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, images.Close()) }()

	var s *server.Server
	offered := agent.Blobs(images)
	if id.Role == wire.RoleServer {
		if s, err = newServer(cfg, id, port, images); err != nil {
			return false, err
		}
		defer func() { err = errors.Join(err, s.Shutdown()) }()
		blobs.servers, blobs.outside = s.Addresses, s.Outside()
		images.Records = core.Records{Store: s.Core().Store}
		offered = shelf{Store: images, client: port.Client(), state: s.Core().Store}
	}
	cfg.Ready = func() {
		ready.Store(true)
		m.ready()
		if by == nil {
			return
		}
		go func() { // what is asked of the cluster takes its time, and nobody else is to wait
			var err error
			if s != nil {
				err = by.settle(ctx, s.Core(), id.NodeID)
			}
			by.tell(id.NodeID, err)
		}()
	}
	w, err := newWorker(cfg, id, port, images, offered)
	if err != nil {
		return false, err
	}
	if s == nil {
		blobs.servers = w.connection.Servers
	}
	api, err := native.Listen(Socket(cfg.RunDir))
	if err != nil {
		return false, err
	}
	var visitors *guests
	if s != nil {
		visitors = newGuests(s.Core().Store)
		port.Handle(wire.PathDocker, visitors, wire.RoleAgent)
	}
	ports.Go(func() error { return port.Serve(portCtx) })
	cfg.Log.Info("node starts", "node", id.NodeID, "name", cfg.Name, "role", id.Role, "address", cfg.wireAddress(), "version", cfg.Version)
	doors := doors{guests: visitors, api: api, docker: m.door.prepare(ctx), leave: m.leaver(s, id.NodeID)}
	defer doors.docker.end()
	doors.people, err = listenForPeople(cfg.APIListen, "--api-listen", s, port.ForPeople())
	if err == nil {
		doors.dockerPeople, err = listenForPeople(cfg.DockerListen, "--docker-listen", s, overHTTP1(port.ForPeople()))
	}
	if err == nil {
		doors.marathon, err = listenForMarathon(cfg, s, port)
	}
	if err == nil {
		doors.registry, err = listenForRegistry(cfg, s, port)
	}
	if err != nil {
		return false, errors.Join(err, doors.close())
	}
	return false, work(ctx, s, port.Client(), w, id, doors, images, cfg)
}

// doors are where the APIs are answered: at sockets of this host, and, unless nil, over the network.
type doors struct {
	api, people, dockerPeople net.Listener
	docker                    *phase  // at the host's Docker socket
	guests                    *guests // where agents bring what is asked at theirs; on servers
	// leave takes the node out of its cluster; nil where it cannot.
	leave    func(ctx context.Context, force bool) error
	marathon marathonListeners
	registry registryListener
}

func (d doors) close() (err error) {
	for _, l := range []net.Listener{d.api, d.people, d.dockerPeople, d.marathon.socket, d.marathon.own, d.marathon.people, d.registry.Listener} {
		if l != nil {
			err = errors.Join(err, l.Close())
		}
	}
	return err
}

// listenForPeople opens a network listener of an API, if there is to be one: nil otherwise.
func listenForPeople(address, flag string, s *server.Server, config *tls.Config) (net.Listener, error) {
	switch {
	case address == "":
		return nil, nil
	case s == nil:
		return nil, fault.New(fault.Unsupported, "the API is answered by servers only, and this node is none: leave %s out", flag)
	}
	inner, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for the API on %s: %w", address, err)
	}
	return tls.NewListener(inner, config), nil
}

// listenForBoth opens the listener of an API that a loopback address offers to the host's administrator,
// and any other, by TLS, to people who prove who they are.
func listenForBoth(address string, port *wire.Port) (l net.Listener, people bool, err error) {
	inner, err := net.Listen("tcp", address)
	if err != nil {
		return nil, false, err
	}
	if a, err := netip.ParseAddrPort(inner.Addr().String()); err == nil && a.Addr().Unmap().IsLoopback() {
		return access.Own(inner), false, nil
	}
	return tls.NewListener(inner, port.ForPeople()), true, nil
}

// overHTTP1 keeps clients from HTTP/2, whose connections cannot be taken over for a terminal.
func overHTTP1(c *tls.Config) *tls.Config {
	get := c.GetConfigForClient
	c.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		own, err := get(h)
		if err == nil {
			own.NextProtos = []string{"http/1.1"}
		}
		return own, err
	}
	return c
}

// newServer builds the server half; images is this node's own image store.
func newServer(cfg *Config, id *identity, port *wire.Port, images core.Images) (*server.Server, error) {
	server.BoundHeap()
	return server.New(server.Config{
		NodeID: id.NodeID, Name: cfg.Name, Address: cfg.wireAddress(), DataDir: cfg.DataDir,
		Founding: id.founding, Founded: cfg.founded, AddressPool: cfg.AddressPool, NodePool: cfg.NodePool,
		Known: id.servers, Port: port, Images: images, Log: cfg.Log, DeadServerAfter: cfg.DeadServerAfter, Version: cfg.Version,
		CertificateLife: cfg.CertificateLife,
	})
}

// work runs both halves and the APIs until ctx is done.
func work(ctx context.Context, s *server.Server, client *wire.Client, w *worker, id *identity, at doors, images *image.Store, cfg *Config) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return trimImages(ctx, cfg, images, s) })
	if s != nil {
		w.ready = s.WhenReady(ctx, w.ready)
	}
	noServer := fault.New(fault.Forbidden, "node %s is no server: ask one of the servers", cfg.Name)
	handler := native.Refuse(noServer)
	var dockerHandler http.Handler
	if s == nil {
		dockerHandler = newMessenger(ctx, client, w, id, at, cfg)
	} else {
		dockerAPI := docker.New(docker.Deps{
			Core: s.Core(), NodeName: cfg.Name, NodeID: id.NodeID, Version: cfg.Version, Log: cfg.Log,
			Lifetime: at.docker.lifetime, Caller: dockerCaller, At: atNode, Leave: at.leave,
		})
		dockerHandler = s.Answer(dockerAPI)
		g.Go(func() error { return dockerAPI.Run(ctx) })
		g.Go(func() error { return native.Serve(ctx, at.guests, at.guests.welcome(dockerHandler)) })
		marathonAPI := newMarathon(s, id.NodeID, cfg)
		handler = s.Answer(native.New(native.Deps{
			Core: s.Core(), NodeName: cfg.Name, Version: cfg.Version, Log: cfg.Log,
			Manifests: map[string]core.ReadManifests{"marathon": marathonAPI.Deploy},
		}))
		g.Go(func() error { return s.Run(ctx) })
		at.marathon.serve(ctx, g, s, marathonAPI, cfg)
		at.registry.serve(ctx, g, s, images, cfg)
		g.Go(func() error {
			return (&kubernetes{cfg: cfg, store: s.Core().Store, hesitate: s.Hesitate, log: cfg.Log}).run(ctx)
		})
	}
	g.Go(func() error { return native.Serve(ctx, at.api, handler) })
	at.docker.begin(dockerHandler)
	if at.people != nil {
		directory := core.Directory{Store: s.Core().Store}
		known := []access.Authenticator{access.Tokens{Directory: directory}, access.Certificates{Directory: directory}}
		g.Go(func() error {
			return native.Serve(ctx, at.people, access.Require(native.ViaNetwork, known, native.Refuse, handler))
		})
		cfg.Log.Info("the API listens on the network", "address", at.people.Addr())
	}
	if at.dockerPeople != nil {
		known := []access.Authenticator{access.Certificates{Directory: core.Directory{Store: s.Core().Store}}}
		g.Go(func() error {
			return native.Serve(ctx, at.dockerPeople, access.Require(viaDocker, known, docker.Refuse, dockerHandler))
		})
		cfg.Log.Info("the Docker API listens on the network", "address", at.dockerPeople.Addr())
	}
	g.Go(func() error {
		if s != nil {
			if err := s.Begin(ctx); err != nil {
				return ignoreEnd(ctx, err)
			}
		}
		return w.run(ctx)
	})
	return ignoreEnd(ctx, g.Wait())
}

const viaDocker = "docker"

// dockerCaller is who makes a request of the Docker API, over the network or at the host's socket.
func dockerCaller(ctx context.Context) core.Caller {
	who, ok := access.CallerOf(ctx)
	if !ok {
		who = native.Peer(ctx)
	}
	who.Via = viaDocker
	return who
}

// ignoreEnd drops the error of a context that was ended from outside.
func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || fault.Is(err, fault.Unavailable) || errors.Is(err, http.ErrServerClosed)) {
		return nil
	}
	return err
}
