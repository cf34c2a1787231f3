package agent

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/model"
)

// lease is until when this node may run instances that need one: by the host's clock, from when it
// sent the sign of life that the leader has confirmed. An agent begins with none.
//
// What ends tasks in time is not this, which may be stopped itself, but their supervisors; this lets
// them end properly if there is time, and lets nothing start without a lease.
type lease struct {
	clock   func() time.Duration
	leasers []driver.Leaser

	mu      sync.Mutex
	until   time.Duration
	grace   time.Duration // how long before that tasks are asked to end
	ending  bool          // it was not renewed in time: tasks should end
	changed chan struct{} // closed and replaced when ending or held may have changed
}

// leaseGrace is how long before the end of a lease tasks are asked to end, at most: a fifth of a shorter one.
const leaseGrace = time.Second

func newLease(drivers map[string]driver.Driver) *lease {
	l := &lease{clock: driver.SinceBoot, changed: make(chan struct{}), ending: true}
	for _, d := range drivers {
		if leaser, ok := d.(driver.Leaser); ok {
			l.leasers = append(l.leasers, leaser)
			l.clock = leaser.Clock
		}
	}
	return l
}

// extend renews the lease.
func (l *lease) extend(until time.Duration) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if until <= l.until {
		return nil
	}
	for _, d := range l.leasers {
		if err := d.Lease(until); err != nil {
			return err // nothing starts, and what runs ends in time
		}
	}
	now := l.clock()
	l.until, l.grace = until, min(leaseGrace, (until-now)/5)
	if l.ending && now < until-l.grace {
		l.ending = false
		l.tell()
	}
	return nil
}

func (l *lease) tell() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// held reports whether tasks may start, or go on, and where to wait for a change of that.
func (l *lease) held() (bool, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.ending && l.clock() < l.until, l.changed
}

// watch notices when the lease was not renewed in time, and calls then.
func (l *lease) watch(ctx context.Context, then func()) {
	for {
		l.mu.Lock()
		left := l.until - l.grace - l.clock()
		ends := left <= 0 && !l.ending
		if ends {
			l.ending = true
			l.tell()
		}
		changed := l.changed
		idle := l.ending
		l.mu.Unlock()
		if ends {
			then()
		}
		if idle {
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

// lapsing reports whether the instance has to end because the node's lease does. An agent that was
// just started, and has none yet, ends nothing: supervisors know until when what runs may.
func (w *worker) lapsing() bool {
	l := w.agent.lease
	l.mu.Lock()
	ends := l.ending && l.until > 0
	l.mu.Unlock()
	return ends && w.leased()
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
		held, changed := w.agent.lease.held()
		other, over := w.agent.other(w)
		why := ""
		switch {
		case other != "":
			why = "waiting for instance " + model.ShortID(other) + ", which has this slot still, to end"
		case as.Instance.Leased && !held:
			why = "waiting for a lease: this node has not reached the cluster's leader"
		default:
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
