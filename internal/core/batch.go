package core

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// DeployTogether makes all of a batch true, as Deploy does of one deployment: as a whole or not at all.
func (c *Core) DeployTogether(ctx context.Context, who Caller, b Batch) (results []DeployResult, err error) {
	dry := len(b.Deployments) > 0 && b.Deployments[0].DryRun
	var names []string
	for i := range b.Deployments {
		d := &b.Deployments[i]
		d.Namespace = namespaceOr(cmp.Or(d.Namespace, who.Namespace))
		names = append(names, d.Namespace+"/"+d.Application)
	}
	a, err := c.begin(who, "deploy", strings.Join(names, ", "))
	if err != nil {
		return nil, err
	}
	a.need.silent = dry
	defer func() {
		if err == nil {
			for i := range results {
				a.what += changesText(results[i].Changes)
			}
		}
		a.end(&err)
	}()
	digests, key, err := c.prepareBatch(ctx, a, &b)
	if err != nil {
		return nil, err
	}
	err = c.update(ctx, func(snap *store.Snapshot, cs *store.ChangeSet) error {
		results = results[:0]
		if err := removeListed(snap, cs, a, b.Remove); err != nil {
			return err
		}
		outside := map[string]string{}
		nets := map[string]*model.Network{}
		for i := range b.Deployments {
			p := &planner{snap: snap, cs: cs, d: &b.Deployments[i], now: time.Now(), digests: digests, refs: map[string]string{}, key: key, outside: outside, networksOf: nets}
			if p.d.Application == "" {
				p.refs = outside
			}
			if err := p.plan(who); err != nil {
				return err
			}
			results = append(results, p.result)
		}
		forgetEmpty(snap, cs, &b)
		if dry {
			*cs = store.ChangeSet{}
			return nil
		}
		return b.Keys.addTo(cs)
	})
	if err != nil {
		return nil, err
	}
	for i := range results {
		if !dry {
			c.Log.Info("application deployed", "application", results[i].Application, "by", who.Name, "via", who.Via, "changes", len(results[i].Changes))
		}
	}
	return results, nil
}

// prepareBatch refuses what can be refused without looking at the state, and finds out what images mean.
func (c *Core) prepareBatch(ctx context.Context, a *act, b *Batch) (digests map[string]string, key []byte, err error) {
	digests = map[string]string{}
	for i := range b.Deployments {
		d := &b.Deployments[i]
		if err := a.in(d.Namespace); err != nil {
			return nil, nil, err
		}
		if err := hostReach(a.who, d); err != nil {
			return nil, nil, err
		}
		if err := checkDeployment(d); err != nil {
			return nil, nil, err
		}
		if err := c.resolveImages(ctx, d, digests); err != nil {
			return nil, nil, err
		}
		if key == nil && (len(d.Secrets)+len(d.Configs)+len(d.Logins) > 0 || refersToConfigs(d)) {
			if key, err = c.Trust.SecretKey(); err != nil {
				return nil, nil, err
			}
		}
	}
	return digests, key, nil
}

// forgetEmpty deletes the applications of which a batch takes the last member, if they came to be with their
// members.
func forgetEmpty(snap *store.Snapshot, cs *store.ChangeSet, b *Batch) {
	removed, left := map[string]bool{}, map[*model.Application]bool{}
	for _, id := range b.Remove {
		removed[id] = true
		if w, ok := store.Get[*model.Workload](snap, id); ok {
			if a, ok := store.ByName[*model.Application](snap, w.Namespace, "", w.Application); ok {
				left[a] = true
			}
		}
	}
	for a := range left {
		here := func(d Deployment) bool {
			return d.Namespace == a.Namespace && d.Application == a.Name && d.Source == a.Source && d.Members
		}
		with := func(d Deployment) bool { return here(d) && len(d.Workloads)+len(d.Volumes) > 0 }
		if !slices.ContainsFunc(b.Deployments, here) || slices.ContainsFunc(b.Deployments, with) {
			continue
		}
		if !hasMembers(snap, a, removed) {
			cs.Delete(model.KindApplication, a.ID)
		}
	}
}

// hasMembers reports whether an application has others than the workloads that are removed, and what leads
// to them.
func hasMembers(snap *store.Snapshot, a *model.Application, removed map[string]bool) bool {
	for w := range store.ByApplication[*model.Workload](snap, a.Namespace, a.Name) {
		if !removed[w.ID] {
			return true
		}
	}
	for s := range store.ByApplication[*model.Service](snap, a.Namespace, a.Name) {
		if !removed[s.WorkloadID] {
			return true
		}
	}
	for range store.ByApplication[*model.Network](snap, a.Namespace, a.Name) {
		return true
	}
	for range store.ByApplication[*model.Volume](snap, a.Namespace, a.Name) {
		return true
	}
	for range store.ByApplication[*model.Secret](snap, a.Namespace, a.Name) {
		return true
	}
	for range store.ByApplication[*model.Config](snap, a.Namespace, a.Name) {
		return true
	}
	return false
}

func removeListed(snap *store.Snapshot, cs *store.ChangeSet, a *act, ids []string) error {
	for _, id := range ids {
		w, ok := store.Get[*model.Workload](snap, id)
		if !ok {
			return fault.New(fault.NotFound, "workload %s does not exist", id)
		}
		if err := a.in(w.Namespace); err != nil {
			return err
		}
		if err := w.Refusal(); err != nil {
			return err
		}
		removeWorkload(snap, cs, w, nil)
		removeServices(snap, cs, w)
		event(cs, time.Now(), "workload removed", w, "by "+a.who.Name+" through "+a.who.Via)
	}
	return nil
}
