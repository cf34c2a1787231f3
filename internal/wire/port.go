package wire

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"

	"github.com/hashicorp/raft"

	"github.com/tutti-run/tutti/internal/fault"
)

const (
	// tlsName is the name in every node's certificate: who a node is, its common name says.
	tlsName   = "node.tutti.internal"
	protoRaft = "tutti-raft/1"
	protoHTTP = "h2"

	// streamBuffer is how many bytes of a stream may be under way.
	streamBuffer = 1 << 20
)

// Port is this node's end of all connections between nodes.
type Port struct {
	identity    atomic.Pointer[Identity]
	credentials atomic.Pointer[credentials]
	log         *slog.Logger
	listener    net.Listener
	mux         *http.ServeMux
	raft        *RaftLayer
	client      *Client
	open        *openConns
	gate        Gate
	routes      []Route
	network     Underlay
	crowd       crowd
}

// Gate decides about peers whose certificate is right: whether they are, still, of the cluster.
// replication is set for connections of the replication, which a server needs to get to know of
// others in the first place.
type Gate func(peer Peer, replication bool) error

// SetGate sets the gate; without one, every certificate of the cluster opens. It is for the time of
// building, before anything is served.
func (p *Port) SetGate(g Gate) { p.gate = g }

func (p *Port) mayPass(peer Peer, replication bool) error {
	if p.gate == nil {
		return nil
	}
	return p.gate(peer, replication)
}

// Route is a path that a port serves, and to whom; to anybody when no role is there.
type Route struct {
	Pattern string
	Roles   []Role
}

// Routes lists what the port serves, beside the replication, which is for servers.
func (p *Port) Routes() []Route { return slices.Clone(p.routes) }

// Listen binds the port; nothing is answered until Serve.
func Listen(address string, identity *Identity, log *slog.Logger) (*Port, error) {
	return ListenOn(TCP{}, address, identity, log)
}

// ListenOn is Listen on a network of choice.
func ListenOn(network Underlay, address string, identity *Identity, log *slog.Logger) (*Port, error) {
	c, err := newCredentials(identity)
	if err != nil {
		return nil, err
	}
	inner, err := network.Listen(context.Background(), address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	p := &Port{log: log, network: network, crowd: newCrowd(), mux: http.NewServeMux(), open: &openConns{all: map[net.Conn]*openConn{}}}
	p.identity.Store(identity)
	p.credentials.Store(c)
	p.listener = tls.NewListener(inner, &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if err := awaitTurn(hello); err != nil {
				return nil, err
			}
			return p.credentials.Load().server, nil
		},
		// What is asked for by the configuration itself is there for form's sake only.
		Certificates: []tls.Certificate{c.cert}, NextProtos: c.server.NextProtos,
	})
	p.raft = newRaftLayer(network, inner.Addr(), func() *tls.Config { return p.credentials.Load().client(protoRaft, true) })
	p.client = newClient(network, func(ofServers bool) *tls.Config { return p.credentials.Load().client(protoHTTP, ofServers) })
	return p, nil
}

// Addr returns the address that is listened on.
func (p *Port) Addr() net.Addr { return p.listener.Addr() }

// Client returns the client that connects to other nodes as this one.
func (p *Port) Client() *Client { return p.client }

// RaftLayer returns the connections of the replication.
func (p *Port) RaftLayer() *RaftLayer { return p.raft }

type peerKey struct{}

// PeerOf returns who makes the request whose context this is. The zero Peer is nobody.
func PeerOf(ctx context.Context) Peer {
	peer, _ := ctx.Value(peerKey{}).(Peer)
	return peer
}

// Handle serves a path to peers that have one of the roles.
func (p *Port) Handle(pattern string, h http.Handler, allow ...Role) {
	p.routes = append(p.routes, Route{pattern, allow})
	p.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		peer, err := requestPeer(r)
		if err == nil {
			err = ownSpan.check(r.Header)
		}
		if err == nil && !slices.Contains(allow, peer.Role) {
			err = fault.New(fault.Forbidden, "a node with the role %s may not use %s", peer.Role, r.URL.Path)
		}
		if err == nil {
			err = p.mayPass(peer, false)
		}
		if err != nil {
			WriteError(w, err)
			return
		}
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), peerKey{}, peer)))
	})
}

// HandleOpen serves a path to anybody, certificate or not.
func (p *Port) HandleOpen(pattern string, h http.Handler) {
	p.routes = append(p.routes, Route{Pattern: pattern})
	p.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(headerProtocol) != "" { // a node asks, to join
			if err := ownSpan.check(r.Header); err != nil {
				WriteError(w, err)
				return
			}
		}
		h.ServeHTTP(w, r)
	})
}

func requestPeer(r *http.Request) (Peer, error) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return Peer{}, fault.New(fault.Forbidden, "a certificate of this cluster is needed")
	}
	return peerOf(r.TLS.VerifiedChains[0][0])
}

// Serve answers connections until ctx is done.
func (p *Port) Serve(ctx context.Context) error {
	h2 := &http2.Server{
		ReadIdleTimeout: 2 * time.Second, PingTimeout: 2 * time.Second, MaxConcurrentStreams: 10_000,
		// Much more for a connection than for one stream: one whose reader is slow, like the
		// input of a process, must not hold up the others.
		MaxUploadBufferPerConnection: 1 << 30, MaxUploadBufferPerStream: streamBuffer,
	}
	srv := &http.Server{Handler: p.mux, BaseContext: func(net.Listener) context.Context { return ctx }}
	if err := http2.ConfigureServer(srv, h2); err != nil {
		return fmt.Errorf("set up HTTP/2: %w", err)
	}
	var conns sync.WaitGroup
	stop := context.AfterFunc(ctx, func() {
		p.listener.Close()
		p.raft.Close()
	})
	defer stop()
	defer func() { p.open.closeAll(); conns.Wait(); p.client.close() }()
	for {
		c, err := p.listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
				continue
			}
			return fmt.Errorf("accept connections: %w", err)
		}
		conns.Go(func() {
			p.open.add(c)
			p.serveConn(ctx, c.(*tls.Conn), h2, srv)
		})
	}
}

func (p *Port) serveConn(ctx context.Context, c *tls.Conn, h2 *http2.Server, srv *http.Server) {
	hctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	turn := &turn{crowd: p.crowd}
	err := c.HandshakeContext(withTurn(hctx, turn))
	turn.end()
	cancel()
	if err != nil {
		p.log.Debug("handshake failed", "from", c.RemoteAddr(), "error", err)
		p.open.remove(c)
		c.Close()
		return
	}
	state := c.ConnectionState()
	replication := state.NegotiatedProtocol == protoRaft
	p.open.know(c, state.PeerCertificates, replication)
	if !replication {
		defer p.open.remove(c)
		h2.ServeConn(c, &http2.ServeConnOpts{Context: ctx, BaseConfig: srv, Handler: p.mux})
		return
	}
	reason := fault.New(fault.Forbidden, "it is no server")
	if len(state.VerifiedChains) > 0 {
		if peer, err := peerOf(state.VerifiedChains[0][0]); err == nil && peer.Role == RoleServer {
			if reason = p.mayPass(peer, true); reason == nil {
				p.raft.deliver(&replicationConn{Conn: c, closed: func() { p.open.remove(c) }})
				return
			}
		}
	}
	p.log.Warn("replication refused", "from", c.RemoteAddr(), "reason", reason)
	p.open.remove(c)
	c.Close()
}

// replicationConn says when it is closed.
type replicationConn struct {
	net.Conn
	closed func()
}

func (c *replicationConn) Close() error {
	c.closed()
	return c.Conn.Close()
}

// openConns knows the connections that are open and whose they are.
type openConns struct {
	mu  sync.Mutex
	all map[net.Conn]*openConn
}

type openConn struct {
	conn        net.Conn
	chain       []*x509.Certificate // as the peer showed it; empty for one without a certificate
	replication bool
	believedBy  atomic.Pointer[credentials] // those by which the chain was verified last
}

func (o *openConns) add(c net.Conn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all[c] = &openConn{conn: c}
}

// know notes whose a connection is, after the handshake.
func (o *openConns) know(c net.Conn, chain []*x509.Certificate, replication bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all[c] = &openConn{conn: c, chain: chain, replication: replication}
}

func (o *openConns) remove(c net.Conn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.all, c)
}

func (o *openConns) list() []*openConn {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Collect(maps.Values(o.all))
}

// closeAll closes the connections of calls and streams; those of the replication are its own.
func (o *openConns) closeAll() {
	for _, c := range o.list() {
		if !c.replication {
			c.conn.Close()
		}
	}
}

// RaftLayer carries the replication's connections between servers.
type RaftLayer struct {
	network Underlay
	addr    net.Addr
	config  func() *tls.Config
	conns   chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

func newRaftLayer(network Underlay, addr net.Addr, config func() *tls.Config) *RaftLayer {
	return &RaftLayer{network: network, addr: addr, config: config, conns: make(chan net.Conn, 16), closed: make(chan struct{})}
}

func (l *RaftLayer) deliver(c net.Conn) {
	select {
	case l.conns <- c:
	case <-l.closed:
		c.Close()
	}
}

// Accept returns the next connection from another server.
func (l *RaftLayer) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept; connections that were accepted live on.
func (l *RaftLayer) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr returns the port's address.
func (l *RaftLayer) Addr() net.Addr { return l.addr }

// Dial connects to another server.
func (l *RaftLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), min(timeout, dialTimeout))
	defer cancel()
	return dialTLS(ctx, l.network, string(address), l.config())
}

// dialTLS connects and shakes hands, which takes no longer than ctx allows.
func dialTLS(ctx context.Context, network Underlay, address string, config *tls.Config) (net.Conn, error) {
	inner, err := network.Dial(ctx, address)
	if err != nil {
		return nil, err
	}
	c := tls.Client(inner, config)
	if err := c.HandshakeContext(ctx); err != nil {
		inner.Close()
		return nil, err
	}
	return c, nil
}
