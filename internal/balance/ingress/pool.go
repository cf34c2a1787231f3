package ingress

import (
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// dialPatience bounds how long a connection to an instance may take: one on a host that is gone
	// does not answer at all.
	dialPatience = time.Second
	// shunFor is how long an instance that did not take a connection is left out, where there are others.
	shunFor = 2 * time.Second
	// keptFor is how long a connection without a request is kept, and keptMost how many there may be.
	keptFor  = 60 * time.Second
	keptMost = 256
)

var dialer = &net.Dialer{Timeout: dialPatience, KeepAlive: 15 * time.Second}

// pool keeps connections to one address between requests. It outlives changes of routes.
type pool struct {
	address string
	shunned atomic.Int64 // until when, in Unix nanoseconds

	mu      sync.Mutex
	idle    []*link // the last one was used last
	closed  atomic.Bool
	sweeper *time.Timer
}

// link is a connection to an instance.
type link struct {
	*net.TCPConn
	raw   syscall.RawConn
	since time.Time // when it was put back
	wake  time.Time // its read deadline
	quiet bool
	peek  func(fd uintptr)
}

// get returns a connection, one that was kept if there is one and that is wanted.
func (p *pool) get(kept bool) (l *link, wasKept bool, err error) {
	for kept {
		p.mu.Lock()
		n := len(p.idle) - 1
		if n >= 0 {
			l, p.idle[n] = p.idle[n], nil
			p.idle = p.idle[:n]
		}
		p.mu.Unlock()
		if n < 0 {
			break
		}
		if l.usable() {
			return l, true, nil
		}
		l.Close()
	}
	c, err := dialer.Dial("tcp", p.address)
	if err != nil {
		p.shunned.Store(time.Now().Add(shunFor).UnixNano())
		return nil, false, err
	}
	l, err = newLink(c.(*net.TCPConn))
	return l, false, err
}

// newLink is a connection with nothing under way, or it is closed.
func newLink(c *net.TCPConn) (l *link, err error) {
	l = &link{TCPConn: c}
	if l.raw, err = l.SyscallConn(); err != nil {
		c.Close()
		return nil, err
	}
	l.peek = func(fd uintptr) {
		var b [1]byte
		_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		l.quiet = err == unix.EAGAIN
	}
	return l, nil
}

// usable reports whether nothing came while nothing was asked, and the other end has not gone.
func (l *link) usable() bool {
	l.quiet = false
	return l.raw.Control(l.peek) == nil && l.quiet
}

// put keeps a connection for the next request.
func (p *pool) put(l *link) {
	l.since = time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed.Load() || len(p.idle) >= keptMost {
		l.Close()
		return
	}
	p.idle = append(p.idle, l)
	if p.sweeper == nil {
		p.sweeper = time.AfterFunc(keptFor, p.sweep)
	}
}

// sweep ends what was kept for long enough.
func (p *pool) sweep() {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := 0
	for old < len(p.idle) && time.Since(p.idle[old].since) >= keptFor {
		p.idle[old].Close()
		old++
	}
	p.idle = append(p.idle[:0], p.idle[old:]...)
	p.sweeper = nil
	if len(p.idle) > 0 && !p.closed.Load() {
		p.sweeper = time.AfterFunc(keptFor/4, p.sweep)
	}
}

// close ends what is kept, and keeps nothing any more.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed.Store(true)
	for _, l := range p.idle {
		l.Close()
	}
	p.idle = nil
	if p.sweeper != nil {
		p.sweeper.Stop()
	}
}

func (p *pool) isShunned() bool {
	until := p.shunned.Load()
	return until != 0 && time.Now().UnixNano() < until
}
