package wire

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
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
	identity *Identity
	log      *slog.Logger
	listener net.Listener
	mux      *http.ServeMux
	raft     *RaftLayer
	client   *Client
	clientTL *tls.Config
}

// Listen binds the port; nothing is answered until Serve.
func Listen(address string, identity *Identity, log *slog.Logger) (*Port, error) {
	return ListenOn(TCP{}, address, identity, log)
}

// ListenOn is Listen on a network of choice.
func ListenOn(network Underlay, address string, identity *Identity, log *slog.Logger) (*Port, error) {
	cert, err := tls.X509KeyPair(identity.CertPEM, identity.KeyPEM)
	if err != nil {
		return nil, fmt.Errorf("use this node's certificate: %w", err)
	}
	authorities := x509.NewCertPool()
	if !authorities.AppendCertsFromPEM(identity.CAPEM) {
		return nil, errors.New("use the cluster's authority: its certificate cannot be read")
	}
	caBlock, err := decodeCert(identity.CAPEM)
	if err != nil {
		return nil, fmt.Errorf("use the cluster's authority: %w", err)
	}
	cert.Certificate = append(cert.Certificate, caBlock.Raw) // newcomers compare it with their token
	inner, err := network.Listen(context.Background(), address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	clientTLS := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
		RootCAs: authorities, ServerName: tlsName,
	}
	p := &Port{
		identity: identity, log: log, mux: http.NewServeMux(), clientTL: clientTLS,
		listener: tls.NewListener(inner, &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
			ClientCAs: authorities, ClientAuth: tls.VerifyClientCertIfGiven,
			NextProtos: []string{protoHTTP, protoRaft},
		}),
	}
	p.raft = newRaftLayer(network, inner.Addr(), clientTLS)
	p.client = newClient(network, clientTLS)
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
	p.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		peer, err := requestPeer(r)
		if err == nil && !slices.Contains(allow, peer.Role) {
			err = fault.New(fault.Forbidden, "a node with the role %s may not use %s", peer.Role, r.URL.Path)
		}
		if err != nil {
			WriteError(w, err)
			return
		}
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), peerKey{}, peer)))
	})
}

// HandleOpen serves a path to anybody, certificate or not.
func (p *Port) HandleOpen(pattern string, h http.Handler) { p.mux.Handle(pattern, h) }

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
	open := &openConns{all: map[net.Conn]struct{}{}}
	defer func() { open.closeAll(); conns.Wait(); p.client.close() }()
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
			open.add(c)
			defer open.remove(c)
			p.serveConn(ctx, c.(*tls.Conn), h2, srv)
		})
	}
}

func (p *Port) serveConn(ctx context.Context, c *tls.Conn, h2 *http2.Server, srv *http.Server) {
	hctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	err := c.HandshakeContext(hctx)
	cancel()
	if err != nil {
		p.log.Debug("handshake failed", "from", c.RemoteAddr(), "error", err)
		c.Close()
		return
	}
	state := c.ConnectionState()
	if state.NegotiatedProtocol != protoRaft {
		h2.ServeConn(c, &http2.ServeConnOpts{Context: ctx, BaseConfig: srv, Handler: p.mux})
		return
	}
	if len(state.VerifiedChains) > 0 {
		if peer, err := peerOf(state.VerifiedChains[0][0]); err == nil && peer.Role == RoleServer {
			p.raft.deliver(c)
			return
		}
	}
	p.log.Warn("replication refused to a peer that is no server", "from", c.RemoteAddr())
	c.Close()
}

// openConns closes what is still open when the port ends.
type openConns struct {
	mu  sync.Mutex
	all map[net.Conn]struct{}
}

func (o *openConns) add(c net.Conn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all[c] = struct{}{}
}

func (o *openConns) remove(c net.Conn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.all, c)
}

func (o *openConns) closeAll() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for c := range o.all {
		c.Close()
	}
}

// RaftLayer carries the replication's connections between servers.
type RaftLayer struct {
	network Underlay
	addr    net.Addr
	config  *tls.Config
	conns   chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

func newRaftLayer(network Underlay, addr net.Addr, config *tls.Config) *RaftLayer {
	c := config.Clone()
	c.NextProtos = []string{protoRaft}
	return &RaftLayer{network: network, addr: addr, config: c, conns: make(chan net.Conn, 16), closed: make(chan struct{})}
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
	return dialTLS(ctx, l.network, string(address), l.config)
}

// dialTLS connects and shakes hands.
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
