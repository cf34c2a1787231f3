package ingress

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	headPatience = 30 * time.Second // for a head, and for what is next of a request's body
	idlePatience = 3 * time.Minute  // between requests
	lookEach     = time.Second      // while an instance says nothing: whether the client is there still
	hardlyLater  = 10 * time.Second // a deadline is not set anew for less
)

// lean answers the requests of one port. What it reads itself is plain HTTP/1.1: without TLS by loops, which have
// many connections each, and otherwise, and where a request takes more than a loop does, in one goroutine a
// connection. Any other connection is handed to net/http.
type lean struct {
	p      *proxy
	secure bool
	tls    *tls.Config
	others *handover
	std    *http.Server // serves the others
	loops  []*loop      // without TLS

	looping sync.WaitGroup

	mu       sync.Mutex
	listener net.Listener
	sessions map[*session]struct{}
	closing  atomic.Bool
	ending   atomic.Bool // nothing is waited for any more
	under    sync.WaitGroup
}

// handover is a listener of connections that somebody else accepted.
type handover struct {
	address net.Addr
	next    chan net.Conn
	done    chan struct{}
	once    sync.Once
}

func (h *handover) Accept() (net.Conn, error) {
	select {
	case c := <-h.next:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

func (h *handover) Close() error   { h.once.Do(func() { close(h.done) }); return nil }
func (h *handover) Addr() net.Addr { return h.address }

func (h *handover) give(c net.Conn) {
	select {
	case h.next <- c:
	case <-h.done:
		c.Close()
	}
}

// replay is a connection of which something was read already, or that comes from somebody else than it seems.
type replay struct {
	net.Conn
	rest []byte
	from net.Addr
}

func (r *replay) Read(b []byte) (int, error) {
	if len(r.rest) > 0 {
		n := copy(b, r.rest)
		r.rest = r.rest[n:]
		return n, nil
	}
	return r.Conn.Read(b)
}

func (r *replay) RemoteAddr() net.Addr { return r.from }

// serve accepts until the listener is closed.
func (l *lean) serve() error {
	go l.std.Serve(l.others) // until that is closed
	if !l.secure {
		l.looping.Wait()
		return http.ErrServerClosed
	}
	for wait := time.Duration(0); ; {
		c, err := l.listener.Accept()
		switch {
		case err == nil:
			wait = 0
			s := &session{l: l, tcp: c.(*net.TCPConn), conn: c, remote: c.RemoteAddr()}
			s.enter()
			go s.run()
		case l.closing.Load() || errors.Is(err, net.ErrClosed):
			return http.ErrServerClosed
		case errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.ECONNABORTED):
			wait = min(max(2*wait, 5*time.Millisecond), time.Second)
			time.Sleep(wait) // until some connection has ended
		default:
			return err
		}
	}
}

// shutdown accepts nothing more, lets requests that are under way end, as far as ctx does, and ends all else.
func (l *lean) shutdown(ctx context.Context) error {
	l.closing.Store(true)
	l.listener.Close()
	l.each(func(s *session) {
		if s.idle.Load() {
			s.tcp.Close()
		}
	})
	for _, p := range l.loops {
		p.tell()
	}
	err := l.std.Shutdown(ctx)
	ended := make(chan struct{})
	go func() { l.under.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-ctx.Done():
		err = errors.Join(err, ctx.Err())
		l.each(func(s *session) { s.tcp.Close() })
		l.ending.Store(true)
		for _, p := range l.loops {
			p.tell()
		}
	}
	return err
}

func (l *lean) each(do func(*session)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for s := range l.sessions {
		do(s)
	}
}

func schemeOf(secure bool) string {
	if secure {
		return "https"
	}
	return "http"
}

// nameOf is the name that a request is for, without a port.
func nameOf(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.TrimSuffix(strings.ToLower(host), ".")
}
