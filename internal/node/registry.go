package node

import (
	"context"
	"fmt"
	"net"
	"net/http"

	"golang.org/x/sync/errgroup"

	"github.com/tutti-run/tutti/internal/api/access"
	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/api/registry"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/server"
	"github.com/tutti-run/tutti/internal/wire"
)

const viaRegistry = "registry"

// registryListener is where the cluster's registry is answered; nil when it is not to be.
type registryListener struct {
	net.Listener
	people bool // over the network, to users with a token or certificate
}

func listenForRegistry(cfg *Config, s *server.Server, port *wire.Port) (l registryListener, err error) {
	if s == nil {
		if cfg.RegistryListen != "" && cfg.RegistryListen != DefaultRegistryListen {
			return l, fault.New(fault.Unsupported, "the registry is answered by servers only, and this node is none: leave --registry-listen out")
		}
		return l, nil
	}
	if cfg.RegistryListen == "" {
		return l, nil
	}
	l.Listener, l.people, err = listenForBoth(cfg.RegistryListen, port)
	switch {
	case err != nil && cfg.RegistryListen == DefaultRegistryListen:
		cfg.Log.Warn("the registry is not answered at its port, which is taken; --registry-listen chooses another", "address", cfg.RegistryListen, "error", err)
		return l, nil
	case err != nil:
		return l, fmt.Errorf("listen for the registry on %s: %w", cfg.RegistryListen, err)
	}
	return l, nil
}

// serve answers the registry's API at the listener.
func (l registryListener) serve(ctx context.Context, g *errgroup.Group, s *server.Server, images *image.Store, cfg *Config) {
	if l.Listener == nil {
		return
	}
	handler := s.Answer(registry.New(registry.Deps{
		Core: s.Core(), Images: images.Registry(), Log: cfg.Log,
		Caller: func(ctx context.Context) core.Caller {
			if who, ok := access.CallerOf(ctx); ok {
				return who
			}
			return core.Local("root", viaRegistry)
		},
	}))
	if l.people {
		directory := core.Directory{Store: s.Core().Store}
		known := []access.Authenticator{access.Basic{Directory: directory}, access.Tokens{Directory: directory}, access.Certificates{Directory: directory}}
		handler = access.Require(viaRegistry, known, func(err error) http.Handler { return registry.Refuse(err) }, handler)
		cfg.Log.Info("the registry listens on the network", "address", l.Addr())
	}
	g.Go(func() error { return native.Serve(ctx, l.Listener, handler) })
}
