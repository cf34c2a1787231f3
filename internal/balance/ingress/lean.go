package ingress

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	headPatience = 30 * time.Second // for a head, and for what is next of a request's body
	idlePatience = 3 * time.Minute  // between requests
	lookEach     = time.Second      // while an instance says nothing: whether the client is there still
	hardlyLater  = 10 * time.Second // a deadline is not set anew for less
)

// lean answers the requests of one port. What it reads itself is plain HTTP/1.1, in one goroutine a
// connection and as few system calls as can be; any other connection is handed to net/http.
type lean struct {
	p      *proxy
	secure bool
	tls    *tls.Config
	others *handover
	std    *http.Server // serves the others

	mu       sync.Mutex
	listener net.Listener
	sessions map[*session]struct{}
	closing  atomic.Bool
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
	for wait := time.Duration(0); ; {
		c, err := l.listener.Accept()
		switch {
		case err == nil:
			wait = 0
			s := &session{l: l, tcp: c.(*net.TCPConn), conn: c, remote: c.RemoteAddr()}
			l.mu.Lock()
			l.sessions[s] = struct{}{}
			l.under.Add(1)
			l.mu.Unlock()
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
	err := l.std.Shutdown(ctx)
	ended := make(chan struct{})
	go func() { l.under.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-ctx.Done():
		err = errors.Join(err, ctx.Err())
		l.each(func(s *session) { s.tcp.Close() })
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

// session is a client's connection.
type session struct {
	l      *lean
	tcp    *net.TCPConn
	conn   net.Conn // the same, or TLS on it
	remote net.Addr
	client string // its address without a port
	given  bool   // to net/http
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

var (
	ins   = sync.Pool{New: func() any { b := make([]byte, headRoom); return &b }}
	works = sync.Pool{New: func() any { return &work{out: make([]byte, 0, 24<<10), back: make([]byte, 16<<10)} }}
)

func (s *session) run() {
	in := ins.Get().(*[]byte)
	s.in = *in
	defer func() {
		s.l.mu.Lock()
		delete(s.l.sessions, s)
		s.l.mu.Unlock()
		if !s.given { // what was read goes with it
			ins.Put(in)
			s.conn.Close()
		}
		s.l.under.Done()
	}()
	if !s.begin() {
		return
	}
	for first := true; ; first = false {
		size, ok := s.await(first)
		if !ok || !s.answer(size) {
			return
		}
	}
}

// begin makes a connection ready for requests.
func (s *session) begin() bool {
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
	if a, ok := s.remote.(*net.TCPAddr); ok {
		s.client = a.AddrPort().Addr().Unmap().String()
	}
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

// answer answers the request at hand, and reports whether there may be another one.
func (s *session) answer(size int) bool {
	h, p, began := &s.head, s.l.p, time.Now()
	a := asked{method: string(h.method), host: nameOf(string(h.host)), target: string(h.target), client: s.client, from: addressOf(s.remote), to: addressOf(s.tcp.LocalAddr()), secure: s.l.secure, length: h.length, headers: h}
	raw, _, _ := strings.Cut(a.target, "?")
	if a.path = raw; strings.IndexByte(raw, '%') >= 0 {
		decoded, err := url.PathUnescape(raw)
		if err != nil {
			return s.handOver()
		}
		a.path = decoded
	}
	a.path = resolved(a.path)
	rt, no := p.lead(&a), p.challenge(&a)
	if no == nil && rt != nil && rt.elsewhere(raw) {
		return s.handOver()
	}
	body := s.in[s.r+size : min(int64(s.w), int64(s.r+size)+h.length)]
	rest := h.length - int64(len(body))
	if no == nil {
		no = p.admit(rt, &a)
	}
	if no != nil {
		s.r += size + len(body)
		keep := s.refuse(no, rest)
		p.done(rt, &a, no.status, int64(len(no.text)), began)
		return keep
	}
	s.work = works.Get().(*work)
	x := exchange{session: s, route: rt, asked: &a, body: body, rest: rest, harmless: h.length == 0 && harmlessMethod(a.method)}
	keep := x.forward(size)
	if cap(s.work.back)+cap(s.work.out) <= 128<<10 {
		works.Put(s.work)
	}
	s.work = nil
	rt.leave()
	p.done(rt, &a, x.status, x.sent, began)
	return keep
}

// refuse answers by itself. rest is what has not been read of the request.
func (s *session) refuse(no *refusal, rest int64) (keep bool) {
	keep = rest == 0 && !s.head.close && !s.l.closing.Load()
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
	if _, err := s.conn.Write(b.Bytes()); err != nil {
		return false
	}
	if rest > 0 {
		s.linger()
	}
	return keep
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

// exchange is one request on its way.
type exchange struct {
	*session
	route    *route
	asked    *asked
	body     []byte // what is there of the request's body
	rest     int64  // what is to come
	harmless bool   // it may be sent again though an instance may have seen it

	status   int
	sent     int64 // bytes of the answer's body
	begun    bool  // something of the answer was sent, or of the body that is to come was taken
	cookie   string
	instance *backend
	copied   chan error
	stop     atomic.Bool
}

var (
	errGone   = errors.New("the client has gone")
	errStale  = errors.New("a connection that was kept had ended")
	errUnsent = fmt.Errorf("%w before the request was sent", errStale)
)

// forward leads the request to an instance, and the answer back.
func (x *exchange) forward(size int) (keep bool) {
	s, w := x.session, x.work
	if x.route.Sticky {
		x.cookie = x.route.cookieIn(&s.head.fields)
	}
	w.out = x.request(w.out[:0])
	w.out = append(w.out, x.body...)
	s.r += size + len(x.body)
	var tried []*backend
	last := errNobody
	for {
		b := choose(x.route, x.cookie, tried)
		if b == nil {
			break
		}
		x.instance, x.asked.instance = b, b.Instance
		keep, last = x.try(b)
		if last == nil {
			return keep
		}
		tried = append(tried, b)
		if x.begun || errors.Is(last, errGone) {
			break
		}
		var dial *net.OpError
		notSent := errors.As(last, &dial) && dial.Op == "dial"
		if !notSent && !(x.harmless && !errors.Is(last, errTooLong)) || len(tried) > x.route.Retries {
			break
		}
	}
	x.status = statusOf(last)
	if errors.Is(last, errGone) {
		return false
	}
	no := &refusal{status: x.status, text: fmt.Sprintf("%s: %v\n", x.route.Service, last)}
	x.sent = int64(len(no.text))
	return s.refuse(no, x.rest)
}

// try asks one instance. A connection that was kept may have been closed just now: then another one is taken.
func (x *exchange) try(b *backend) (keep bool, err error) {
	until := time.Now().Add(x.route.Timeout)
	saying := x.route.ProxyProtocol
	for again := saying == 0; ; again = false {
		l, kept, err := b.pool.get(again)
		if err != nil {
			return false, err
		}
		if saying != 0 {
			if _, err := l.Write(proxyLine(saying, x.asked.from, x.asked.to)); err != nil {
				l.Close()
				return false, err
			}
		}
		reuse, keep, err := x.ask(l, until, kept)
		if err == nil && reuse && saying == 0 {
			b.pool.put(l)
		} else {
			l.Close()
		}
		if err == nil || !errors.Is(err, errStale) {
			return keep, err
		}
		if !x.harmless && !errors.Is(err, errUnsent) {
			return false, err
		}
	}
}

// request is the head that an instance gets. Who asked, and how, is said in headers; what the client itself
// said there is not believed.
func (x *exchange) request(out []byte) []byte {
	h := &x.head
	out = append(append(out, h.method...), ' ')
	target := h.target
	base := ""
	if x.route.StripPath {
		base = strings.TrimRight(x.route.Path, "/")
		target = bytes.TrimLeft(target[len(base):], "/")
		out = append(out, '/')
	}
	out = append(append(out, target...), " HTTP/1.1\r\n"...)
	for i := range h.list {
		switch f := &h.list[i]; f.kind {
		case connectionField, hopField, forwardField:
		default:
			out = append(out, h.raw[f.start:f.end]...)
		}
	}
	out = append(append(out, "X-Forwarded-For: "...), x.client...)
	out = append(append(out, "\r\nX-Forwarded-Host: "...), h.host...)
	out = append(append(out, "\r\nX-Forwarded-Proto: "...), schemeOf(x.l.secure)...)
	if base != "" {
		out = append(append(out, "\r\nX-Forwarded-Prefix: "...), base...)
	}
	return append(out, "\r\n\r\n"...)
}

// ask sends the request on a connection, and passes on what comes back. reuse says that the connection can
// take another request.
func (x *exchange) ask(l *link, until time.Time, kept bool) (reuse, keep bool, err error) {
	w := x.work
	if n, err := l.Write(w.out); err != nil {
		if kept && n == 0 {
			err = errUnsent
		} else if kept {
			err = errStale
		}
		return false, false, err
	}
	if x.rest > 0 {
		x.begun = true
		x.copied = make(chan error, 1)
		go func() { x.copied <- x.copyBody(l.TCPConn) }()
		defer func() { // the answer is there, or there will be none
			x.stop.Store(true)
			x.conn.SetReadDeadline(time.Unix(1, 0))
			l.SetWriteDeadline(time.Unix(1, 0))
			sent := <-x.copied // it may have sent all, and not have said so yet
			reuse, keep = reuse && sent == nil && l.SetWriteDeadline(time.Time{}) == nil, keep && sent == nil
			x.readBy = time.Time{}
		}()
	}
	size, n, isHead := 0, 0, x.asked.method == http.MethodHead
	for {
		if n == len(w.back) {
			if len(w.back) >= 1<<20 {
				return false, false, errHead
			}
			w.back = append(w.back, make([]byte, len(w.back))...)
		}
		m, err := x.readFrom(l, w.back[n:], until)
		if m == 0 {
			if kept && n == 0 && !errors.Is(err, errTooLong) && !errors.Is(err, errGone) && x.rest == 0 {
				err = errStale
			} else if err == io.EOF {
				err = errAnswerEnds
			}
			return false, false, err
		}
		n += m
		if size, err = x.back.parse(w.back[:n], isHead); err != nil {
			return false, false, err
		}
		for size > 0 && x.back.status < 200 { // of what goes before an answer, clients get what they can use
			if x.back.status == http.StatusSwitchingProtocols {
				return false, false, errAnswer
			}
			if x.back.status != http.StatusContinue {
				w.out = append(x.answerHead(w.out[:0], ""), "\r\n"...)
				x.begun = true
				if _, err := x.conn.Write(w.out); err != nil {
					return false, false, errGone
				}
			}
			n = copy(w.back, w.back[size:n])
			if size = 0; n > 0 {
				if size, err = x.back.parse(w.back[:n], isHead); err != nil {
					return false, false, err
				}
			}
		}
		if size > 0 {
			break
		}
	}
	x.begun, x.status = true, x.back.status
	keep = !x.head.close && x.back.framing != byClose && !x.l.closing.Load()
	last := ""
	if x.route.Sticky && x.cookie != x.instance.digest {
		last = x.route.setCookie(x.instance)
	}
	w.out = x.answerHead(w.out[:0], last)
	if !keep {
		w.out = append(w.out, "Connection: close\r\n"...)
	}
	w.out = append(w.out, "\r\n"...)
	clean, err := x.passOn(l, w.back[size:n])
	if err != nil { // the client sees that its answer is not whole
		x.tcp.SetLinger(0)
		return false, false, nil
	}
	return clean && x.back.keep, keep, nil
}

var errAnswerEnds = errors.New("the instance ended the connection without an answer")

// answerHead is the head that the client gets, but for its end.
func (x *exchange) answerHead(out []byte, cookie string) []byte {
	a := &x.back
	out = append(append(append(out, "HTTP/1.1 "...), a.reason...), "\r\n"...)
	lengths := 0
	for i := range a.list {
		f := &a.list[i]
		switch f.kind {
		case connectionField, hopField, encodingField:
			continue
		case lengthField:
			if lengths++; lengths > 1 || a.framing == byChunks {
				continue
			}
		case exoticField:
			if n := a.name(i); len(n) != len("trailer") || n[0]|0x20 != 't' {
				continue
			}
		}
		out = append(append(append(out, a.name(i)...), ": "...), a.value(i)...)
		out = append(out, "\r\n"...)
	}
	if a.framing == byChunks {
		out = append(out, "Transfer-Encoding: chunked\r\n"...)
	}
	if cookie != "" {
		out = append(append(append(out, "Set-Cookie: "...), cookie...), "\r\n"...)
	}
	return out
}

// spliceFrom is from how many bytes on a body is moved within the kernel.
const spliceFrom = 128 << 10

// passOn sends the head in out, and the body, of which some came with its head. clean says that nothing came
// after it.
func (x *exchange) passOn(l *link, came []byte) (clean bool, err error) {
	w := x.work
	var follow chunks
	left := x.back.length
	for {
		ends := false
		extra := 0
		switch x.back.framing {
		case byLength:
			if int64(len(came)) > left {
				extra = len(came) - int(left)
				came = came[:left]
			}
			left -= int64(len(came))
			ends = left == 0
		case byChunks:
			n, done, err := follow.scan(came)
			if err != nil {
				return false, err
			}
			extra, ends = len(came)-n, done
			came = came[:n]
		}
		x.sent += int64(len(came))
		w.out = append(w.out, came...)
		if len(w.out) > 0 {
			if _, err := x.conn.Write(w.out); err != nil {
				return false, err
			}
			w.out = w.out[:0]
		}
		if ends {
			return extra == 0, nil
		}
		if to, ok := x.conn.(*net.TCPConn); ok && x.back.framing == byLength && left >= spliceFrom {
			n, err := x.splice(to, l, left)
			x.sent += n
			return err == nil, err
		}
		n, err := x.readFrom(l, w.back, time.Time{})
		if came = w.back[:n]; n == 0 {
			if err == io.EOF && x.back.framing == byClose {
				return false, nil
			}
			return false, err
		}
		if x.back.framing != byLength || left > 0 {
			continue
		}
	}
}

// splice moves what is left of a body.
func (x *exchange) splice(to *net.TCPConn, l *link, left int64) (moved int64, err error) {
	for moved < left {
		if err := l.SetReadDeadline(time.Now().Add(lookEach)); err != nil {
			return moved, err
		}
		l.wake = time.Time{}
		n, err := to.ReadFrom(io.LimitReader(l.TCPConn, left-moved))
		moved += n
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if x.gone() {
				return moved, errGone
			}
		case err != nil:
			return moved, err
		case n == 0:
			return moved, io.ErrUnexpectedEOF
		}
	}
	return moved, nil
}

// readFrom reads what an instance says, until a time if that is given, and as long as the client is there.
func (x *exchange) readFrom(l *link, b []byte, until time.Time) (int, error) {
	for {
		now := time.Now()
		wake := now.Add(lookEach)
		if !until.IsZero() && until.Before(wake) {
			wake = until
		}
		if l.wake.Sub(now) < lookEach/2 || l.wake.After(wake) {
			if err := l.SetReadDeadline(wake); err != nil {
				return 0, err
			}
			l.wake = wake
		}
		n, err := l.Read(b)
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		if x.gone() {
			return 0, errGone
		}
		if !until.IsZero() && !time.Now().Before(until) {
			return 0, errTooLong
		}
	}
}

// copyBody sends what is to come of the request's body, while the answer may come already.
func (x *exchange) copyBody(to *net.TCPConn) error {
	for left := x.rest; left > 0; {
		if err := x.conn.SetReadDeadline(time.Now().Add(headPatience)); err != nil {
			return err
		}
		if x.stop.Load() {
			return os.ErrDeadlineExceeded
		}
		n, err := to.ReadFrom(io.LimitReader(x.conn, left))
		left -= n
		switch {
		case n > 0 && errors.Is(err, os.ErrDeadlineExceeded): // it is slow
		case err != nil:
			return err
		case n == 0:
			return io.ErrUnexpectedEOF
		}
	}
	return nil
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
