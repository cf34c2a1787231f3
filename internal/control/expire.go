package control

import (
	"container/heap"
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/tutti-run/tutti/internal/store"
)

// Expiry deletes keys whose time to live has passed without another put. It is the leader's work:
// it measures time by its own monotonic clock from when it sees a put, and a new leader gives every
// key its full time again, so that a key may live longer than was asked for, and never shorter. A
// deletion is on condition that the key was not written meanwhile.
type Expiry struct {
	Store *store.Store
	Log   *slog.Logger
}

const (
	expireAtOnce = 1024                   // keys in one change set
	expireRetry  = 100 * time.Millisecond // after it could not be committed
)

// Run works until ctx, the leadership, is done.
func (x *Expiry) Run(ctx context.Context) error {
	due := &deadlines{}
	for {
		// Also after the watch fell behind; then the times of keys that stayed as they were hold on.
		snap := x.Store.Snapshot()
		due.begin(snap.Keys(), time.Now())
		err := x.follow(ctx, x.Store.WatchMortalKeys(snap.Revision()), due)
		if !errors.Is(err, store.ErrTooOld) {
			return err
		}
	}
}

// follow keeps due true and deletes what is, until the watch ends.
func (x *Expiry) follow(ctx context.Context, w *store.Watcher, due *deadlines) error {
	var pause time.Time // nothing is tried before
	for {
		next, bounded := due.next()
		if next.Before(pause) {
			next = pause
		}
		b, err := nextUntil(ctx, w, next, bounded)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		now := time.Now()
		for _, c := range b.Keys {
			due.change(c, now)
		}
		for !now.Before(pause) {
			keys := due.take(now)
			if len(keys) == 0 {
				break
			}
			cs := &store.ChangeSet{}
			for _, m := range keys {
				cs.DeleteKeyIf(m.key, m.modified)
			}
			if _, err := x.Store.Commit(ctx, cs); err != nil {
				if ctx.Err() == nil {
					x.Log.Warn("keys could not be expired yet", "error", err)
				}
				due.putBack(keys)
				pause = now.Add(expireRetry)
			}
		}
	}
}

// nextUntil returns the next batch, an empty one when none came by then.
func nextUntil(ctx context.Context, w *store.Watcher, then time.Time, bounded bool) (store.Batch, error) {
	if bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, then)
		defer cancel()
	}
	b, err := w.Next(ctx)
	if err != nil && !errors.Is(err, store.ErrTooOld) {
		return store.Batch{}, nil // of ctx: follow looks whether that of the leadership is done
	}
	return b, err
}

// mortal is a key with a time to live.
type mortal struct {
	key      string
	modified uint64
	until    time.Time
}

// deadlines knows when keys are due.
type deadlines struct {
	mortals map[string]mortal
	queue   []mortal // a heap by time; those that are not in mortals as they are here have passed
}

func (s *deadlines) Len() int           { return len(s.queue) }
func (s *deadlines) Less(i, j int) bool { return s.queue[i].until.Before(s.queue[j].until) }
func (s *deadlines) Swap(i, j int)      { s.queue[i], s.queue[j] = s.queue[j], s.queue[i] }
func (s *deadlines) Push(m any)         { s.queue = append(s.queue, m.(mortal)) }
func (s *deadlines) Pop() any {
	last := s.queue[len(s.queue)-1]
	s.queue = s.queue[:len(s.queue)-1]
	return last
}

// begin gives the keys their full time, apart from those that are known as they are.
func (s *deadlines) begin(keys store.Keys, now time.Time) {
	known := s.mortals
	s.mortals, s.queue = map[string]mortal{}, nil
	for kv := range keys.Range("", "") {
		switch m, ok := known[kv.Key]; {
		case kv.TTL == 0:
		case ok && m.modified == kv.Modified:
			s.add(m)
		default:
			s.add(mortal{kv.Key, kv.Modified, now.Add(kv.TTL)})
		}
	}
}

func (s *deadlines) add(m mortal) {
	s.mortals[m.key] = m
	heap.Push(s, m)
	if len(s.queue) > 2*len(s.mortals)+1000 { // most have passed: keys are renewed long before they are due
		s.queue = s.queue[:0]
		for _, m := range s.mortals {
			s.queue = append(s.queue, m)
		}
		heap.Init(s)
	}
}

// change takes a change of a key in.
func (s *deadlines) change(c store.KeyChange, now time.Time) {
	if c.New == nil || c.New.TTL == 0 {
		delete(s.mortals, c.Key())
		return
	}
	s.add(mortal{c.New.Key, c.New.Modified, now.Add(c.New.TTL)})
}

// settle drops what has passed from the head of the queue.
func (s *deadlines) settle() {
	for len(s.queue) > 0 && s.mortals[s.queue[0].key] != s.queue[0] {
		heap.Pop(s)
	}
}

// next returns when the next key is due.
func (s *deadlines) next() (at time.Time, some bool) {
	s.settle()
	if len(s.queue) == 0 {
		return at, false
	}
	return s.queue[0].until, true
}

// take takes keys that are due out, the first ones first.
func (s *deadlines) take(now time.Time) (out []mortal) {
	for s.settle(); len(s.queue) > 0 && len(out) < expireAtOnce && !s.queue[0].until.After(now); s.settle() {
		m := heap.Pop(s).(mortal)
		delete(s.mortals, m.key)
		out = append(out, m)
	}
	return out
}

func (s *deadlines) putBack(list []mortal) {
	for _, m := range list {
		s.add(m)
	}
}
