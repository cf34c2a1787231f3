package simnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

var (
	errReset    = fmt.Errorf("read: %w", syscall.ECONNRESET)
	errTimedOut = fmt.Errorf("read: %w", syscall.ETIMEDOUT)
	errHostDown = errors.New("the host is down")
	errEOF      = io.EOF
)

// Underlay is the network as one process of a host sees it; it implements wire.Underlay.
type Underlay struct {
	net  *Net
	host string
	life int
}

// address is host:port.
type address string

func (a address) Network() string { return "sim" }
func (a address) String() string  { return string(a) }

// listener accepts connections of one host and port.
type listener struct {
	net    *Net
	addr   address
	conns  chan net.Conn
	closed chan struct{}
	over   bool // guarded by net.mu
}

// Listen accepts what others dial.
func (u Underlay) Listen(_ context.Context, addr string) (net.Listener, error) {
	u.net.mu.Lock()
	defer u.net.mu.Unlock()
	if !u.net.alive(u.host, u.life) {
		return nil, errHostDown
	}
	h := u.net.hosts[u.host]
	l := &listener{net: u.net, addr: address(addr), conns: make(chan net.Conn, 64), closed: make(chan struct{})}
	h.listeners[addr] = l
	return l, nil
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	l.closeLocked()
	return nil
}

func (l *listener) closeLocked() {
	if !l.over {
		l.over = true
		close(l.closed)
	}
}

func (l *listener) Addr() net.Addr { return l.addr }

// dialTimeout is that of package wire.
const dialTimeout = time.Second

// Dial connects to host:port within a second.
func (u Underlay) Dial(ctx context.Context, addr string) (net.Conn, error) {
	to, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	fail := func(err error) error { return &net.OpError{Op: "dial", Net: "sim", Addr: address(addr), Err: err} }
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	for { // until the handshake goes through: what is lost is sent again
		u.net.mu.Lock()
		there, back := u.net.delay(), u.net.delay()
		u.net.mu.Unlock()
		if err := sleep(ctx, there+back); err != nil {
			return nil, fail(err)
		}
		c, err := u.connect(to, addr)
		if err != nil {
			return nil, fail(err)
		}
		if c != nil {
			return c, nil
		}
		if err := sleep(ctx, retransmit); err != nil {
			return nil, fail(err)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// connect makes a connection; nil when nobody answers.
func (u Underlay) connect(to, addr string) (net.Conn, error) {
	n, from := u.net, u.host
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.alive(from, u.life) {
		return nil, errHostDown
	}
	if n.life(to) == 0 || n.cut[[2]string{from, to}] || n.cut[[2]string{to, from}] || n.rnd.Float64() < n.weather.Loss {
		return nil, nil
	}
	l := n.hosts[to].listeners[addr]
	if l == nil || l.over || len(l.conns) == cap(l.conns) {
		return nil, syscall.ECONNREFUSED
	}
	p := &pair{net: n}
	for i, name := range []string{from, to} {
		p.ends[i] = &end{pair: p, side: i, host: name, wake: make(chan struct{}, 1)}
	}
	p.ends[0].local, p.ends[0].remote = address(from+":0"), address(addr)
	p.ends[1].local, p.ends[1].remote = address(addr), address(from+":0")
	n.conns[p] = struct{}{}
	n.order = append(n.order, p)
	l.conns <- p.ends[1]
	return p.ends[0], nil
}

// pair is a connection; all of it is guarded by net.mu.
type pair struct {
	net  *Net
	ends [2]*end
}

// end is one end of a connection; it implements net.Conn.
type end struct {
	pair          *pair
	side          int
	host          string
	local, remote address
	wake          chan struct{} // capacity 1: something changed for the reader

	in       []byte    // has arrived
	eof      bool      // and nothing follows
	err      error     // the connection is broken
	closed   bool      // by this end's owner
	deadline time.Time // for reading

	out      [][]byte  // not arrived at the other end yet, in order; nil is the end of it
	arriving bool      // a timer is under way for the first of out
	blocked  time.Time // since when the first of out cannot arrive
}

func (e *end) other() *end { return e.pair.ends[1-e.side] }

func (e *end) poke() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// failLocked breaks the connection for this end.
func (e *end) failLocked(err error) {
	if e.err == nil && !(e.closed && e.eof) {
		e.err, e.out = err, nil
	}
	e.poke()
	e.pair.forget()
}

// forget drops a connection of which nothing is to come any more.
func (p *pair) forget() {
	for _, e := range p.ends {
		if e.err == nil && !(e.closed && len(e.out) == 0) {
			return
		}
	}
	delete(p.net.conns, p)
}

// resetLocked tells an end that the other one is gone, as soon as that can be known.
func (n *Net) resetLocked(e *end) {
	time.AfterFunc(n.delay(), func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if e.err == nil {
			n.counts.Resets++
			e.failLocked(errReset)
		}
	})
}

// expire ends a connection that nothing goes through, unless that changes in time.
func (n *Net) expire(e *end) {
	check := func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		o := e.other()
		dead := o.err != nil && n.life(o.host) == 0
		cut := n.cut[[2]string{e.host, o.host}] || n.cut[[2]string{o.host, e.host}]
		if e.err == nil && (dead || cut || o.err != nil) {
			n.counts.TimedOut++
			e.failLocked(errTimedOut)
		}
	}
	if len(e.out) > 0 {
		time.AfterFunc(userTimeout, check)
	}
	time.AfterFunc(keepAliveEnd, check)
}

// flushLocked lets go on what a cut held up.
func (p *pair) flushLocked() {
	for _, e := range p.ends {
		e.blocked = time.Time{}
		if len(e.out) > 0 && !e.arriving {
			e.arrive(p.net.within(retransmit))
		}
	}
}

// arrive lets the first of out arrive after a while.
func (e *end) arrive(after time.Duration) {
	n := e.pair.net
	e.arriving = true
	time.AfterFunc(after, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		e.arriving = false
		o := e.other()
		if len(e.out) == 0 || e.err != nil {
			return
		}
		there, back := n.cut[[2]string{e.host, o.host}], n.cut[[2]string{o.host, e.host}]
		if there || o.err != nil && n.life(o.host) == 0 {
			if e.blocked.IsZero() {
				e.blocked = time.Now()
				n.expire(e)
			}
			return // flushLocked goes on with it
		}
		if o.err != nil || o.closed && e.out[0] != nil { // nobody is there to take it
			e.failLocked(errReset)
			return
		}
		if back { // it arrives, and that is never confirmed
			n.expire(e)
		}
		for _, data := range e.out { // what waited behind arrives with it
			if data == nil {
				o.eof = true
				break
			}
			o.in = append(o.in, data...)
		}
		e.out = nil
		o.poke()
		e.pair.forget()
	})
}

// Write implements net.Conn. It never blocks.
func (e *end) Write(data []byte) (int, error) {
	n := e.pair.net
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case e.err != nil:
		return 0, e.err
	case e.closed:
		return 0, net.ErrClosed
	}
	e.sendLocked(append([]byte{}, data...))
	return len(data), nil
}

func (e *end) sendLocked(data []byte) {
	n := e.pair.net
	e.out = append(e.out, data)
	if e.arriving || !e.blocked.IsZero() {
		return
	}
	d := n.delay()
	if n.rnd.Float64() < n.weather.Loss {
		n.counts.Lost++
		d += retransmit
	}
	if n.rnd.Float64() < n.weather.Late {
		n.counts.Late++
		d += n.within(n.weather.LateBy)
	}
	e.arrive(d)
}

// Read implements net.Conn.
func (e *end) Read(into []byte) (int, error) {
	n := e.pair.net
	for {
		n.mu.Lock()
		var wait time.Duration
		if !e.deadline.IsZero() {
			wait = time.Until(e.deadline)
		}
		switch {
		case e.closed:
			n.mu.Unlock()
			return 0, net.ErrClosed
		case len(e.in) > 0:
			got := copy(into, e.in)
			e.in = e.in[got:]
			n.mu.Unlock()
			return got, nil
		case e.err != nil:
			n.mu.Unlock()
			return 0, e.err
		case e.eof:
			n.mu.Unlock()
			return 0, errEOF
		case !e.deadline.IsZero() && wait <= 0:
			n.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		}
		n.mu.Unlock()
		if wait == 0 {
			<-e.wake
			continue
		}
		t := time.NewTimer(wait)
		select {
		case <-e.wake:
		case <-t.C:
		}
		t.Stop()
	}
}

// Close implements net.Conn.
func (e *end) Close() error {
	n := e.pair.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if e.closed {
		return net.ErrClosed
	}
	if e.err == nil {
		e.sendLocked(nil)
	}
	e.closed = true
	e.poke()
	e.pair.forget()
	return nil
}

func (e *end) LocalAddr() net.Addr  { return e.local }
func (e *end) RemoteAddr() net.Addr { return e.remote }

func (e *end) SetDeadline(t time.Time) error { return e.SetReadDeadline(t) }

func (e *end) SetReadDeadline(t time.Time) error {
	n := e.pair.net
	n.mu.Lock()
	defer n.mu.Unlock()
	e.deadline = t
	e.poke()
	return nil
}

// SetWriteDeadline does nothing: writing never blocks.
func (e *end) SetWriteDeadline(time.Time) error { return nil }
