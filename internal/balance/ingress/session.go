package ingress

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// session is a client's connection.
type session struct {
	l      *lean
	tcp    *net.TCPConn
	conn   net.Conn // the same, or TLS on it
	remote net.Addr
	client string // its address without a port
	given  bool   // to net/http, or to a loop
	idle   atomic.Bool

	in     []byte // what came: [r:w] was not used yet
	r, w   int
	readBy time.Time // the deadline of reads
	head   head
	back   answer
	work   *work
}

// work is what a request needs while it is under way.
type work struct {
	out  []byte
	back []byte
}

// grow makes more room for the head of an answer, within bounds.
func (w *work) grow() bool {
	if len(w.back) >= 1<<20 {
		return false
	}
	w.back = append(w.back, make([]byte, len(w.back))...)
	return true
}

var (
	ins   = sync.Pool{New: func() any { b := make([]byte, headRoom); return &b }}
	works = sync.Pool{New: func() any { return &work{out: make([]byte, 0, 24<<10), back: make([]byte, 16<<10)} }}
)

// enter has a session known to those who shut down, until leave.
func (s *session) enter() {
	s.l.mu.Lock()
	s.l.sessions[s] = struct{}{}
	s.l.under.Add(1)
	s.l.mu.Unlock()
}

func (s *session) leave() {
	s.l.mu.Lock()
	delete(s.l.sessions, s)
	s.l.mu.Unlock()
	if !s.given { // what was read goes with it
		s.release()
		s.conn.Close()
	}
	s.l.under.Done()
}

// acquire gives a session room for what comes, until release.
func (s *session) acquire() { s.in = *ins.Get().(*[]byte) }

func (s *session) release() {
	in := s.in
	s.in = nil
	ins.Put(&in)
}

// name notes the address that a client has.
func (s *session) name() { s.client = addressOf(s.remote).Addr().Unmap().String() }

func (s *session) run() {
	s.acquire()
	defer s.leave()
	if s.begin() {
		s.requests(true)
	}
}

// requests answers one request after the other.
func (s *session) requests(first bool) {
	for ; ; first = false {
		size, ok := s.await(first)
		if !ok || !s.answer(size) {
			return
		}
	}
}

// begin makes a connection ready for requests.
func (s *session) begin() bool {
	if s.l.p.trusts(addressOf(s.remote).Addr()) {
		if !s.hearProxy() {
			return false
		}
		if s.l.tls != nil {
			s.conn = &replay{Conn: s.tcp, rest: bytes.Clone(s.in[s.r:s.w]), from: s.remote}
			s.r, s.w = 0, 0
		}
	}
	if s.l.tls != nil {
		c := tls.Server(s.conn, s.l.tls)
		ctx, cancel := context.WithTimeout(context.Background(), headPatience)
		err := c.HandshakeContext(ctx)
		cancel()
		if s.conn = c; err != nil {
			return false
		}
		if c.ConnectionState().NegotiatedProtocol == "h2" {
			s.give(c)
			return false
		}
	}
	s.name()
	return true
}

// resume goes on with a client that a loop had, and with the request that it had begun, if any; such a client goes back.
func (s *session) resume(x *exchange, first bool) {
	defer s.leave()
	if x != nil && (!x.complete() || s.goBack(false)) {
		return
	}
	s.requests(first)
}

// goBack leaves the client to a loop, which it may not have asked anything yet.
func (s *session) goBack(first bool) bool {
	if s.l.closing.Load() {
		return false
	}
	raw, err := s.tcp.SyscallConn()
	if err != nil {
		return false
	}
	c := &client{first: first, session: session{l: s.l, remote: s.remote, client: s.client, in: s.in, r: s.r, w: s.w}}
	var duplicated error
	if err := raw.Control(func(fd uintptr) { c.fd, duplicated = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3) }); err != nil || duplicated != nil {
		return false
	}
	s.given, c.readable = true, true
	s.tcp.Close()
	s.l.leastUsed(s.l.loops[0]).give(c)
	return true
}

func (s *session) give(c net.Conn) {
	s.given = true
	s.l.others.give(c)
}

// handOver leaves the connection, from the head at hand on, to net/http.
func (s *session) handOver() bool {
	if s.tcp.SetReadDeadline(time.Time{}) == nil {
		s.give(&replay{Conn: s.conn, rest: s.in[s.r:s.w], from: s.remote})
	}
	return false
}

// await reads until the head of a request is there, and returns its length; ok is false when this session is
// over.
func (s *session) await(first bool) (size int, ok bool) {
	if s.r > 0 {
		s.w = copy(s.in, s.in[s.r:s.w])
		s.r = 0
	}
	patience := idlePatience
	if first {
		patience = headPatience
	}
	for {
		if s.w > 0 {
			whole, odd := wholeHead(s.in[:s.w])
			if whole {
				if size, ok = s.head.parse(s.in[:s.w]); ok {
					return size, true
				}
			}
			if whole || odd {
				return 0, s.handOver()
			}
			if patience == idlePatience { // it has begun
				patience, s.readBy = headPatience, time.Time{}
			}
		}
		by := time.Now().Add(patience)
		if d := by.Sub(s.readBy); d > hardlyLater || d < 0 {
			if s.conn.SetReadDeadline(by) != nil {
				return 0, false
			}
			s.readBy = by
		}
		if s.w == 0 {
			s.idle.Store(true)
			if s.l.closing.Load() { // whoever closes sees that it is idle, or it sees that
				return 0, false
			}
		}
		n, err := s.conn.Read(s.in[s.w:])
		s.idle.Store(false)
		if s.w += n; n == 0 && err != nil {
			return 0, false
		}
		if s.w > n { // a head that comes in parts may take its time once
			patience = max(0, time.Until(s.readBy))
		}
	}
}

// asks takes the request at hand for what it is; ok is false for one that only net/http can answer. raw is its path
// as it was sent.
func (s *session) asks(a *asked) (rt *route, raw string, ok bool) {
	h := &s.head
	*a = asked{method: method(h.method), host: nameOf(string(h.host)), target: string(h.target), client: s.client, from: addressOf(s.remote), secure: s.l.secure, length: h.length, headers: h}
	raw, _, _ = strings.Cut(a.target, "?")
	if a.path = raw; strings.IndexByte(raw, '%') >= 0 {
		decoded, err := url.PathUnescape(raw)
		if err != nil {
			return nil, raw, false
		}
		a.path = decoded
	}
	a.path = resolved(a.path)
	return s.l.p.lead(a), raw, true
}

// method is a text of its own for few.
func method(b []byte) string {
	switch string(b) {
	case http.MethodGet:
		return http.MethodGet
	case http.MethodHead:
		return http.MethodHead
	case http.MethodPost:
		return http.MethodPost
	}
	return string(b)
}

// answer answers the request at hand, and reports whether there may be another one.
func (s *session) answer(size int) bool {
	p, began := s.l.p, time.Now()
	a := &asked{}
	rt, raw, ok := s.asks(a)
	if !ok {
		return s.handOver()
	}
	a.to = addressOf(s.tcp.LocalAddr())
	no := p.challenge(a)
	if no == nil && rt != nil && rt.elsewhere(raw) {
		return s.handOver()
	}
	x := &exchange{}
	x.set(s, rt, a, size, began)
	if no == nil {
		no = p.admit(rt, a)
	}
	if no != nil {
		s.r += size + len(x.body)
		keep := s.refuse(no, x.rest)
		p.done(rt, a, no.status, int64(len(no.text)), began)
		return keep
	}
	x.start()
	return x.complete()
}

// refuse answers by itself. rest is what has not been read of the request.
func (s *session) refuse(no *refusal, rest int64) (keep bool) {
	keep = rest == 0 && !s.head.close && !s.l.closing.Load()
	if _, err := s.conn.Write(s.refusal(no, keep)); err != nil {
		return false
	}
	if rest > 0 {
		s.linger()
	}
	return keep
}

// refusal is what the client is sent.
func (s *session) refusal(no *refusal, keep bool) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\nContent-Length: %d\r\n", no.status, http.StatusText(no.status), len(no.text))
	if no.header != "" {
		fmt.Fprintf(&b, "%s: %s\r\n", no.header, no.value)
	}
	if !keep {
		b.WriteString("Connection: close\r\n")
	}
	b.WriteString("\r\n")
	if string(s.head.method) != http.MethodHead {
		b.WriteString(no.text)
	}
	return b.Bytes()
}

// linger lets an answer arrive though the client sends on: a connection that is closed with something
// unread is reset.
func (s *session) linger() {
	if c, ok := s.conn.(interface{ CloseWrite() error }); ok && c.CloseWrite() == nil && s.conn.SetReadDeadline(time.Now().Add(time.Second)) == nil {
		io.CopyN(io.Discard, s.conn, 256<<10)
	}
}

// gone reports whether the client has closed its end.
func (s *session) gone() (gone bool) {
	raw, err := s.tcp.SyscallConn()
	if err != nil {
		return true
	}
	err = raw.Control(func(fd uintptr) {
		list := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(list, 0)
		gone = err == nil && n > 0 && list[0].Revents != 0
	})
	return gone || err != nil
}
