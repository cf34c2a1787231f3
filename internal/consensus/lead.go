package consensus

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// standing is who leads, as far as this server knows.
type standing struct {
	mu      sync.Mutex
	first   Server          // who leads; without an ID when unknown
	reach   context.Context // ends when another leads, or nobody known
	unreach context.CancelFunc
	// reign counts the times that this server came to lead or ceased to; leading and established
	// are of the present one. Established says that everything earlier was applied here.
	reign                int
	leading, established bool
	changed              chan struct{} // closed and replaced with every change
}

func newStanding() *standing { return &standing{changed: make(chan struct{}), unreach: func() {}} }

func (s *standing) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

// news returns a channel that is closed with the next change.
func (s *standing) news() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// leader returns who leads and a context that lasts as long.
func (s *standing) leader() (Server, context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.first, s.reach
}

// own returns this server's reign; established is false when it does not lead, or not quite yet.
func (s *standing) own() (reign int, established bool, news <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reign, s.leading && s.established, s.changed
}

// follow keeps standing up to date until ended is closed. It must run as long as raft does, which
// waits for it.
func (r *Raft) follow(notify <-chan bool, observed <-chan raft.Observation) {
	heed := func(address raft.ServerAddress, id raft.ServerID) {
		next := Server{ID: string(id), Address: string(address)}
		r.standing.change(func() {
			if r.standing.first == next && r.standing.reach != nil {
				return
			}
			r.standing.unreach()
			r.standing.first = next
			r.standing.reach, r.standing.unreach = context.WithCancel(r.stopping)
		})
	}
	heed(r.raft.LeaderWithID())
	for {
		select {
		case leading := <-notify:
			var reign int
			r.standing.change(func() {
				r.standing.reign++
				reign = r.standing.reign
				r.standing.leading, r.standing.established = leading, false
			})
			if leading {
				r.work(func() { r.establish(reign) })
			}
			r.queue.wake()
		case o := <-observed:
			if l, ok := o.Data.(raft.LeaderObservation); ok {
				heed(l.LeaderAddr, l.LeaderID)
				r.queue.wake()
			}
		case <-r.ended:
			return
		}
	}
}

// establish gets an entry of this reign applied, and with it everything before.
func (r *Raft) establish(reign int) {
	for {
		err := r.raft.Apply(entryOf(nil), 0).Error()
		now, _, news := r.standing.own()
		if now != reign || r.stopping.Err() != nil {
			return
		}
		if err == nil {
			r.standing.change(func() { r.standing.established = r.standing.reign == reign })
			return
		}
		select { // it is being handed over, maybe in vain
		case <-news:
		case <-r.stopping.Done():
		case <-time.After(leaderPause):
		}
	}
}

// reignKey marks the context of a leader's work with its reign: what is proposed with it was
// decided on what this leader knows, and must not happen under another one, nor under this one once
// others have led between.
type reignKey struct{}

// RunAsLeader runs work each time this server comes to lead, after all earlier entries were
// applied. When leadership ends work's context is cancelled, and nothing follows before it has
// returned: what was proposed with that context is taken up by this server in this reign, or not at
// all. It blocks until ctx is done.
func (r *Raft) RunAsLeader(ctx context.Context, work func(ctx context.Context) error) error {
	for {
		reign, established, news := r.standing.own()
		if !established {
			select {
			case <-ctx.Done():
				return nil
			case <-news:
			}
			continue
		}
		workCtx, cancel := context.WithCancel(context.WithValue(ctx, reignKey{}, reign))
		var wg sync.WaitGroup
		wg.Go(func() {
			defer cancel()
			for {
				now, still, news := r.standing.own()
				if now != reign || !still {
					return
				}
				select {
				case <-workCtx.Done():
					return
				case <-news:
				}
			}
		})
		err := work(workCtx)
		cancel()
		wg.Wait()
		if ctx.Err() != nil {
			return nil
		}
		if now, _, _ := r.standing.own(); err != nil && now == reign {
			return fmt.Errorf("work of the leader: %w", err)
		}
	}
}
