package core

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// Following is a workload that another platform keeps, as it is there now.
type Following struct {
	// Workload has the ID that the platform calls it by, its Belongs and its Followed; its Count is the
	// platform's own.
	Workload *model.Workload `json:"workload"`
	// Told is the number of instances that people asked for here, and that the platform has been told; with
	// Refused it would not have it.
	Told    *int   `json:"told,omitempty"`
	Refused string `json:"refused,omitempty"`
}

// Follow shows what another platform keeps. What people asked of it here, and the platform has not been told
// yet, stays asked.
func (c *Core) Follow(ctx context.Context, who Caller, f Following) (err error) {
	a, err := c.begin(who, "follow", "")
	if err != nil {
		return err
	}
	w := f.Workload
	if w == nil || w.ID == "" || w.Belongs == nil || w.Followed == nil {
		return fault.New(fault.Invalid, "a workload is followed that has an ID, and says what it is to another platform and how it is there")
	}
	a.what = w.FullName()
	for _, name := range []string{w.Name, w.Application} {
		if err := model.CheckName(name); err != nil {
			return fault.New(fault.Invalid, "name %w", err)
		}
	}
	return c.update(ctx, func(snap *store.Snapshot, cs *store.ChangeSet) error {
		now := time.Now()
		want := w.Clone()
		want.Namespace = namespaceOr(want.Namespace)
		want.Generation, want.Revision = 1, 0
		want.RevisionID = model.RevisionIDOf(want.ID, want.Template.Hash())
		if other, taken := store.ByName[*model.Workload](snap, want.Namespace, want.Application, want.Name); taken && other.ID != want.ID {
			return fault.New(fault.Conflict, "the name %s is taken by %s", want.FullName(), workloadLabel(other))
		}
		if old, ok := store.Get[*model.Workload](snap, want.ID); ok {
			if old.Followed == nil {
				return fault.New(fault.Conflict, "%s is not followed", old.FullName())
			}
			want.Revision, want.Created, want.Extensions, want.Status = old.Revision, old.Created, old.Clone().Extensions, old.Status
			if asked := old.Count != old.Followed.Count; asked {
				if f.Told == nil || *f.Told != old.Count {
					want.Count = old.Count
				} else if f.Refused != "" {
					event(cs, now, "workload not scaled", want, fmt.Sprintf("%s refuses %d: %s", want.Belongs.Platform, old.Count, f.Refused))
				}
			}
			want.Generation = old.Generation
			if want.Count != old.Count || want.RevisionID != old.RevisionID {
				want.Generation++
			}
			if same(want, old) {
				return nil
			}
		} else if want.Created.IsZero() {
			want.Created = now
		}
		put(cs, want)
		if _, ok := store.ByName[*model.Application](snap, want.Namespace, "", want.Application); !ok {
			put(cs, &model.Application{
				Meta: model.Meta{ID: model.NewID(), Namespace: want.Namespace, Name: want.Application, Created: now}, Source: cmp.Or(want.Belongs.Platform, who.Via), Version: 1,
			})
		}
		return nil
	})
}

// Unfollow forgets what another platform keeps no more, and its application with the last member.
func (c *Core) Unfollow(ctx context.Context, who Caller, id string) (err error) {
	a, err := c.begin(who, "follow", id)
	if err != nil {
		return err
	}
	defer a.end(&err)
	return c.update(ctx, func(snap *store.Snapshot, cs *store.ChangeSet) error {
		w, ok := store.Get[*model.Workload](snap, id)
		if !ok {
			return nil
		}
		if w.Followed == nil {
			return fault.New(fault.Conflict, "%s is not followed", w.FullName())
		}
		cs.Expect(model.KindWorkload, w.ID, w.Revision)
		cs.Delete(model.KindWorkload, w.ID)
		if app, ok := store.ByName[*model.Application](snap, w.Namespace, "", w.Application); ok && !hasMembers(snap, app, map[string]bool{w.ID: true}) {
			cs.Expect(model.KindApplication, app.ID, app.Revision)
			cs.Delete(model.KindApplication, app.ID)
		}
		return nil
	})
}
