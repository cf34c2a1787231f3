package agent

import (
	"cmp"
	"context"
	"fmt"
	"slices"
)

// candidate is an instance that may be ended so that others can go on.
type candidate struct {
	w        *worker
	name     string
	leased   bool // of a stateful workload
	priority int
	beyond   int64 // what it uses beyond what it reserved
}

// firstToGo orders candidates: those of lower priority first, stateful ones last of their priority, then by how much each
// uses that it did not reserve.
func firstToGo(a, b candidate) int {
	leased := func(c candidate) int {
		if c.leased {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(a.priority, b.priority), cmp.Compare(leased(a), leased(b)), -cmp.Compare(a.beyond, b.beyond), cmp.Compare(a.name, b.name))
}

// Evict ends the instance that can best be spared on a host that is short of memory or pids, as if it had been stopped, and returns
// its name; "" when none runs that uses more than it reserved. The cluster replaces it, elsewhere as long as this node is short.
func (a *Agent) Evict(ctx context.Context, what string) string {
	a.mu.Lock()
	workers := make([]*worker, 0, len(a.workers))
	for _, w := range a.workers {
		workers = append(workers, w)
	}
	a.mu.Unlock()
	var list []candidate
	for _, w := range workers {
		as, want, _ := w.desired()
		if !want {
			continue
		}
		c := candidate{w: w, name: as.Instance.FullName(), leased: as.Instance.Leased, priority: as.Template.Placement.Priority}
		used, pids, ok := w.held(ctx)
		if !ok {
			continue
		}
		if what == pressurePids {
			c.beyond = pids
		} else {
			c.beyond = used
			for i := range as.Template.Tasks {
				c.beyond -= as.Template.Tasks[i].Reserve.MemoryBytes
			}
		}
		if c.beyond > 0 {
			list = append(list, c)
		}
	}
	if len(list) == 0 {
		return ""
	}
	slices.SortFunc(list, firstToGo)
	c := list[0]
	c.w.mu.Lock()
	c.w.evicted = fmt.Sprintf("ended because node %s is short of %s: it used %s that it had not reserved", a.NodeName, what, amount(what, c.beyond))
	c.w.mu.Unlock()
	c.w.poke()
	return c.name
}

const pressurePids = "pids"

func amount(what string, n int64) string {
	if what == pressurePids {
		return fmt.Sprintf("%d processes and threads", n)
	}
	return fmt.Sprintf("%d MiB of memory", n>>20)
}

// held adds up what the tasks of an instance hold; false: none runs that can be read.
func (w *worker) held(ctx context.Context) (memory, pids int64, ok bool) {
	w.mu.Lock()
	names := make([]string, 0, len(w.runs))
	for name := range w.runs {
		names = append(names, name)
	}
	w.mu.Unlock()
	for _, name := range names {
		d, id, err := w.latestRun(name)
		if err != nil {
			continue
		}
		if st, err := d.Stats(ctx, id); err == nil {
			memory, pids, ok = memory+int64(st.MemoryBytes), pids+int64(st.Pids), true
		}
	}
	return memory, pids, ok
}

// mustGo is why the instance is to be ended for others, "" when it is not.
func (w *worker) mustGo() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.evicted
}
