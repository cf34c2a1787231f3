package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/api/docker"
	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// messenger answers at the Docker socket of a host that is an agent: it has a server answer, where the cluster
// trusts the host, and answers for the host itself otherwise.
type messenger struct {
	ctx     context.Context // of the node's life
	client  *wire.Client
	servers func() []wire.ServerAddress
	own     http.Handler
	proxy   *httputil.ReverseProxy
	log     *slog.Logger
}

func newMessenger(ctx context.Context, client *wire.Client, w *worker, id *identity, at doors, cfg *Config) *messenger {
	own := docker.OfHost(docker.Deps{
		NodeName: cfg.Name, NodeID: id.NodeID, Version: cfg.Version, Log: cfg.Log, Lifetime: at.docker.lifetime, Caller: dockerCaller, Leave: at.leave,
	}, docker.Host{Node: cfg.node(id.NodeID, false)})
	return messengerTo(ctx, client, w.connection.Servers, own, cfg.Log)
}

func messengerTo(ctx context.Context, client *wire.Client, servers func() []wire.ServerAddress, own http.Handler, log *slog.Logger) *messenger {
	m := &messenger{ctx: ctx, client: client, servers: servers, own: own, log: log}
	m.proxy = &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "docker" },
		FlushInterval: -1,
		Transport: &http.Transport{
			DialContext:  func(context.Context, string, string) (net.Conn, error) { return m.dial() },
			MaxIdleConns: 8, IdleConnTimeout: 30 * time.Second, DisableCompression: true,
		},
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if fault.Is(err, fault.Forbidden) {
				m.own.ServeHTTP(w, r)
				return
			}
			docker.Refuse(fault.New(fault.Unavailable, "no server answers: %w", err)).ServeHTTP(w, r)
		},
	}
	return m
}

// dial connects to the Docker API of a server.
func (m *messenger) dial() (net.Conn, error) {
	last := error(fault.New(fault.Unavailable, "no server is known"))
	for _, s := range m.servers() {
		stream, err := m.client.Stream(m.ctx, s.Address, wire.PathDocker)
		if fault.Is(err, fault.Forbidden) {
			return nil, err
		}
		if err != nil {
			last = err
			continue
		}
		ours, theirs, err := wire.Pair()
		if err != nil {
			stream.Close()
			return nil, err
		}
		go func() {
			if err := wire.Couple(m.ctx, stream, theirs); err != nil {
				m.log.Debug("a connection of the Docker API broke", "error", err)
			}
		}()
		return ours, nil
	}
	return nil, last
}

// takenOver reports whether a request's connection becomes one of bytes, which the client and whoever answers
// may end on one side only.
func takenOver(r *http.Request) bool {
	return r.Method == http.MethodPost && (r.Header.Get("Upgrade") != "" || strings.HasSuffix(r.URL.Path, "/attach") ||
		strings.Contains(r.URL.Path, "/exec/") && strings.HasSuffix(r.URL.Path, "/start"))
}

// ServeHTTP implements http.Handler.
func (m *messenger) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case !native.Peer(r.Context()).WholeCluster(), strings.HasSuffix(r.URL.Path, "/swarm/leave"):
		m.own.ServeHTTP(w, r)
	case !takenOver(r):
		m.proxy.ServeHTTP(w, r)
	default:
		there, err := m.dial()
		if err != nil {
			m.proxy.ErrorHandler(w, r, err)
			return
		}
		defer there.Close()
		if err := m.handOver(w, r, there.(*net.UnixConn)); err != nil {
			m.log.Debug("a connection of the Docker API broke", "error", err)
		}
	}
}

// handOver sends a request on, and has the two connections be one from there on.
func (m *messenger) handOver(w http.ResponseWriter, r *http.Request, there *net.UnixConn) error {
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return err
	}
	defer conn.Close()
	r.Header.Del("Content-Length")
	var head strings.Builder
	fmt.Fprintf(&head, "%s %s HTTP/1.1\r\nHost: docker\r\n", r.Method, r.URL.RequestURI())
	if err := r.Header.Write(&head); err != nil {
		return err
	}
	if r.ContentLength > 0 {
		fmt.Fprintf(&head, "Content-Length: %d\r\n", r.ContentLength)
	} else if len(r.TransferEncoding) > 0 {
		head.WriteString("Transfer-Encoding: chunked\r\n")
	}
	head.WriteString("\r\n")
	if _, err := io.WriteString(there, head.String()); err != nil {
		return err
	}
	ours, ok := conn.(*net.UnixConn)
	if !ok {
		return errors.New("the connection is not one of a Unix socket")
	}
	watched, stop := context.WithCancel(m.ctx)
	defer stop()
	go docker.WatchCut(watched, ours, func() { ours.Close(); there.Close() })
	var both sync.WaitGroup
	both.Go(func() { pour(there, buf.Reader) })
	both.Go(func() { pour(ours, bufio.NewReader(there)) })
	both.Wait()
	return nil
}

// pour carries what comes on one side to the other, and its end.
func pour(to *net.UnixConn, from io.Reader) {
	if _, err := io.Copy(to, from); err != nil {
		to.Close()
		return
	}
	_ = to.CloseWrite()
}

// guests are the connections that agents bring to a server, of those who ask at their Docker sockets.
type guests struct {
	store *store.Store
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newGuests(s *store.Store) *guests {
	return &guests{store: s, conns: make(chan net.Conn), done: make(chan struct{})}
}

// guest is a connection from a node.
type guest struct {
	*net.UnixConn
	node *model.Node
}

// Caller is who asks: the administrator of the node, as its user there is not known here.
func (g guest) Caller() core.Caller {
	who := core.Local("node:"+g.node.Name, viaDocker)
	who.From = "node " + g.node.ID
	return who
}

// atNode is the node at whose socket a request was made, where that is another one.
func atNode(ctx context.Context) string {
	if id, is := strings.CutPrefix(native.Peer(ctx).From, "node "); is {
		return id
	}
	return ""
}

// ServeHTTP implements http.Handler, for streams of nodes.
func (g *guests) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n, err := g.trusted(wire.PeerOf(r.Context()).NodeID)
	if err != nil {
		wire.WriteError(w, err)
		return
	}
	wire.HandleStream(func(ctx context.Context, s *wire.Stream) error {
		ours, theirs, err := wire.Pair()
		if err != nil {
			return err
		}
		select {
		case g.conns <- guest{theirs, n}:
			return wire.Couple(ctx, s, ours)
		case <-g.done:
		case <-ctx.Done():
		}
		return errors.Join(ours.Close(), theirs.Close())
	}).ServeHTTP(w, r)
}

func (g *guests) trusted(id string) (*model.Node, error) {
	n, ok := store.Get[*model.Node](g.store.Snapshot(), id)
	switch {
	case !ok:
		return nil, fault.New(fault.Forbidden, "node %s is not of this cluster", id)
	case !n.Trusted:
		return nil, fault.New(fault.Forbidden, "the cluster does not trust the administrator of node %s: `tutti node trust %s` on a server would", n.Name, n.Name)
	}
	return n, nil
}

// welcome answers guests as long as they are trusted.
func (g *guests) welcome(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := g.trusted(atNode(r.Context())); err != nil {
			docker.Refuse(err).ServeHTTP(w, r)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// Accept implements net.Listener.
func (g *guests) Accept() (net.Conn, error) {
	select {
	case c := <-g.conns:
		return c, nil
	case <-g.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (g *guests) Close() error {
	g.once.Do(func() { close(g.done) })
	return nil
}

// Addr implements net.Listener.
func (g *guests) Addr() net.Addr { return &net.UnixAddr{Name: "connections of agents", Net: "unix"} }
