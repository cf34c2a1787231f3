package node

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/api/docker"
	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/fault"
)

// door is the host's Docker socket. It is open for as long as the process runs, whatever the host is
// meanwhile: waiting for a cluster, or a node of one.
type door struct {
	listener net.Listener
	mu       sync.Mutex
	now      *phase
}

// phase is a time during which one handler answers at a door.
type phase struct {
	door     *door
	ctx      context.Context // ends with the phase
	cancel   context.CancelFunc
	handler  http.Handler
	requests sync.WaitGroup
}

func openDoor(cfg *Config) (*door, error) {
	l, err := native.Listen(DockerSocket(cfg.RunDir))
	return &door{listener: l}, err
}

func (d *door) serve(ctx context.Context) error { return native.Serve(ctx, d.listener, d) }

// prepare returns a phase that has not begun. Its end must follow.
func (d *door) prepare(ctx context.Context) *phase {
	p := &phase{door: d}
	p.ctx, p.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return p
}

// begin has the handler answer from now on.
func (p *phase) begin(h http.Handler) {
	p.handler = h
	p.door.mu.Lock()
	p.door.now = p
	p.door.mu.Unlock()
}

// What is being answered at the end of a phase has a moment to end by itself; after patience nobody waits for it.
const (
	endsByItself = 500 * time.Millisecond
	endPatience  = 2 * time.Second
)

// end returns when what was being answered has ended, or does not do so.
func (p *phase) end() {
	defer p.cancel()
	p.door.mu.Lock()
	if p.door.now == p {
		p.door.now = nil
	}
	p.door.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		p.requests.Wait()
		close(ended)
	}()
	defer time.AfterFunc(endsByItself, p.cancel).Stop()
	select {
	case <-ended:
	case <-time.After(endPatience):
	}
}

// lifetime is what lasts as long as the phase.
func (p *phase) lifetime(context.Context) context.Context { return p.ctx }

type ticketKey struct{}

// outlast has the end of the phase not wait for a request, which waits for that end itself.
func outlast(ctx context.Context) {
	if leave, ok := ctx.Value(ticketKey{}).(func()); ok {
		leave()
	}
}

// ServeHTTP implements http.Handler.
func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	p := d.now
	if p != nil {
		p.requests.Add(1)
	}
	d.mu.Unlock()
	if p == nil {
		docker.Refuse(fault.New(fault.Unavailable, "this host is just about to start or to end: ask again in a moment")).ServeHTTP(w, r)
		return
	}
	leave := sync.OnceFunc(p.requests.Done)
	defer leave()
	ctx, cancel := context.WithCancel(context.WithValue(r.Context(), ticketKey{}, leave))
	defer cancel()
	defer context.AfterFunc(p.ctx, cancel)()
	p.handler.ServeHTTP(w, r.WithContext(ctx))
}
