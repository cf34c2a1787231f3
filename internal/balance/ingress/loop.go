package ingress

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	loopEvents = 128
	loopTick   = 250 * time.Millisecond
	// loopLinger is how long a loop waits for what comes next before its thread is left to others.
	loopLinger = 1 // ms
	// loopTurn bounds how much of an answer is passed on while others wait.
	loopTurn = 16
)

// loop answers the requests of many connections, one step of one of them after the other: what is to be read or
// written can be, so that nothing waits but the loop as a whole, for what the kernel tells. That saves what
// goroutines that wait cost, which is half of what a request does. It does the usual: what asks for more is handed
// to a session of its own, from where it is.
type loop struct {
	l        *lean
	epoll    int
	wake     int // an eventfd
	listener int // -1: closed
	full     bool

	ends  []*end // by file descriptor
	idle  map[*pool][]*upstream
	again []*client // have more to do than one turn
	count int       // clients
	used  atomic.Int32
	now   time.Time
	turn  int32

	mu   sync.Mutex
	come []*client // from elsewhere
	over bool      // nobody is taken any more
}

// end is a file descriptor that a loop follows: of a client, or of a connection to an instance.
type end struct {
	fd       int
	turn     int32 // tells it from another one with the same number before
	readable bool
	half     bool // the other end says nothing more
	client   *client
	upstream *upstream
}

// client is a connection of which a loop answers the requests.
type client struct {
	end
	session
	x        *exchange // the request under way; nil: none
	exchange exchange  // that is it
	up       *upstream // that was asked
	asked    asked
	deadline time.Time // for what is to come
	first    bool      // nothing was asked yet
	keep     bool      // it may ask again after this answer
	begun    bool      // the answer was begun
	ended    bool      // the answer is whole
	clean    bool      // and nothing came after it
	unsent   []byte    // of what is in out, for the client or, before the answer, for the instance
	queued   bool
	heardAt  time.Time
}

// upstream is a connection to an instance.
type upstream struct {
	end
	pool       *pool
	client     *client // that asks; nil: it is kept
	since      time.Time
	connecting bool
	kept       bool
}

// openLoops begins to answer, with so many loops, in place of who accepted by the listener.
func (l *lean) openLoops(count int) error {
	raw, err := l.listener.(*net.TCPListener).SyscallConn()
	if err != nil {
		return err
	}
	for range count {
		p := &loop{l: l, epoll: -1, wake: -1, listener: -1, idle: map[*pool][]*upstream{}}
		l.loops = append(l.loops, p)
		var duplicated error
		err := raw.Control(func(fd uintptr) { p.listener, duplicated = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3) })
		if err := errors.Join(err, duplicated); err != nil {
			return err
		}
		if err := p.open(); err != nil {
			return err
		}
	}
	for _, p := range l.loops { // which know of each other
		l.under.Add(1)
		l.looping.Go(p.run)
	}
	return l.listener.Close()
}

func (p *loop) open() (err error) {
	if p.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return err
	}
	if p.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return err
	}
	return errors.Join(
		p.follow(p.wake, unix.EPOLLIN, 0), p.follow(p.listener, unix.EPOLLIN|unix.EPOLLEXCLUSIVE, 0),
		// What is accepted has these, too.
		unix.SetsockoptInt(p.listener, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		unix.SetsockoptInt(p.listener, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1),
		unix.SetsockoptInt(p.listener, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15),
		unix.SetsockoptInt(p.listener, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15),
	)
}

func (p *loop) close() {
	for _, fd := range []int{p.epoll, p.wake, p.listener} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

func (p *loop) follow(fd int, events uint32, turn int32) error {
	return unix.EpollCtl(p.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd), Pad: turn})
}

// bothWays are the events of a connection: each is told once.
const bothWays = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET

// add follows a connection.
func (p *loop) add(e *end) error {
	p.turn++
	e.turn = p.turn
	for len(p.ends) <= e.fd {
		p.ends = append(p.ends, make([]*end, max(64, len(p.ends)))...)
	}
	p.ends[e.fd] = e
	return p.follow(e.fd, bothWays, e.turn)
}

// drop ends a connection.
func (p *loop) drop(e *end) {
	p.ends[e.fd] = nil
	unix.Close(e.fd)
}

// tell wakes a loop.
func (p *loop) tell() {
	unix.Write(p.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // which fails only when it is awake
}

// run ends when the port is closed and no request is under way.
func (p *loop) run() {
	defer p.l.under.Done()
	defer p.close()
	var events [loopEvents]unix.EpollEvent
	ticked := time.Now()
	for {
		n := p.wait(events[:])
		p.now = time.Now()
		for i := range events[:n] {
			p.take(&events[i])
		}
		for list := p.again; len(list) > 0; list = list[1:] {
			p.again = p.again[1:]
			list[0].queued = false
			p.hear(list[0])
		}
		if p.now.Sub(ticked) >= loopTick {
			ticked = p.now
			p.tick()
		}
		if p.l.closing.Load() && p.closed() {
			return
		}
	}
}

// wait returns what the kernel has to tell. As long as there is much, no other thread is made to run for it.
func (p *loop) wait(events []unix.EpollEvent) int {
	if len(p.again) > 0 {
		return epollNow(p.epoll, events, 0)
	}
	if n := epollNow(p.epoll, events, loopLinger); n > 0 {
		return n
	}
	patience := -1
	if p.count > 0 || len(p.idle) > 0 || p.full {
		patience = int(loopTick.Milliseconds())
	}
	n, _ := unix.EpollWait(p.epoll, events, patience) // which is interrupted at most
	return max(n, 0)
}

// Calls that do not wait, or hardly: the scheduler is not told of them. One that waits for a moment is interrupted
// by the signal with which the scheduler stops whoever runs.

func epollNow(fd int, events []unix.EpollEvent, patience int) int {
	n, _, errno := syscall.RawSyscall6(syscall.SYS_EPOLL_PWAIT, uintptr(fd), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), uintptr(patience), 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

func readNow(fd int, b []byte) (int, error) {
	for {
		n, _, errno := syscall.RawSyscall(syscall.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		if errno == 0 {
			return int(n), nil
		} else if errno != unix.EINTR {
			return 0, errno
		}
	}
}

// writeNow writes as much as there is room for.
func writeNow(fd int, b []byte) (done int, err error) {
	for done < len(b) {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&b[done])), uintptr(len(b)-done), unix.MSG_NOSIGNAL, 0, 0)
		switch errno {
		case 0:
			done += int(n)
		case unix.EINTR:
		case unix.EAGAIN:
			return done, nil
		default:
			return done, errno
		}
	}
	return done, nil
}

// take handles an event.
func (p *loop) take(e *unix.EpollEvent) {
	switch fd := int(e.Fd); {
	case fd == p.wake:
		var b [8]byte
		readNow(fd, b[:])
		p.takeIn()
	case fd == p.listener:
		p.accept()
	case fd < len(p.ends) && p.ends[fd] != nil && p.ends[fd].turn == e.Pad:
		is := p.ends[fd]
		broken := e.Events&(unix.EPOLLERR|unix.EPOLLHUP) != 0
		is.half = is.half || broken || e.Events&unix.EPOLLRDHUP != 0
		is.readable = is.readable || is.half || e.Events&unix.EPOLLIN != 0
		if c := is.client; c != nil {
			p.clientMay(c, e.Events&unix.EPOLLOUT != 0, broken)
		} else {
			p.upstreamMay(is.upstream, e.Events&unix.EPOLLOUT != 0)
		}
	}
}

// accept takes one connection, so that other loops get some, too.
func (p *loop) accept() {
	fd, from, err := unix.Accept4(p.listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	switch {
	case err == nil:
	case errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM):
		p.full = unix.EpollCtl(p.epoll, unix.EPOLL_CTL_DEL, p.listener, nil) == nil // until the next tick
		return
	default: // somebody else has it, or it is gone
		return
	}
	var at netip.AddrPort
	switch a := from.(type) {
	case *unix.SockaddrInet4:
		at = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		at = netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	}
	remote := net.TCPAddrFromAddrPort(at)
	if p.l.p.trusts(at.Addr()) {
		if conn, err := asConn(fd); err == nil {
			s := &session{l: p.l, tcp: conn, conn: conn, remote: remote}
			s.name()
			s.enter()
			go s.announced()
		}
		return
	}
	c := &client{first: true, session: session{l: p.l, remote: remote}}
	c.end.fd = fd
	c.acquire()
	c.name()
	if to := p.l.leastUsed(p); to != p {
		to.give(c)
		return
	}
	p.used.Add(1)
	p.begin(c)
}

// leastUsed is the loop with the fewest clients, of which one is preferred.
func (l *lean) leastUsed(best *loop) *loop {
	for _, other := range l.loops {
		if other.used.Load() < best.used.Load() {
			best = other
		}
	}
	return best
}

// give leaves a connection to a loop.
func (p *loop) give(c *client) {
	p.used.Add(1)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		unix.Close(c.fd)
		c.release()
		return
	}
	p.come = append(p.come, c)
	p.tell()
}

// takeIn begins with those who came from elsewhere.
func (p *loop) takeIn() {
	p.mu.Lock()
	come := p.come
	p.come = nil
	p.mu.Unlock()
	for _, c := range come {
		p.begin(c)
	}
}

// begin follows a client, which may have said something already.
func (p *loop) begin(c *client) {
	p.count++
	c.end.client = c
	c.deadline = p.now.Add(idlePatience)
	if c.first {
		c.deadline = p.now.Add(headPatience)
	}
	if err := p.add(&c.end); err != nil {
		p.end(c)
		return
	}
	p.requests(c)
}

// end closes a client's connection, of which no request is under way.
func (p *loop) end(c *client) {
	p.drop(&c.end)
	c.release()
	p.count--
	p.used.Add(-1)
}

// abort ends a request whose answer cannot be completed: the client sees that.
func (p *loop) abort(c *client) {
	unix.SetsockoptLinger(c.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	p.part(c, false)
	c.x.over()
	c.x = nil
	p.end(c)
}

// part lets go of the instance's connection.
func (p *loop) part(c *client, reuse bool) {
	up := c.up
	if c.up = nil; up == nil {
		return
	}
	if list := p.idle[up.pool]; reuse && !up.readable && len(list) < keptMost && !up.pool.closed.Load() {
		up.client, up.since, up.kept = nil, p.now, true
		p.idle[up.pool] = append(list, up)
		return
	}
	p.drop(&up.end)
}

// session hands a client to a session of its own, with the request that is under way.
func (p *loop) session(c *client) {
	s := &session{l: c.l, remote: c.remote, client: c.session.client, in: c.in, r: c.r, w: c.w, head: c.head, back: c.back, work: c.work}
	x := c.x
	if c.x = nil; x != nil {
		x.session, x.asked.headers = s, &s.head
	}
	conn, err := p.release(&c.end)
	p.count--
	p.used.Add(-1)
	if err == nil {
		s.tcp, s.conn = conn, conn
		s.enter()
		go s.resume(x, c.first)
		return
	}
	if x != nil {
		x.status = statusOf(errGone)
		x.over()
	}
	s.release()
}

// release makes a connection one of the runtime's.
func (p *loop) release(e *end) (*net.TCPConn, error) {
	p.ends[e.fd] = nil
	unix.EpollCtl(p.epoll, unix.EPOLL_CTL_DEL, e.fd, nil) // which would follow its duplicate
	return asConn(e.fd)
}

// asConn makes a descriptor of a connection one of the runtime's, whatever comes of that.
func asConn(fd int) (*net.TCPConn, error) {
	f := os.NewFile(uintptr(fd), "")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// tick ends what has waited for too long.
func (p *loop) tick() {
	if p.full && !p.l.closing.Load() {
		p.full = p.follow(p.listener, unix.EPOLLIN|unix.EPOLLEXCLUSIVE, 0) != nil
	}
	for _, e := range p.ends {
		switch {
		case e == nil:
		case e.client != nil:
			p.look(e.client)
		case e.upstream.client == nil && (p.now.Sub(e.upstream.since) >= keptFor || e.upstream.pool.closed.Load()):
			p.forget(e.upstream)
		}
	}
}

// look is about a client that may have waited for too long, or be gone.
func (p *loop) look(c *client) {
	switch x := c.x; {
	case x == nil:
		if p.now.After(c.deadline) {
			p.end(c)
		}
	case c.half && len(c.unsent) == 0 && p.now.Sub(c.heardAt) >= lookEach:
		if !c.begun {
			x.status = statusOf(errGone)
		}
		p.abort(c)
	case !c.begun && p.now.After(c.deadline):
		if c.up != nil && c.up.connecting {
			p.refused(c, os.ErrDeadlineExceeded)
		} else {
			p.fail(c, errTooLong)
		}
	}
}

// forget ends a connection that is kept.
func (p *loop) forget(up *upstream) {
	list := p.idle[up.pool]
	for i, other := range list {
		if other == up {
			list = append(list[:i], list[i+1:]...)
			break
		}
	}
	if p.idle[up.pool] = list; len(list) == 0 {
		delete(p.idle, up.pool)
	}
	p.drop(&up.end)
}

// closed is about a port that is being closed: it reports whether nothing is under way.
func (p *loop) closed() bool {
	if p.listener >= 0 {
		unix.Close(p.listener)
		p.listener = -1
	}
	p.takeIn()
	for _, e := range p.ends {
		switch {
		case e == nil || e.client == nil:
		case e.client.x == nil && (e.client.w == 0 || p.l.ending.Load()):
			p.end(e.client)
		case p.l.ending.Load():
			p.abort(e.client)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.count > 0 || len(p.come) > 0 {
		return false
	}
	p.over = true
	for _, e := range p.ends {
		if e != nil {
			p.drop(e)
		}
	}
	return true
}
