package control

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"github.com/tutti-run/tutti/internal/store"
)

const (
	// setChanges is about how many changes a pass makes in one set. Tens of thousands at once would be
	// one log entry of many megabytes, over which the leader would lose the lead.
	setChanges = 500
	// setsAtOnce is how many sets that do not depend on each other are under way.
	setsAtOnce = 8
)

// cut ends the change set if it is large. It is called where what was decided so far may happen
// without what follows, as if the pass had ended here.
func (p *pass) cut() {
	if p.cs.Len() >= setChanges {
		p.split()
	}
}

// split ends the change set.
func (p *pass) split() {
	if p.cs.Len() > 0 {
		p.full, p.cs = append(p.full, p.cs), &store.ChangeSet{}
	}
}

// commit makes the changes of the pass: one set after the other, apart from loose ones.
func (p *pass) commit(ctx context.Context) error {
	claims := p.cs
	if len(p.full) > 0 {
		claims = &store.ChangeSet{}
	}
	for _, id := range slices.Sorted(maps.Keys(p.claims)) {
		claims.PutStatus(p.claims[id])
	}
	if claims != p.cs {
		if err := p.commitAll(ctx, claims); err != nil {
			return err
		}
	}
	from, to := p.loose[0], p.loose[1]
	if err := p.commitAll(ctx, p.full[:from]...); err != nil {
		return err
	}
	if err := p.commitLoose(ctx, p.full[from:to]); err != nil {
		return err
	}
	return p.commitAll(ctx, append(p.full[to:], p.cs)...)
}

func (p *pass) commitAll(ctx context.Context, sets ...*store.ChangeSet) error {
	for _, cs := range sets {
		if cs.Len() == 0 {
			continue
		}
		if _, err := p.c.Store.Commit(ctx, cs); err != nil {
			return err
		}
	}
	return nil
}

// commitLoose makes changes of which each may happen without the others, several sets at a time.
func (p *pass) commitLoose(ctx context.Context, sets []*store.ChangeSet) error {
	if len(sets) < 2 {
		return p.commitAll(ctx, sets...)
	}
	var all sync.WaitGroup
	next := make(chan *store.ChangeSet)
	errs := make([]error, setsAtOnce)
	for n := range errs {
		all.Go(func() {
			for cs := range next {
				if errs[n] == nil {
					errs[n] = p.commitAll(ctx, cs)
				}
			}
		})
	}
	for _, cs := range sets {
		next <- cs
	}
	close(next)
	all.Wait()
	return errors.Join(errs...)
}
