package core

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// AccessLine is a request that a node's ingress answered.
type AccessLine struct {
	Node string `json:"node"` // name
	wire.Access
}

const (
	accessPatience = 30 * time.Second // for a node's log, when not following
	accessAgain    = time.Second      // until nodes that are new, or whose log broke off, are asked
)

// AccessLog yields what the ingresses of all nodes wrote down of requests for a reference, or for all that the
// caller may see: what there is in order of time, then, when following, each as it comes.
func (c *Core) AccessLog(ctx context.Context, who Caller, ref string, o driver.LogOptions, yield func(AccessLine) error) error {
	a, err := c.begin(who, "logs", ref)
	if err != nil {
		return err
	}
	wanted, err := c.accessOf(who, a, ref)
	if err != nil {
		return err
	}
	wanted.Options = o
	wanted.Options.Follow = false
	past, read, err := c.pastAccess(ctx, wanted)
	for i := range past {
		if err := yield(past[i]); err != nil {
			return err
		}
	}
	if !o.Follow {
		return err
	}
	return c.followAccess(ctx, wanted, read, yield)
}

// accessOf chooses the services of a reference. Who sees all of them may also read of those that are gone.
func (c *Core) accessOf(who Caller, a *act, ref string) (r wire.AccessRequest, err error) {
	seen := c.look(who)
	if ref == "" && who.has(model.RoleViewer, "") {
		r.All = true
		return r, nil
	}
	var f Found
	if ref != "" {
		if f, err = find(seen, who.namespace(), ref); err == nil {
			err = a.about(f)
		}
		if err != nil {
			return r, err
		}
		if f.Instance != nil || f.Node != nil {
			return r, fault.New(fault.Invalid, "%s is %s; name an application or a workload", ref, f.describe())
		}
	}
	for s := range store.List[*model.Service](seen) {
		switch {
		case !slices.ContainsFunc(s.Routes, func(r model.Route) bool { return r.AccessLog }):
		case f.Application != nil && (s.Namespace != f.Application.Namespace || s.Application != f.Application.Name):
		case f.Workload != nil && s.WorkloadID != f.Workload.ID:
		default:
			r.Services = append(r.Services, s.ID)
		}
	}
	if len(r.Services) == 0 && ref != "" {
		return r, fault.New(fault.Invalid, "no route of %s has access_log: true", ref)
	}
	return r, nil
}

// pastAccess reads what there is, and says how far that is, by node; nodes that did not answer are not in it.
func (c *Core) pastAccess(ctx context.Context, r wire.AccessRequest) ([]AccessLine, map[string]time.Time, error) {
	last := r.Options.Tail
	if last == 0 {
		r.Options.Tail = 1 // to know where it ends
	}
	var (
		mu   sync.Mutex
		all  []AccessLine
		errs []error
	)
	read := map[string]time.Time{}
	together(ctx, store.List[*model.Node](c.Store.Snapshot()), usageAtOnce*8, accessPatience, func(ctx context.Context, n *model.Node) {
		until := r.Options.Since
		err := c.Remote.AccessLog(ctx, n.ID, r, func(e driver.LogEntry) error {
			until = e.Time.Add(1)
			l, ok := accessLine(n.Name, &e)
			if !ok {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			if len(all) >= maxCollected {
				return fault.New(fault.Exhausted, "more than %d lines; use --tail or --since", maxCollected)
			}
			all = append(all, l)
			return nil
		})
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			errs = append(errs, fmt.Errorf("access log of %s: %w", n.Name, err))
			return
		}
		read[n.ID] = until
	})
	slices.SortStableFunc(all, func(a, b AccessLine) int { return a.Time.Compare(b.Time) })
	if last >= 0 {
		all = all[max(0, len(all)-last):]
	}
	return all, read, errors.Join(errs...)
}

func accessLine(node string, e *driver.LogEntry) (l AccessLine, ok bool) {
	l.Node = node
	return l, json.Unmarshal(e.Line, &l.Access) == nil
}

// following is how far the log of a node was read; it is of whoever reads it.
type following struct {
	busy  atomic.Bool
	since time.Time
	tail  int
}

// followAccess goes on from where read says; logs that break off are taken up again.
func (c *Core) followAccess(ctx context.Context, r wire.AccessRequest, read map[string]time.Time, yield func(AccessLine) error) error {
	ctx, cancel := context.WithCancel(ctx)
	lines := make(chan AccessLine, 256)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	known := map[string]*following{}
	open := func() {
		for n := range store.List[*model.Node](c.Store.Snapshot()) {
			f := known[n.ID]
			if f == nil {
				f = &following{since: r.Options.Since, tail: r.Options.Tail}
				if until, ok := read[n.ID]; ok {
					f.since, f.tail = until, -1
				}
				known[n.ID] = f
			}
			if n.Status.State == model.NodeDown || !f.busy.CompareAndSwap(false, true) {
				continue
			}
			wg.Go(func() {
				defer f.busy.Store(false)
				r := r
				r.Options.Follow, r.Options.Since, r.Options.Tail = true, f.since, f.tail
				_ = c.Remote.AccessLog(ctx, n.ID, r, func(e driver.LogEntry) error { // it is asked again
					l, ok := accessLine(n.Name, &e)
					if ok {
						select {
						case lines <- l:
						case <-ctx.Done():
							return ctx.Err()
						}
					}
					f.since, f.tail = e.Time.Add(1), -1
					return nil
				})
			})
		}
	}
	open()
	tick := time.NewTicker(accessAgain)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case l := <-lines:
			if err := yield(l); err != nil {
				return err
			}
		case <-tick.C:
			open()
		}
	}
}
