package consensus

import (
	"context"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
)

// readTimeout bounds one attempt to find out how far a read must come.
const readTimeout = 2 * time.Second

// Sync returns once this server's state shows everything that was acknowledged anywhere before the
// call: what is read then is linearizable. It tries until ctx is done; then its error carries
// fault.Unavailable.
func (r *Raft) Sync(ctx context.Context) error {
	for {
		index, err := r.reads.join(ctx, r)
		if err == nil {
			caught := make(chan struct{})
			r.machine.progress.after(index, func() { close(caught) })
			select {
			case <-caught:
				return nil
			case <-ctx.Done():
				return fault.New(fault.Unavailable, "this server has not caught up with the leader: %w", ctx.Err())
			case <-r.stopping.Done():
				return fault.New(fault.Unavailable, "this server is shutting down")
			}
		}
		timer := time.NewTimer(leaderPause)
		select {
		case <-r.standing.news():
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fault.New(fault.Unavailable, "no server leads: %w", err)
		case <-r.stopping.Done():
			timer.Stop()
			return fault.New(fault.Unavailable, "this server is shutting down")
		}
		timer.Stop()
	}
}

// ReadIndexHere returns the index of the log up to which a read must have come, if this server
// leads. It is how servers answer Calls.ReadIndex.
func (r *Raft) ReadIndexHere(ctx context.Context) (uint64, error) {
	return r.verified.join(ctx, r)
}

// readIndex is ReadIndexHere, wherever the leader is.
func (r *Raft) readIndex(ctx context.Context) (uint64, error) {
	if r.IsLeader() {
		return r.ReadIndexHere(ctx)
	}
	leader, reach := r.standing.leader()
	if leader.ID == "" || leader.ID == r.cfg.NodeID || r.cfg.Calls == nil {
		return 0, errNotSent
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	defer context.AfterFunc(reach, cancel)()
	return r.cfg.Calls.ReadIndex(ctx, leader)
}

// verify makes sure that this server led, in one reign, from before it looked how far it has come
// until after.
func (r *Raft) verify(ctx context.Context) (uint64, error) {
	reign, established, _ := r.standing.own()
	if !established {
		return 0, errNotSent
	}
	index := r.machine.progress.now()
	confirm := r.cfg.Confirm
	if confirm == nil {
		confirm = r.raftsWord
	}
	if err := confirm(ctx); err != nil {
		return 0, fault.New(fault.Unavailable, "whether this server still leads: %w", err)
	}
	if now, still, _ := r.standing.own(); now != reign || !still {
		return 0, errNotSent
	}
	return index, nil
}

// raftsWord is what raft says of whether this server leads. Raft (1.8.0) forgets to answer when the
// server whose word it waits for is taken out meanwhile, until it leads no more; so the wait is bounded.
func (r *Raft) raftsWord(ctx context.Context) error {
	answer := make(chan error, 1)
	r.following.Go(func() { answer <- r.raft.VerifyLeader().Error() })
	timer := time.NewTimer(readTimeout)
	defer timer.Stop()
	select {
	case err := <-answer:
		return err
	case <-timer.C:
		return fault.New(fault.Unavailable, "the others did not say")
	case <-ctx.Done():
		return fault.New(fault.Unavailable, "this server is shutting down")
	}
}

// rounds lets all who come while a question is being asked share the next one.
type rounds struct {
	ask  func(context.Context) (uint64, error)
	mu   sync.Mutex
	busy bool
	next *round
}

type round struct {
	done  chan struct{}
	index uint64
	err   error
}

// join returns the answer to a question that was asked after the call.
func (q *rounds) join(ctx context.Context, r *Raft) (uint64, error) {
	q.mu.Lock()
	if q.next == nil {
		q.next = &round{done: make(chan struct{})}
	}
	mine := q.next
	if !q.busy {
		q.busy = r.work(func() { q.run(r.stopping) })
	}
	busy := q.busy
	q.mu.Unlock()
	if !busy {
		return 0, fault.New(fault.Unavailable, "this server is shutting down")
	}
	select {
	case <-mine.done:
		return mine.index, mine.err
	case <-ctx.Done():
		return 0, fault.New(fault.Unavailable, "the leader was asked: %w", ctx.Err())
	}
}

// run asks for as long as somebody has joined a round.
func (q *rounds) run(ctx context.Context) {
	for {
		q.mu.Lock()
		now := q.next
		q.next = nil
		q.busy = now != nil
		q.mu.Unlock()
		if now == nil {
			return
		}
		now.index, now.err = q.ask(ctx)
		close(now.done)
	}
}
