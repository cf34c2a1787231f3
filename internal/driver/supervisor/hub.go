package supervisor

import (
	"io"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/driver/launch"
)

// hub passes a task's output on to everybody attached. One that does not keep up is cut off: it
// must not hold up the task.
type hub struct {
	mu     sync.Mutex
	subs   map[chan output]struct{}
	closed bool
	// early is the beginning of the output, for who is attached as the task starts; nil once it
	// has become too much or too old.
	early      []output
	earlyBytes int
	born       time.Time
}

// What an early attach still gets of the output before it.
const (
	earlyTime   = 5 * time.Second
	earlyBytes  = 64 << 10
	earlyPieces = 128 // half of what a subscriber may be behind
)

func newHub() *hub {
	return &hub{subs: map[chan output]struct{}{}, early: []output{}, born: time.Now()}
}

// resumeHub returns a hub that goes on with one that knew a task since it was born, and has the early output that it had.
func resumeHub(born time.Time, early []launch.Piece) *hub {
	h := &hub{subs: map[chan output]struct{}{}, born: born}
	if early == nil {
		return h
	}
	h.early = []output{}
	for _, p := range early {
		o := output{Stdout: p.Text}
		if p.Errors {
			o = output{Stderr: p.Text}
		}
		h.early, h.earlyBytes = append(h.early, o), h.earlyBytes+len(p.Text)
	}
	return h
}

func (h *hub) subscribe(fromStart bool) chan output {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := make(chan output, 2*earlyPieces)
	if fromStart && time.Since(h.born) < earlyTime {
		for _, o := range h.early {
			c <- o
		}
	}
	if h.closed {
		close(c)
		return c
	}
	h.subs[c] = struct{}{}
	return c
}

func (h *hub) unsubscribe(c chan output) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.subs, c)
}

func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for c := range h.subs {
		close(c)
		delete(h.subs, c)
	}
}

// forgetEarly drops the beginning of the output when it gets too old, or too much with n bytes more.
func (h *hub) forgetEarly(n int) {
	if h.earlyBytes+n > earlyBytes || len(h.early) == earlyPieces || time.Since(h.born) > earlyTime {
		h.early = nil
	}
}

func (h *hub) writer(stream string) io.Writer { return hubWriter{h, stream} }

type hubWriter struct {
	hub    *hub
	stream string
}

func (w hubWriter) Write(p []byte) (int, error) {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	w.hub.forgetEarly(len(p))
	if len(w.hub.subs) == 0 && w.hub.early == nil {
		return len(p), nil
	}
	o := output{Stdout: append([]byte(nil), p...)}
	if w.stream == "stderr" {
		o = output{Stderr: o.Stdout}
	}
	if w.hub.early != nil {
		w.hub.early, w.hub.earlyBytes = append(w.hub.early, o), w.hub.earlyBytes+len(p)
	}
	for c := range w.hub.subs {
		select {
		case c <- o:
		default:
			close(c)
			delete(w.hub.subs, c)
		}
	}
	return len(p), nil
}
