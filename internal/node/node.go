package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"

	"golang.org/x/sync/errgroup"

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
	return work(ctx, s, w, id, api, dockerAPI, &cfg)
}

// newServer builds the server half; images is this node's own image store.
func newServer(cfg *Config, id *identity, port *wire.Port, images core.Images) (*server.Server, error) {
	return server.New(server.Config{
		NodeID: id.NodeID, Name: cfg.Name, Address: cfg.wireAddress(), DataDir: cfg.DataDir,
		Founding: id.founding, Founded: cfg.founded, AddressPool: cfg.AddressPool, NodePool: cfg.NodePool,
		Known: id.servers, Port: port, Images: images, Log: cfg.Log, DeadServerAfter: cfg.DeadServerAfter, Version: cfg.Version,
	})
}

// work runs both halves and the APIs until ctx is done.
func work(ctx context.Context, s *server.Server, w *worker, id *identity, api, dockerAPI net.Listener, cfg *Config) error {
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
			Caller:   func(ctx context.Context) core.Caller { return core.Caller{Name: native.Peer(ctx), Via: "docker"} },
		}))
		handler = s.Answer(native.New(native.Deps{Core: s.Core(), NodeName: cfg.Name, Version: cfg.Version, Log: cfg.Log}))
		g.Go(func() error { return s.Run(ctx) })
	}
	g.Go(func() error { return native.Serve(ctx, api, handler) })
	g.Go(func() error { return native.Serve(ctx, dockerAPI, dockerHandler) })
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
