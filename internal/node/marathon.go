package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"

	"golang.org/x/sync/errgroup"

	"github.com/tutti-run/tutti/internal/api/access"
	"github.com/tutti-run/tutti/internal/api/marathon"
	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/atomicfile"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/server"
	"github.com/tutti-run/tutti/internal/wire"
)

// viaMarathon is how callers of Marathon's API came.
const viaMarathon = "marathon"

// marathonListeners are where Marathon's API is answered; those that are not to be are nil.
type marathonListeners struct {
	socket net.Listener // for the administrator, like Docker's
	own    net.Listener // on loopback
	people net.Listener // over the network
}

// listenForMarathon opens the listeners of Marathon's API on a server.
func listenForMarathon(cfg *Config, s *server.Server, port *wire.Port) (l marathonListeners, err error) {
	if s == nil {
		if cfg.MarathonListen != "" && cfg.MarathonListen != DefaultMarathonListen {
			return l, fault.New(fault.Unsupported, "Marathon's API is answered by servers only, and this node is none: leave --marathon-listen out")
		}
		return l, nil
	}
	if cfg.MarathonListen == "" {
		return l, nil
	}
	file := MarathonURLFile(cfg.RunDir)
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return l, err
	}
	if l.socket, err = native.Listen(MarathonSocket(cfg.RunDir)); err != nil {
		return l, err
	}
	tcp, people, err := listenForBoth(cfg.MarathonListen, port)
	switch {
	case err != nil && cfg.MarathonListen == DefaultMarathonListen:
		cfg.Log.Warn("Marathon's API is not answered at its port, which is taken; --marathon-listen chooses another", "address", cfg.MarathonListen, "error", err)
		return l, nil
	case err != nil:
		return l, errors.Join(fmt.Errorf("listen for Marathon's API on %s: %w", cfg.MarathonListen, err), l.socket.Close())
	}
	scheme := "http"
	if people {
		scheme, l.people = "https", tcp
	} else {
		l.own = tcp
	}
	return l, atomicfile.Write(file, []byte(scheme+"://"+tcp.Addr().String()+"\n"))
}

// newMarathon returns Marathon's API of a server. It is there whether it is listened for or not, as files
// of its language are read by it.
func newMarathon(s *server.Server, nodeID string, cfg *Config) *marathon.API {
	return marathon.New(marathon.Deps{
		Core: s.Core(), NodeName: cfg.Name, NodeID: nodeID, Address: cfg.Address, Version: cfg.Version, Log: cfg.Log,
		Caller: func(ctx context.Context) core.Caller {
			who, ok := access.CallerOf(ctx)
			if !ok {
				who = core.Local("root", viaMarathon)
			}
			who.Via = viaMarathon
			return who
		},
	})
}

// serve answers the API at the listeners.
func (l *marathonListeners) serve(ctx context.Context, g *errgroup.Group, s *server.Server, api *marathon.API, cfg *Config) {
	g.Go(func() error { return api.Run(ctx) })
	if l.socket == nil {
		return
	}
	handler := s.Answer(api)
	g.Go(func() error { return native.Serve(ctx, l.socket, handler) })
	if l.own != nil {
		g.Go(func() error { return native.Serve(ctx, l.own, handler) })
	}
	if l.people != nil {
		directory := core.Directory{Store: s.Core().Store}
		known := []access.Authenticator{marathon.Tokens{Directory: directory}, access.Tokens{Directory: directory}, access.Certificates{Directory: directory}}
		g.Go(func() error {
			return native.Serve(ctx, l.people, access.Require(viaMarathon, known, func(err error) http.Handler { return marathon.Refuse(err) }, handler))
		})
		cfg.Log.Info("Marathon's API listens on the network", "address", l.people.Addr())
	}
}
