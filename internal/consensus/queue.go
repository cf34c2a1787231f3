package consensus

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/tutti-run/tutti/internal/store"
)

// Outcome is what became of a proposed change set. The zero Outcome says that nothing is known:
// the set may or may not be replicated.
type Outcome struct {
	// Result is the store's, when Index is set.
	Result store.Result `json:"r,omitzero"`
	// Index is that of the log entry with the set. What was applied up to there shows the result.
	Index uint64 `json:"i,omitempty"`
	// NotTaken is set when the set was surely not taken up, and may be proposed again.
	NotTaken bool `json:"n,omitempty"`
	// Error says why there is no result.
	Error string `json:"e,omitempty"`
}

// call is who waits for the outcomes of some sets.
type call struct {
	outcomes []Outcome
	left     atomic.Int32
	done     chan struct{} // closed with the last outcome
	// here keeps the sets from being passed on to another server; a reign other than 0 from being
	// taken up in any other.
	here  bool
	reign int
	// withdrawn says that nobody waits any more: what was not taken up by then must not be.
	withdrawn atomic.Bool
}

// proposal is one set of a call.
type proposal struct {
	set  []byte
	call *call
	slot int
}

func newCall(n int, here bool, reign int) *call {
	c := &call{outcomes: make([]Outcome, n), done: make(chan struct{}), here: here, reign: reign}
	c.left.Store(int32(n))
	return c
}

func (p proposal) resolve(o Outcome) {
	p.call.outcomes[p.slot] = o
	if p.call.left.Add(-1) == 0 {
		close(p.call.done)
	}
}

// queueBytes bounds what waits to be replicated; a set that is larger waits alone.
const queueBytes = 64 << 20

// queue holds proposals until the pump takes them.
type queue struct {
	mu     sync.Mutex
	items  []proposal
	bytes  int
	closed bool
	more   chan struct{} // holds one value while there may be something to take
	room   chan struct{} // closed and replaced when something was taken
}

func newQueue() *queue { return &queue{more: make(chan struct{}, 1), room: make(chan struct{})} }

// put appends the sets of a call, as room allows. It returns how many were put: less than all when
// ctx was done or the queue closed.
func (q *queue) put(ctx context.Context, c *call, sets [][]byte) int {
	for i := 0; i < len(sets); {
		q.mu.Lock()
		for i < len(sets) && !q.closed && (len(q.items) == 0 || q.bytes+len(sets[i]) <= queueBytes) {
			if q.items == nil {
				q.items = make([]proposal, 0, 64)
			}
			q.items = append(q.items, proposal{set: sets[i], call: c, slot: i})
			q.bytes += len(sets[i])
			i++
		}
		room, closed := q.room, q.closed
		q.mu.Unlock()
		q.wake()
		if i == len(sets) || closed {
			return i
		}
		select {
		case <-room:
		case <-ctx.Done():
			return i
		}
	}
	return len(sets)
}

func (q *queue) wake() {
	select {
	case q.more <- struct{}{}:
	default:
	}
}

// take removes as many of the oldest as fit into some bytes; one at least, unless there is none.
func (q *queue) take(maxBytes int) []proposal {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, bytes := 0, 0
	for n < len(q.items) && (n == 0 || bytes+len(q.items[n].set) <= maxBytes) {
		bytes += len(q.items[n].set)
		n++
	}
	if n == 0 {
		return nil
	}
	out := q.items[:n:n]
	q.items = q.items[n:]
	if len(q.items) == 0 {
		q.items = nil
	}
	q.took(bytes)
	return out
}

func (q *queue) took(bytes int) {
	q.bytes -= bytes
	close(q.room)
	q.room = make(chan struct{})
}

// putBack puts proposals that were not taken up to the front.
func (q *queue) putBack(items []proposal) {
	var gone []proposal
	items = slices.DeleteFunc(slices.Clone(items), func(p proposal) bool {
		if p.call.withdrawn.Load() {
			gone = append(gone, p)
			return true
		}
		return false
	})
	resolveAll(gone, Outcome{NotTaken: true})
	q.mu.Lock()
	closed := q.closed
	if !closed {
		q.items = slices.Concat(items, q.items)
		for _, p := range items {
			q.bytes += len(p.set)
		}
	}
	q.mu.Unlock()
	if closed {
		resolveAll(items, Outcome{NotTaken: true, Error: "this server is shutting down"})
		return
	}
	q.wake()
}

// withdraw removes what of a call still waits and marks it as not taken.
func (q *queue) withdraw(c *call) {
	c.withdrawn.Store(true)
	q.drop(func(p proposal) bool { return p.call == c })
}

// dropHere answers those that only this server may take, which it cannot while it does not lead.
func (q *queue) dropHere() { q.drop(func(p proposal) bool { return p.call.here }) }

func (q *queue) drop(which func(proposal) bool) {
	q.mu.Lock()
	var gone, rest []proposal
	for _, p := range q.items {
		if which(p) {
			gone = append(gone, p)
			q.bytes -= len(p.set)
		} else {
			rest = append(rest, p)
		}
	}
	if len(gone) > 0 {
		q.items = rest
		q.took(0)
	}
	q.mu.Unlock()
	resolveAll(gone, Outcome{NotTaken: true})
}

// close fails what waits and whatever comes.
func (q *queue) close() {
	q.mu.Lock()
	items := q.items
	q.items, q.bytes, q.closed = nil, 0, true
	close(q.room)
	q.room = make(chan struct{})
	q.mu.Unlock()
	resolveAll(items, Outcome{NotTaken: true, Error: "this server is shutting down"})
}

func (q *queue) empty() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.items) == 0
}

func resolveAll(items []proposal, o Outcome) {
	for _, p := range items {
		p.resolve(o)
	}
}
