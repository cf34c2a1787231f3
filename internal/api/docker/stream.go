package docker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
)

// Media types of streams: bytes as they come, or frames of a header and a piece.
const (
	mediaRaw         = "application/vnd.docker.raw-stream"
	mediaMultiplexed = "application/vnd.docker.multiplexed-stream"
)

func mediaOf(r *request, tty bool) string {
	if tty || r.before("1.42") {
		return mediaRaw
	}
	return mediaMultiplexed
}

// The streams of a frame.
const (
	stdout = 1
	stderr = 2
)

// frames writes both outputs of a process on one stream: each piece after eight bytes that say whose
// it is and how long. Writes of both may come at once.
type frames struct {
	mu  sync.Mutex
	w   io.Writer
	raw bool // a terminal's: without headers
}

func (f *frames) stream(n byte) io.Writer { return frameWriter{f, n} }

type frameWriter struct {
	f *frames
	n byte
}

func (w frameWriter) Write(p []byte) (int, error) {
	w.f.mu.Lock()
	defer w.f.mu.Unlock()
	if w.f.raw {
		return w.f.w.Write(p)
	}
	frame := make([]byte, 8, 8+len(p))
	frame[0] = w.n
	binary.BigEndian.PutUint32(frame[4:], uint32(len(p)))
	if _, err := w.f.w.Write(append(frame, p...)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// hijacked is a connection that was taken over from HTTP.
type hijacked struct {
	net.Conn
	in *bufio.Reader
}

func (h *hijacked) Read(p []byte) (int, error) { return h.in.Read(p) }

// hijack takes over the connection, upgraded if the client asks for that.
func hijack(w http.ResponseWriter, r *request, media string) (*hijacked, error) {
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, fault.New(fault.Invalid, "take over the connection: %w", err)
	}
	head := "HTTP/1.1 200 OK\r\nContent-Type: " + mediaRaw + "\r\n\r\n"
	if strings.EqualFold(r.Header.Get("Upgrade"), "tcp") {
		head = fmt.Sprintf("HTTP/1.1 101 UPGRADED\r\nContent-Type: %s\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n", media)
		for _, name := range []string{"Api-Version", "Docker-Experimental", "Ostype", "Server"} {
			head += name + ": " + w.Header().Get(name) + "\r\n"
		}
		head += "\r\n"
	}
	if _, err := io.WriteString(conn, head); err != nil {
		conn.Close()
		return nil, fault.New(fault.Unavailable, "answer: %w", err)
	}
	return &hijacked{Conn: conn, in: buf.Reader}, nil
}

// end closes the connection so that the client still reads all that was written.
func (h *hijacked) end() {
	if c, ok := h.Conn.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite()
	}
	h.Conn.Close()
}

// cutEvery is how often a connection is looked at for whether its client has gone: one that says nothing is
// not read from, or may have ended its side only.
const cutEvery = time.Second

// WatchCut calls gone once the other end has closed both directions of a connection, as far as the connection
// tells, until the context ends. A client that only has no more to send is still there.
func WatchCut(ctx context.Context, conn net.Conn, gone func()) {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return // over TLS it shows when something is written
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	tick := time.NewTicker(cutEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		cut := false
		err := raw.Control(func(fd uintptr) {
			list := []unix.PollFd{{Fd: int32(fd)}}
			n, err := unix.Poll(list, 0)
			cut = err == nil && n > 0 && list[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
		})
		if cut || err != nil {
			gone()
			return
		}
	}
}

// errDetached ends the input of a client that leaves: that of the container has no end by that.
var errDetached = errors.New("the client has left")

// leavingReader ends as one that has left when there is no more to read.
type leavingReader struct {
	r        io.Reader
	detached func()
}

func (l *leavingReader) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if errors.Is(err, io.EOF) {
		l.detached()
		err = errDetached
	}
	return n, err
}

// untilOver writes until it is over, and takes the rest without a word.
type untilOver struct {
	w    io.Writer
	over <-chan struct{}
}

func (u *untilOver) Write(p []byte) (int, error) {
	n, err := u.w.Write(p)
	select {
	case <-u.over:
		return len(p), nil
	default:
		return n, err
	}
}

// detachReader passes input on until the keys that detach a client from a terminal.
type detachReader struct {
	r        io.Reader
	keys     []byte
	matched  int
	detached func()
}

func (d *detachReader) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	if n == 0 || len(d.keys) == 0 {
		return n, err
	}
	out := make([]byte, 0, n+d.matched)
	for _, c := range p[:n] {
		if c == d.keys[d.matched] {
			if d.matched++; d.matched == len(d.keys) {
				d.detached()
				return copy(p, out), errDetached
			}
			continue
		}
		out = append(out, d.keys[:d.matched]...)
		d.matched = 0
		if c == d.keys[0] && len(d.keys) > 1 {
			d.matched = 1
			continue
		}
		out = append(out, c)
	}
	if len(out) > len(p) { // a held back beginning and a full buffer: keep what does not fit
		d.r = io.MultiReader(bytes.NewReader(out[len(p):]), d.r)
		out = out[:len(p)]
	}
	return copy(p, out), err
}

// detachKeys reads "ctrl-p,ctrl-q", the default, or other letters and control characters.
func detachKeys(text string) ([]byte, error) {
	if text == "" {
		return []byte{16, 17}, nil
	}
	var out []byte
	for _, key := range strings.Split(text, ",") {
		name, ctrl := strings.CutPrefix(key, "ctrl-")
		switch {
		case len(name) != 1:
			return nil, fault.New(fault.Invalid, "Invalid detach keys (%s) provided", text)
		case !ctrl:
			out = append(out, name[0])
		case name[0] >= 'a' && name[0] <= 'z':
			out = append(out, name[0]-'a'+1)
		case strings.IndexByte("@[\\]^_", name[0]) >= 0:
			out = append(out, name[0]-'@')
		default:
			return nil, fault.New(fault.Invalid, "Invalid detach keys (%s) provided", text)
		}
	}
	return out, nil
}

// terminals remembers where to send a new size, by container or exec.
type terminals struct {
	mu sync.Mutex
	of map[string]*terminal
}

type terminal struct {
	size  chan driver.Size
	users int
}

// open returns the sizes that are set for id until close is called.
func (t *terminals) open(id string) (size <-chan driver.Size, close func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.of == nil {
		t.of = map[string]*terminal{}
	}
	e := t.of[id]
	if e == nil {
		e = &terminal{size: make(chan driver.Size, 1)}
		t.of[id] = e
	}
	e.users++
	return e.size, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if e.users--; e.users == 0 && t.of[id] == e {
			delete(t.of, id)
		}
	}
}

// resize reports whether somebody here takes the size.
func (t *terminals) resize(id string, s driver.Size) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.of[id]
	if e == nil {
		return false
	}
	select {
	case <-e.size: // an older one that nobody took
	default:
	}
	e.size <- s // never blocks: it alone writes, under the lock
	return true
}
