package ingress

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// exchange is one request on its way.
type exchange struct {
	*session
	route    *route
	asked    *asked
	size     int    // of the head
	body     []byte // what is there of the request's body
	rest     int64  // what is to come
	harmless bool   // it may be sent again though an instance may have seen it
	began    time.Time

	status   int
	sent     int64 // bytes of the answer's body
	begun    bool  // something of the answer was sent, or of the body that is to come was taken
	cookie   string
	instance *backend
	left     int64  // of an answer's body, where that is known
	follow   chunks // where that comes in chunks
	copied   chan error
	stop     atomic.Bool

	// What a loop has begun: it asked an instance, which failed, or has said so much by this connection.
	failed error
	taken  *link
	kept   bool
	heard  int
}

var (
	errGone   = errors.New("the client has gone")
	errStale  = errors.New("a connection that was kept had ended")
	errUnsent = fmt.Errorf("%w before the request was sent", errStale)
)

// set makes it the request at hand.
func (x *exchange) set(s *session, rt *route, a *asked, size int, began time.Time) {
	body := s.in[s.r+size : min(int64(s.w), int64(s.r+size)+s.head.length)]
	*x = exchange{
		session: s, route: rt, asked: a, size: size, body: body, rest: s.head.length - int64(len(body)), began: began,
		harmless: s.head.length == 0 && harmlessMethod(a.method),
	}
}

// start makes ready for asking instances.
func (x *exchange) start() {
	x.session.work = works.Get().(*work)
	if x.route.Sticky {
		x.cookie = x.route.cookieIn(&x.head.fields)
	}
}

// over ends what start began, and counts the answer.
func (x *exchange) over() {
	if cap(x.work.back)+cap(x.work.out) <= 128<<10 {
		works.Put(x.work)
	}
	x.session.work = nil
	x.route.leave()
	x.l.p.done(x.route, x.asked, x.status, x.sent, x.began)
}

// complete answers, and reports whether there may be another request.
func (x *exchange) complete() bool {
	keep := x.forward()
	x.over()
	return keep
}

// forward leads the request to an instance, and the answer back.
func (x *exchange) forward() (keep bool) {
	s, w := x.session, x.work
	w.out = append(x.request(w.out[:0]), x.body...)
	s.r += x.size + len(x.body)
	var tried []*backend
	last := errNobody
	for {
		b := x.instance // which a loop has chosen
		if x.failed == nil && x.taken == nil {
			b = choose(x.route, x.cookie, tried)
		}
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
	no := x.nobody(last)
	x.sent = int64(len(no.text))
	return s.refuse(no, x.rest)
}

// nobody is what a client is told when no instance answered.
func (x *exchange) nobody(err error) *refusal {
	return &refusal{status: x.status, text: fmt.Sprintf("%s: %v\n", x.route.Service, err)}
}

// try asks one instance. A connection that was kept may have been closed just now: then another one is taken.
func (x *exchange) try(b *backend) (keep bool, err error) {
	until := time.Now().Add(x.route.Timeout)
	saying := x.route.ProxyProtocol
	for again := saying == 0; ; again = false {
		if err = x.failed; err == nil {
			keep, err = x.once(b, again, until)
		}
		x.failed = nil
		if err == nil || !errors.Is(err, errStale) {
			return keep, err
		}
		if !x.harmless && !errors.Is(err, errUnsent) {
			return false, err
		}
	}
}

// once asks an instance by one connection.
func (x *exchange) once(b *backend, again bool, until time.Time) (keep bool, err error) {
	l, kept, saying := x.taken, x.kept, x.route.ProxyProtocol
	begun := l != nil
	if x.taken = nil; !begun {
		if l, kept, err = b.pool.get(again); err != nil {
			return false, err
		}
	}
	reuse := false
	switch {
	case begun:
		reuse, keep, err = x.hear(l, until, kept, x.heard)
	case saying != 0:
		if _, err = l.Write(proxyLine(saying, x.asked.from, x.asked.to)); err == nil {
			_, keep, err = x.ask(l, until, kept)
		}
	default:
		reuse, keep, err = x.ask(l, until, kept)
	}
	if err == nil && reuse {
		b.pool.put(l)
	} else {
		l.Close()
	}
	return keep, err
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
	return x.hear(l, until, kept, 0)
}

// hear passes on what comes back, of which n bytes did already. Nothing of it was passed on.
func (x *exchange) hear(l *link, until time.Time, kept bool, n int) (reuse, keep bool, err error) {
	w, size, isHead := x.work, 0, x.asked.method == http.MethodHead
	for {
		if n > 0 {
			if size, err = x.back.parse(w.back[:n], isHead); err != nil {
				return false, false, err
			}
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
		if n == len(w.back) && !w.grow() {
			return false, false, errHead
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
	}
	keep = x.begins()
	clean, err := x.passOn(l, w.back[size:n])
	if err != nil { // the client sees that its answer is not whole
		x.tcp.SetLinger(0)
		return false, false, nil
	}
	return clean && x.back.keep, keep, nil
}

// begins puts the head of the answer at hand into out, and reports whether the client may ask again after it.
func (x *exchange) begins() (keep bool) {
	w := x.work
	x.begun, x.status, x.left = true, x.back.status, x.back.length
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
	return keep
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
	for {
		ends, clean, err := x.take(came)
		if err != nil {
			return false, err
		}
		if len(w.out) > 0 {
			if _, err := x.conn.Write(w.out); err != nil {
				return false, err
			}
			w.out = w.out[:0]
		}
		if ends {
			return clean, nil
		}
		if to, ok := x.conn.(*net.TCPConn); ok && x.back.framing == byLength && x.left >= spliceFrom {
			n, err := x.splice(to, l, x.left)
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
	}
}

// take adds what came of the answer's body to out. ends says that it is whole, and clean that nothing came after it.
func (x *exchange) take(came []byte) (ends, clean bool, err error) {
	n := len(came)
	switch x.back.framing {
	case byLength:
		n = int(min(int64(n), x.left))
		x.left -= int64(n)
		ends = x.left == 0
	case byChunks:
		if n, ends, err = x.follow.scan(came); err != nil {
			return false, false, err
		}
	}
	x.sent += int64(n)
	x.work.out = append(x.work.out, came[:n]...)
	return ends, n == len(came), nil
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
