package consensus

import (
	"net"
	"sync"

	"github.com/hashicorp/raft"
)

// layer remembers the connections that others opened: raft's transport leaves them open when it is
// closed, and goes on answering what comes over them, with a log that is closed, too.
type layer struct {
	raft.StreamLayer
	lost chan<- struct{} // gets a value when a connection has ended

	mu     sync.Mutex
	closed bool
	open   map[*accepted]struct{}
}

// accepted is a connection that is forgotten when it is closed.
type accepted struct {
	net.Conn
	layer *layer
}

func newLayer(l raft.StreamLayer, lost chan<- struct{}) *layer {
	return &layer{StreamLayer: l, lost: lost, open: map[*accepted]struct{}{}}
}

func (l *layer) Accept() (net.Conn, error) {
	c, err := l.StreamLayer.Accept()
	if err != nil {
		return nil, err
	}
	a := &accepted{Conn: c, layer: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		c.Close()
		return nil, net.ErrClosed
	}
	l.open[a] = struct{}{}
	return a, nil
}

func (a *accepted) Close() error {
	a.layer.mu.Lock()
	delete(a.layer.open, a)
	a.layer.mu.Unlock()
	select {
	case a.layer.lost <- struct{}{}:
	default:
	}
	return a.Conn.Close()
}

// hangUp closes what others opened, for good.
func (l *layer) hangUp() {
	l.mu.Lock()
	l.closed = true
	all := l.open
	l.open = map[*accepted]struct{}{}
	l.mu.Unlock()
	for a := range all {
		a.Conn.Close() // its reader notices, and closes it again
	}
}
