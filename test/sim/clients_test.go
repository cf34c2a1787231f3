package sim_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// Clients read and write registers through whichever servers they find, and note when each
// operation began and ended and what it came to. The history must be linearizable: as if every
// operation had happened at one instant between the two.

const (
	clients   = 3
	registers = 4 // those with odd numbers are keys, the others objects
)

// operation is one attempt to read a register, or to replace its content.
type operation struct {
	register int
	write    bool
	expect   string // what a write found there
	value    string // what it writes
}

// outcome is what it came to. Unknown may or may not have happened, now or later.
type outcome struct {
	value   string // read
	done    bool   // written; otherwise, when it is known, something else was there
	unknown bool
}

// registerModel is what a register is. Values are never written twice.
var registerModel = porcupine.Model{
	Partition: func(all []porcupine.Operation) [][]porcupine.Operation {
		out := make([][]porcupine.Operation, registers)
		for _, o := range all {
			k := o.Input.(operation).register
			out[k] = append(out[k], o)
		}
		return out
	},
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		s, in, out := state.(string), input.(operation), output.(outcome)
		switch {
		case !in.write:
			return out.value == s, s
		case out.unknown && s == in.expect, out.done:
			return s == in.expect, in.value
		case out.unknown:
			return true, s
		}
		return s != in.expect, s
	},
	Equal: func(a, b any) bool { return a == b },
	DescribeOperation: func(input, output any) string {
		return fmt.Sprintf("%+v → %+v", input, output)
	},
}

// history is what clients did.
type history struct {
	ctx    context.Context
	cancel context.CancelFunc
	group  sync.WaitGroup

	mu    sync.Mutex
	clock int64 // of events, so that those of one instant have an order, too
	all   []porcupine.Operation
	acks  int
}

func newHistory() *history {
	h := &history{}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	return h
}

func (h *history) now() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	return h.clock
}

func (h *history) add(client int, call int64, in operation, out outcome) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	end := h.clock
	if out.unknown {
		end = 1 << 60 // whenever
	}
	if out.done {
		h.acks++
	}
	h.all = append(h.all, porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: end})
}

func (h *history) stop() {
	h.cancel()
	h.group.Wait()
}

// begin lets the clients work.
func (c *course) clients() {
	for n := range clients {
		rnd := rand.New(rand.NewPCG(c.seed, 100+uint64(n)))
		c.history.group.Go(func() { c.client(n, rnd) })
	}
}

func (c *course) client(n int, rnd *rand.Rand) {
	for round := 0; ; round++ {
		select {
		case <-c.history.ctx.Done():
			return
		case <-time.After(time.Duration(rnd.Int64N(int64(150 * time.Millisecond)))):
		}
		live := c.live()
		if len(live) == 0 {
			continue
		}
		p := live[rnd.IntN(len(live))]
		k := rnd.IntN(registers)
		patience := 100*time.Millisecond + time.Duration(rnd.Int64N(int64(2*time.Second)))
		ctx, cancel := context.WithTimeout(c.history.ctx, patience)
		c.readAndWrite(ctx, p, n, k, fmt.Sprint(n, ".", round), rnd.IntN(3) > 0)
		cancel()
	}
}

// readAndWrite reads a register through a server and, if it is to, replaces what it found.
func (c *course) readAndWrite(ctx context.Context, p *process, client, k int, value string, write bool) {
	h := c.history
	call := h.now()
	found, revision, err := readRegister(ctx, p, k)
	if err != nil || p.dead.Load() {
		return // it may have come from anywhere, and was never believed
	}
	h.add(client, call, operation{register: k}, outcome{value: found})
	if !write {
		return
	}
	in := operation{register: k, write: true, expect: found, value: value}
	call = h.now()
	err = writeRegister(ctx, p, k, revision, value)
	switch {
	case p.dead.Load() || err != nil && !fault.Is(err, fault.Conflict):
		h.add(client, call, in, outcome{unknown: true})
	default:
		h.add(client, call, in, outcome{done: err == nil})
	}
}

func registerID(k int) string { return fmt.Sprint("register-", k) }

func readRegister(ctx context.Context, p *process, k int) (value string, revision uint64, err error) {
	if err := p.srv.Replication().Sync(ctx); err != nil {
		return "", 0, err
	}
	snap := p.srv.Core().Store.Snapshot()
	if k%2 == 1 {
		kv, ok := snap.Keys().Get(registerID(k))
		if !ok {
			return "", 0, nil
		}
		return string(kv.Value), kv.Modified, nil
	}
	r, ok := store.Get[*model.Config](snap, registerID(k))
	if !ok {
		return "", 0, nil
	}
	return string(r.Data), r.Revision, nil
}

func writeRegister(ctx context.Context, p *process, k int, expect uint64, value string) error {
	cs := &store.ChangeSet{}
	id := registerID(k)
	if k%2 == 1 {
		cs.ExpectKey(id, expect)
		cs.PutKey(id, []byte(value), 0)
	} else {
		cs.Expect(model.KindConfig, id, expect)
		cs.Put(&model.Config{Meta: model.Meta{ID: id, Name: id, Namespace: model.DefaultNamespace}, Data: []byte(value)})
	}
	_, err := p.srv.Core().Store.Commit(ctx, cs)
	return err
}

// checkHistory makes sure that what clients saw can be explained.
func (c *course) checkHistory() {
	h := c.history
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.acks == 0 {
		c.broken("no client ever wrote anything")
	}
	c.tally["operations of clients"] += len(h.all)
	result := porcupine.CheckOperations(registerModel, h.all)
	if !result {
		for _, o := range h.all {
			c.tell("client %d, %d to %d: %s", o.ClientId, o.Call, o.Return, registerModel.DescribeOperation(o.Input, o.Output))
		}
		c.broken("what clients read and wrote has no order in which it could have happened")
	}
}
