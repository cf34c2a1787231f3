package server

import (
	"context"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/wire"
)

// pathTerm answers with the latest term that a server knows of.
const pathTerm = "/server/term" // call: Empty → uint64

// confirmTimeout bounds a round of questions to the other servers.
const confirmTimeout = 400 * time.Millisecond

// confirmer finds out whether this server leads, as the others see it now. A process that was
// stopped for a while may have been replaced, and finds answers in its buffers that it was given
// before; so the question is asked anew, and whoever asks while a round is under way waits for the
// next one, which all share.
type confirmer struct {
	term    func() (term uint64, leads bool) // of this server
	voters  func() (others []string)         // addresses of the other voters
	ask     func(ctx context.Context, address string) (term uint64, err error)
	mu      sync.Mutex
	running bool
	waiting []chan error
}

func (s *Server) newConfirmer() *confirmer {
	return &confirmer{
		term: func() (uint64, bool) {
			term := s.raft.Term()
			return term, s.raft.IsLeader()
		},
		voters: func() (others []string) {
			for _, m := range s.raft.Servers() {
				if m.Voter && m.ID != s.cfg.NodeID {
					others = append(others, m.Address)
				}
			}
			return others
		},
		ask: func(ctx context.Context, address string) (uint64, error) {
			return wire.Call[wire.Empty, uint64](ctx, s.port.Client(), address, pathTerm, wire.Empty{})
		},
	}
}

// confirm returns nil when a majority of the servers has said, after it was called, that they know
// of no later term than that in which this server leads: up to then no other was elected.
func (c *confirmer) confirm(ctx context.Context) error {
	done := make(chan error, 1)
	c.mu.Lock()
	c.waiting = append(c.waiting, done)
	if !c.running {
		c.running = true
		go c.run(context.WithoutCancel(ctx))
	}
	c.mu.Unlock()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fault.New(fault.Unavailable, "whether this server leads could not be confirmed: %w", ctx.Err())
	}
}

func (c *confirmer) run(ctx context.Context) {
	for {
		c.mu.Lock()
		waiting := c.waiting
		c.waiting = nil
		c.running = len(waiting) > 0
		c.mu.Unlock()
		if len(waiting) == 0 {
			return
		}
		err := c.round(ctx)
		for _, w := range waiting {
			w <- err
		}
	}
}

func (c *confirmer) round(ctx context.Context) error {
	term, leads := c.term()
	if !leads {
		return fault.New(fault.Unavailable, "this server does not lead")
	}
	others := c.voters()
	ctx, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()
	agrees := make(chan bool, len(others))
	for _, address := range others {
		go func() {
			theirs, err := c.ask(ctx, address)
			agrees <- err == nil && theirs == term
		}()
	}
	need := (len(others)+1)/2 + 1
	have := 1 // this server, as long as it is of the same mind
	for k := 0; have < need && k < len(others); k++ {
		if <-agrees {
			have++
		}
	}
	if now, leads := c.term(); have < need || !leads || now != term {
		return fault.New(fault.Unavailable, "%d of %d servers confirm that this one leads; %d are needed", have, len(others)+1, need)
	}
	return nil
}
