package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"

	"golang.org/x/sync/errgroup"

	"github.com/tutti-run/tutti/internal/api/access"
	"github.com/tutti-run/tutti/internal/api/docker"
	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/server"
	"github.com/tutti-run/tutti/internal/wire"
)

// Run is a node's life: it blocks until ctx is done or a part of the node fails. Containers go on
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
	id, err := cfg.identify(ctx)
	if err != nil {
		return err
	}
	port, err := wire.Listen(cfg.wireAddress(), id.Identity, cfg.Log)
	if err != nil {
		return err
	}
	// The port outlives the work: what ends wants to tell others so.
	portCtx, closePort := context.WithCancel(context.WithoutCancel(ctx))
	var ports errgroup.Group
	defer func() {
		closePort()
		err = errors.Join(err, ports.Wait())
	}()

	blobs := &peers{client: port.Client(), self: id.NodeID, servers: func() []wire.ServerAddress { return id.servers }}
	images, err := openImages(&cfg, blobs)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, images.Close()) }()

	var s *server.Server
	if id.Role == wire.RoleServer {
		if s, err = newServer(&cfg, id, port, images); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.Shutdown()) }()
		blobs.servers = s.Addresses
	}
	w, err := newWorker(&cfg, id, port, images)
	if err != nil {
		return err
	}
	if s == nil {
		blobs.servers = w.connection.Servers
	}
	api, err := native.Listen(Socket(cfg.RunDir))
	if err != nil {
		return err
	}
	dockerAPI, err := native.Listen(DockerSocket(cfg.RunDir))
	if err != nil {
		api.Close()
		return err
	}
	ports.Go(func() error { return port.Serve(portCtx) })
	cfg.Log.Info("node starts", "node", id.NodeID, "name", cfg.Name, "role", id.Role, "address", cfg.wireAddress(), "version", cfg.Version)
	people, err := listenForPeople(&cfg, s, port)
	if err != nil {
		return errors.Join(err, api.Close(), dockerAPI.Close())
	}
	mara, err := listenForMarathon(&cfg, s, port)
	if err != nil {
		return errors.Join(err, api.Close(), dockerAPI.Close())
	}
	return work(ctx, s, w, id, api, dockerAPI, people, mara, &cfg)
}

// listenForPeople opens the API's network listener, if there is to be one: nil otherwise.
func listenForPeople(cfg *Config, s *server.Server, port *wire.Port) (net.Listener, error) {
	switch {
	case cfg.APIListen == "":
		return nil, nil
	case s == nil:
		return nil, fault.New(fault.Unsupported, "the API is answered by servers only, and this node is none: leave --api-listen out")
	}
	inner, err := net.Listen("tcp", cfg.APIListen)
	if err != nil {
		return nil, fmt.Errorf("listen for the API on %s: %w", cfg.APIListen, err)
	}
	return tls.NewListener(inner, port.ForPeople()), nil
}

// newServer builds the server half; images is this node's own image store.
func newServer(cfg *Config, id *identity, port *wire.Port, images core.Images) (*server.Server, error) {
	return server.New(server.Config{
		NodeID: id.NodeID, Name: cfg.Name, Address: cfg.wireAddress(), DataDir: cfg.DataDir,
		Founding: id.founding, Founded: cfg.founded, AddressPool: cfg.AddressPool, NodePool: cfg.NodePool,
		Known: id.servers, Port: port, Images: images, Log: cfg.Log, DeadServerAfter: cfg.DeadServerAfter, Version: cfg.Version,
		CertificateLife: cfg.CertificateLife,
	})
}

// work runs both halves and the APIs until ctx is done.
func work(ctx context.Context, s *server.Server, w *worker, id *identity, api, dockerAPI, people net.Listener, mara marathonListeners, cfg *Config) error {
	g, ctx := errgroup.WithContext(ctx)
	if s != nil {
		w.ready = s.WhenReady(ctx, w.ready)
	}
	noServer := fault.New(fault.Forbidden, "node %s is no server: ask one of the servers", cfg.Name)
	handler, dockerHandler := native.Refuse(noServer), docker.Refuse(noServer)
	if s != nil {
		dockerHandler = s.Answer(docker.New(docker.Deps{
			Core: s.Core(), NodeName: cfg.Name, NodeID: id.NodeID, Version: cfg.Version, Log: cfg.Log,
			Lifetime: native.Lifetime,
			Caller:   func(ctx context.Context) core.Caller { who := native.Peer(ctx); who.Via = "docker"; return who },
		}))
		handler = s.Answer(native.New(native.Deps{Core: s.Core(), NodeName: cfg.Name, Version: cfg.Version, Log: cfg.Log}))
		g.Go(func() error { return s.Run(ctx) })
		mara.serve(ctx, g, s, id.NodeID, cfg)
	}
	g.Go(func() error { return native.Serve(ctx, api, handler) })
	g.Go(func() error { return native.Serve(ctx, dockerAPI, dockerHandler) })
	if people != nil {
		directory := core.Directory{Store: s.Core().Store}
		known := []access.Authenticator{access.Tokens{Directory: directory}, access.Certificates{Directory: directory}}
		g.Go(func() error {
			return native.Serve(ctx, people, access.Require(native.ViaNetwork, known, native.Refuse, handler))
		})
		cfg.Log.Info("the API listens on the network", "address", people.Addr())
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

// ignoreEnd drops the error of a context that was ended from outside.
func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || fault.Is(err, fault.Unavailable) || errors.Is(err, http.ErrServerClosed)) {
		return nil
	}
	return err
}
