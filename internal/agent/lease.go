package agent

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// lease is until when this node may run instances that need one: by the host's clock, from when it
// sent the sign of life that the leader has confirmed. An agent begins with none.
//
// What suspends tasks in time is not this, which may be stopped itself, but their supervisors; this lets
// nothing start without a lease, and those tasks go on that are still wanted when there is one again.
type lease struct {
	clock   func() time.Duration
	leasers []driver.Leaser

	mu      sync.Mutex
	until   time.Duration
	term    int           // how often one was granted when there was none
	changed chan struct{} // closed and replaced when there is one again
}

func newLease(drivers map[string]driver.Driver) *lease {
	l := &lease{clock: driver.SinceBoot, changed: make(chan struct{})}
	for _, d := range drivers {
		if leaser, ok := d.(driver.Leaser); ok {
			l.leasers = append(l.leasers, leaser)
			l.clock = leaser.Clock
		}
	}
	return l
}

// extend renews the lease. What is wanted of the node was told before. It reports whether there was none.
func (l *lease) extend(until time.Duration) (anew bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if until <= l.until {
		return false, nil
	}
	for _, d := range l.leasers {
		if err := d.Lease(until); err != nil {
			return false, err // nothing starts, and what runs is suspended in time
		}
	}
	now := l.clock()
	anew = l.until <= now && now < until
	l.until = until
	if anew {
		l.term++
		close(l.changed)
		l.changed = make(chan struct{})
	}
	return anew, nil
}

// held reports whether tasks may start, or go on, in which term, and where to wait for a change of that.
func (l *lease) held() (term int, ok bool, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.term, l.clock() < l.until, l.changed
}

// watch notices when the lease was not renewed in time, and calls then.
func (l *lease) watch(ctx context.Context, then func()) {
	noticed := 0 // the term whose end was
	for {
		l.mu.Lock()
		left, term, changed := l.until-l.clock(), l.term, l.changed
		l.mu.Unlock()
		if left <= 0 {
			if term != noticed {
				noticed = term
				then()
			}
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(left):
		}
	}
}

// leased reports whether the instance needs the node's lease.
func (w *worker) leased() bool {
	as, _, _ := w.desired()
	return as.Instance.Leased
}

// goOn lets those tasks go on that were suspended when the node's lease ended, if there is one again and the instance is still
// wanted: what is wanted was told before the lease, and is looked at after it.
func (w *worker) goOn(ctx context.Context, p *prepared) {
	if !w.leased() {
		return
	}
	term, held, _ := w.agent.lease.held()
	if _, want, _ := w.desired(); !want || !held || term == w.term {
		return
	}
	w.term = term
	for _, t := range slices.Concat(p.template.InitTasks, p.template.Tasks, []model.TaskSpec{*holder()}) {
		w.mu.Lock()
		runs := w.runs[t.Name]
		w.mu.Unlock()
		d, ok := w.agent.Drivers[driverName(&t)].(driver.Leaser)
		if len(runs) == 0 || !ok {
			continue
		}
		if err := d.GoOn(ctx, runID(w.id, t.Name, runs[len(runs)-1])); err != nil && !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Unavailable) {
			w.log.Warn("a task that was suspended could not go on", "task", t.Name, "error", err)
		}
	}
}

// isSuspended reports whether something could not be done as the task is suspended, with the end of the node's lease.
func isSuspended(err error) bool {
	return err != nil && strings.Contains(err.Error(), driver.Suspended)
}

// lapsedBefore reports whether a task could not start because the lease had ended.
func lapsedBefore(err error) bool { return err != nil && strings.Contains(err.Error(), driver.Lapsed) }

// awaitTurn waits until a stateful instance may start: nothing else of its slot is left on this
// node, and the node holds a lease where one is needed. It returns false when the instance is not
// wanted any more, or ctx is done.
func (w *worker) awaitTurn(ctx context.Context) bool {
	as, _, _ := w.desired()
	if !as.Instance.Stateful {
		return true
	}
	for {
		if _, want, _ := w.desired(); !want {
			return false
		}
		term, held, changed := w.agent.lease.held()
		other, over := w.agent.other(w)
		why := ""
		switch {
		case other != "":
			why = "waiting for instance " + model.ShortID(other) + ", which has this slot still, to end"
		case as.Instance.Leased && !held:
			why = "waiting for a lease: this node has not reached the cluster's leader"
		default:
			w.term = term
			return ctx.Err() == nil
		}
		w.set(func(st *model.InstanceStatus) { st.Message = why })
		select {
		case <-ctx.Done():
			return false
		case <-w.wake:
		case <-changed:
		case <-over:
		}
	}
}

// other returns another instance of the worker's slot that has not ended here, "" when there is
// none, and otherwise where to wait for a change of it.
func (a *Agent) other(w *worker) (id string, changed <-chan struct{}) {
	as, _, _ := w.desired()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, o := range a.workers {
		if o == w {
			continue
		}
		o.mu.Lock()
		i, st, news := o.assignment.Instance, o.status.State, o.changed
		older := !o.hasStatus || !st.Final()
		o.mu.Unlock()
		same := i.Stateful && i.Namespace == as.Instance.Namespace && i.Application == as.Instance.Application && i.Name == as.Instance.Name
		if same && older && i.Created.Before(as.Instance.Created) {
			return i.ID, news
		}
	}
	return "", nil
}
