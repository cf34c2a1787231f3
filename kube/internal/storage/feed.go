package storage

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
)

const (
	// keptEvents is how many of the latest changes a feed keeps for watches that begin a little late.
	keptEvents = 8192
	// waitingEvents is how many changes may wait for a watch that does not take them; it has to
	// begin anew then.
	waitingEvents = 65536
	// behind is how often a feed hears how far it has come while there is nothing else to hear.
	behind = 100 * time.Millisecond
	// retry is how long a feed waits before it connects anew.
	retry = 100 * time.Millisecond
)

// feed watches all keys below Root for all watches of this process.
type feed struct {
	keys  Keys
	log   *slog.Logger
	ready chan struct{} // closed once seen is known

	mu sync.Mutex
	// events are the latest changes, ascending: all behind floor up to seen.
	events  []core.KeyEvent
	floor   uint64
	seen    uint64
	readers map[*reader]struct{}
}

// reader is a watch's place in the feed.
type reader struct {
	from, to string
	// after is the revision up to which the reader knows everything; the feed may be behind it.
	after uint64
	// wake has a value when something waits.
	wake    chan struct{}
	waiting []core.KeyEvent
	// busy is set from when the reader takes what waits until it has sent it.
	busy bool
	// lost is set when the reader has to begin anew.
	lost bool
}

func newFeed(keys Keys, log *slog.Logger) *feed {
	return &feed{keys: keys, log: log, ready: make(chan struct{}), readers: map[*reader]struct{}{}}
}

// run follows the key space until ctx is done. When the connection breaks it goes on where it was;
// when what came meanwhile is not kept any more all readers are lost.
func (f *feed) run(ctx context.Context) error {
	for ctx.Err() == nil {
		err := f.keys.WatchKeys(ctx, core.KeyWatch{Prefix: Root, After: f.position(), Progress: behind}, f.take)
		switch {
		case ctx.Err() != nil:
			return nil
		case fault.Is(err, fault.TooOld):
			f.log.Warn("changes of keys were missed: all watches begin anew", "error", err)
			f.loseAll()
		case err != nil && !fault.Is(err, fault.Unavailable):
			f.log.Warn("watching keys failed", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(retry):
		}
	}
	return nil
}

func (f *feed) position() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen
}

// take takes an event in.
func (f *feed) take(e core.KeyEvent) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.ready:
	default:
		f.floor = e.Revision // the watch begins with how far it has come
		defer close(f.ready)
	}
	if !e.More {
		f.seen = max(f.seen, e.Revision)
	}
	key, ok := keyOf(e)
	if !ok {
		return nil
	}
	f.events = append(f.events, e)
	if len(f.events) > 2*keptEvents {
		f.floor = f.events[keptEvents-1].Revision
		f.events = append(make([]core.KeyEvent, 0, 3*keptEvents), f.events[keptEvents:]...)
	}
	for r := range f.readers {
		if e.Revision > r.after && r.wants(key) {
			r.add(e)
		}
	}
	return nil
}

func keyOf(e core.KeyEvent) (string, bool) {
	switch {
	case e.New != nil:
		return e.New.Key, true
	case e.Old != nil:
		return e.Old.Key, true
	}
	return "", false
}

func (r *reader) wants(key string) bool { return r.from <= key && (r.to == "" || key < r.to) }

// add lets an event wait. The feed's lock must be held, if the reader is the feed's.
func (r *reader) add(e core.KeyEvent) {
	if len(r.waiting) >= waitingEvents {
		r.waiting, r.lost = nil, true
	}
	if !r.lost {
		r.waiting = append(r.waiting, e)
	}
	r.signal()
}

func (r *reader) signal() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// loseAll makes everybody begin anew, the feed at the present.
func (f *feed) loseAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events, f.seen, f.floor = nil, 0, ^uint64(0)
	f.ready = make(chan struct{})
	for r := range f.readers {
		r.waiting, r.lost = nil, true
		r.signal()
	}
}

// join makes a reader hear of everything behind a revision, if the feed still has it.
func (f *feed) join(ctx context.Context, r *reader, after uint64) (joined bool, err error) {
	f.mu.Lock()
	ready := f.ready
	f.mu.Unlock()
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case <-ready:
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if after < f.floor {
		return false, nil
	}
	for _, e := range f.events {
		if key, _ := keyOf(e); e.Revision > after && r.wants(key) {
			r.add(e)
		}
	}
	r.after = after
	f.readers[r] = struct{}{}
	return true, nil
}

func (f *feed) leave(r *reader) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.readers, r)
}

// next takes what waits for a reader; done must follow once it was sent.
func (f *feed) next(r *reader) (events []core.KeyEvent, lost bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	events, r.waiting, r.busy = r.waiting, nil, true
	return events, r.lost
}

func (f *feed) done(r *reader) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r.busy = false
}

// progress returns up to which revision readers have heard everything; false when one of them has
// not been told yet what is known.
func (f *feed) progress(readers ...*reader) (revision uint64, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range readers {
		if _, live := f.readers[r]; !live || r.busy || r.lost || len(r.waiting) > 0 {
			return 0, false
		}
	}
	return f.seen, f.seen > 0
}

// errJoined ends a watch that is not needed any more.
var errJoined = errors.New("the reader has joined the feed")

// catchUp makes a reader hear of everything behind a revision. What the feed does not have any more it
// sends itself, before it returns.
func (f *feed) catchUp(ctx context.Context, r *reader, after uint64, send func(core.KeyEvent) error) error {
	for {
		joined, err := f.join(ctx, r, after)
		if joined || err != nil {
			return err
		}
		err = f.keys.WatchKeys(ctx, core.KeyWatch{Prefix: Root, After: after, Progress: behind}, func(e core.KeyEvent) error {
			if key, ok := keyOf(e); ok && r.wants(key) {
				if err := send(e); err != nil {
					return err
				}
			}
			if e.More {
				return nil
			}
			after = e.Revision
			joined, err := f.join(ctx, r, after)
			if joined {
				return errJoined
			}
			return err
		})
		switch {
		case errors.Is(err, errJoined):
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && !fault.Is(err, fault.Unavailable):
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retry):
		}
	}
}
