package ingress

import (
	"errors"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// clientMay goes on with a client that can be read from, or written to, or that is gone.
func (p *loop) clientMay(c *client, writable, gone bool) {
	switch {
	case c.x == nil:
		p.requests(c)
	case gone:
		if !c.begun {
			c.x.status = statusOf(errGone)
		}
		p.abort(c)
	case writable && c.begun && len(c.unsent) > 0:
		p.toClient(c)
		p.hear(c)
	}
}

// requests answers what a client asks, until that takes others, or there is nothing more.
func (p *loop) requests(c *client) {
	for c.x == nil {
		if c.r > 0 {
			c.w = copy(c.in, c.in[c.r:c.w])
			c.r = 0
		}
		if c.w > 0 {
			whole, odd := wholeHead(c.in[:c.w])
			if whole {
				if size, ok := c.head.parse(c.in[:c.w]); ok {
					if !p.request(c, size) {
						return
					}
					continue
				}
			}
			if whole || odd {
				p.session(c)
				return
			}
			if !c.first { // it has begun
				c.first, c.deadline = true, p.now.Add(headPatience)
			}
		}
		if !c.readable {
			return
		}
		n, err := readNow(c.fd, c.in[c.w:])
		if err == unix.EAGAIN {
			c.readable = false
			return
		}
		if n == 0 || err != nil {
			p.end(c)
			return
		}
		if c.w+n < len(c.in) && !c.half { // that was all
			c.readable = false
		}
		c.w += n
	}
}

// request answers the request at hand, or begins to; it returns false where the client is not the loop's any more.
func (p *loop) request(c *client, size int) bool {
	s, a := &c.session, &c.asked
	rt, raw, ok := s.asks(a)
	if !ok || s.head.length > int64(c.w-size) || rt != nil && (rt.elsewhere(raw) || rt.users != nil || rt.ProxyProtocol != 0) {
		p.session(c)
		return false
	}
	c.first = false
	no := p.l.p.challenge(a)
	x := &c.exchange
	x.set(s, rt, a, size, p.now)
	if no == nil {
		no = p.l.p.admit(rt, a)
	}
	if no != nil {
		p.l.p.done(rt, a, no.status, int64(len(no.text)), p.now)
		return p.refuse(c, x, no)
	}
	c.x, c.keep, c.begun, c.ended, c.clean, c.unsent, c.heardAt = x, false, false, false, false, nil, p.now
	x.start()
	b := choose(rt, x.cookie, nil)
	if b == nil {
		x.status = statusOf(errNobody)
		no := x.nobody(errNobody)
		x.sent = int64(len(no.text))
		x.over()
		c.x = nil
		return p.refuse(c, x, no)
	}
	x.instance, a.instance = b, b.Instance
	c.deadline = p.now.Add(rt.Timeout)
	c.work.out = append(x.request(c.work.out[:0]), x.body...)
	if !p.reach(c) {
		return false
	}
	if !c.up.connecting {
		return p.send(c)
	}
	return true
}

// refuse answers by itself.
func (p *loop) refuse(c *client, x *exchange, no *refusal) bool {
	keep := !c.head.close && !p.l.closing.Load()
	text := c.refusal(no, keep)
	c.r += x.size + len(x.body)
	c.deadline = p.now.Add(idlePatience)
	if n, err := writeNow(c.fd, text); err != nil || n < len(text) || !keep {
		p.end(c)
		return false
	}
	return true
}

// reach takes a connection to the instance, or begins one.
func (p *loop) reach(c *client) bool {
	at := c.x.instance.pool
	if list := p.idle[at]; len(list) > 0 {
		up := list[len(list)-1]
		if p.idle[at] = list[:len(list)-1]; len(list) == 1 {
			delete(p.idle, at)
		}
		up.client, c.up = c, up
		return true
	}
	to, err := netip.ParseAddrPort(at.address)
	if err != nil {
		p.fail(c, err)
		return false
	}
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	if to.Addr().Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		p.refused(c, err)
		return false
	}
	up := &upstream{pool: at, client: c, connecting: true}
	up.end.fd, up.end.upstream = fd, up
	c.up = up
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15), unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15), p.add(&up.end),
	)
	if err == nil {
		if err = unix.Connect(fd, sa); err == unix.EINPROGRESS {
			err = nil
		}
	}
	if err != nil {
		p.refused(c, err)
		return false
	}
	if c.x.route.Timeout > dialPatience {
		c.deadline = p.now.Add(dialPatience)
	}
	return true
}

// upstreamMay goes on with an instance's connection.
func (p *loop) upstreamMay(up *upstream, writable bool) {
	c := up.client
	switch {
	case c == nil: // it is kept, and there is nothing to be said: the other end has gone, or is not to be relied on
		if up.readable {
			p.forget(up)
		}
	case up.connecting:
		no, err := unix.GetsockoptInt(up.fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && no != 0 {
			err = unix.Errno(no)
		}
		if err != nil {
			p.refused(c, err)
		} else if writable {
			up.connecting, c.deadline = false, p.now.Add(c.x.route.Timeout)
			p.send(c)
		}
	case !c.begun && len(c.unsent) > 0:
		if writable {
			p.send(c)
		}
	default:
		p.hear(c)
	}
}

// refused is about an instance that takes no connection.
func (p *loop) refused(c *client, err error) {
	c.x.instance.pool.shunned.Store(time.Now().Add(shunFor).UnixNano())
	to, _ := netip.ParseAddrPort(c.x.instance.pool.address)
	p.fail(c, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: os.NewSyscallError("connect", err)})
}

// fail is about an instance that did not answer: a session sees to what is to be done.
func (p *loop) fail(c *client, err error) {
	p.part(c, false)
	c.x.failed = err
	p.session(c)
}

// send sends the request; it returns false where the client is not the loop's any more.
func (p *loop) send(c *client) bool {
	text := c.unsent
	if text == nil {
		text = c.work.out
	}
	n, err := writeNow(c.up.fd, text)
	if err != nil {
		if c.up.kept && n == 0 && c.unsent == nil {
			err = errUnsent
		} else if c.up.kept {
			err = errStale
		}
		p.fail(c, err)
		return false
	}
	c.unsent = text[n:]
	return true
}

// hear passes on what the instance says, as far as the client takes it.
func (p *loop) hear(c *client) {
	for turns := 0; c.x != nil && c.up != nil && c.up.readable && len(c.unsent) == 0; turns++ {
		if turns == loopTurn {
			if !c.queued {
				c.queued = true
				p.again = append(p.again, c)
			}
			return
		}
		x, up, from := c.x, c.up, 0
		if !c.begun {
			if from = x.heard; from == len(c.work.back) && !c.work.grow() {
				p.fail(c, errHead)
				return
			}
		}
		n, err := readNow(up.fd, c.work.back[from:])
		if err == unix.EAGAIN {
			up.readable = false
			return
		}
		if n == 0 || err != nil {
			p.silent(c, err)
			return
		}
		if from+n < len(c.work.back) && !up.half {
			up.readable = false
		}
		c.heardAt = p.now
		came := c.work.back[from : from+n]
		if !c.begun {
			x.heard += n
			size, err := c.back.parse(c.work.back[:x.heard], x.asked.method == http.MethodHead)
			if err != nil {
				p.fail(c, err)
				return
			}
			if size == 0 {
				continue
			}
			if c.back.status < 200 || c.back.framing == byLength && c.back.length-int64(x.heard-size) >= spliceFrom {
				p.sessionWith(c)
				return
			}
			c.begun, c.keep, came = true, x.begins(), c.work.back[size:x.heard]
		}
		if c.ended, c.clean, err = x.take(came); err != nil {
			p.abort(c)
			return
		}
		c.unsent = c.work.out
		p.toClient(c)
	}
}

// silent is about an instance that says nothing more.
func (p *loop) silent(c *client, err error) {
	x := c.x
	switch {
	case !c.begun && c.up.kept && x.heard == 0:
		p.fail(c, errStale)
	case !c.begun && err == nil:
		p.fail(c, errAnswerEnds)
	case !c.begun:
		p.fail(c, err)
	case err == nil && c.back.framing == byClose:
		c.ended, c.clean = true, false
		p.finish(c)
	default:
		p.abort(c)
	}
}

// sessionWith hands the client to a session together with the instance's connection, and what came by it.
func (p *loop) sessionWith(c *client) {
	up := c.up
	conn, err := p.release(&up.end)
	if c.up = nil; err != nil {
		p.fail(c, err)
		return
	}
	l, err := newLink(conn)
	if err != nil {
		p.fail(c, err)
		return
	}
	c.x.taken, c.x.kept = l, up.kept
	p.session(c)
}

// toClient sends what there is of the answer.
func (p *loop) toClient(c *client) {
	n, err := writeNow(c.fd, c.unsent)
	if err != nil {
		p.abort(c)
		return
	}
	if c.unsent = c.unsent[n:]; len(c.unsent) > 0 {
		return // until there is room
	}
	c.work.out = c.work.out[:0]
	if c.ended {
		p.finish(c)
	}
}

// finish is about an answer that has been sent.
func (p *loop) finish(c *client) {
	x := c.x
	p.part(c, c.clean && c.back.keep)
	c.r += x.size + len(x.body)
	x.over()
	c.x = nil
	if !c.keep || p.l.closing.Load() && c.w == c.r {
		p.end(c)
		return
	}
	c.deadline = p.now.Add(idlePatience)
	if c.r < c.w || c.readable {
		p.requests(c)
	} else {
		c.r, c.w = 0, 0
	}
}
