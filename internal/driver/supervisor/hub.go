package supervisor

import (
	"io"
	"sync"
)

// hub passes a task's output on to everybody attached. One that does not keep up is cut off: it
// must not hold up the task.
type hub struct {
	mu     sync.Mutex
	subs   map[chan output]struct{}
	closed bool
}

func newHub() *hub { return &hub{subs: map[chan output]struct{}{}} }

func (h *hub) subscribe() chan output {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := make(chan output, 256)
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

func (h *hub) writer(stream string) io.Writer { return hubWriter{h, stream} }

type hubWriter struct {
	hub    *hub
	stream string
}

func (w hubWriter) Write(p []byte) (int, error) {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	if len(w.hub.subs) == 0 {
		return len(p), nil
	}
	o := output{Stdout: append([]byte(nil), p...)}
	if w.stream == "stderr" {
		o = output{Stderr: o.Stdout}
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
