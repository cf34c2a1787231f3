package marathon

import (
	"cmp"
	"encoding/json"
	"slices"
	"time"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// record is a deployment: a change that is under way, or was.
type record struct {
	ID       string    `json:"id"`
	Version  string    `json:"version"`
	Started  time.Time `json:"started"`
	Affected []target  `json:"affected"`
	Groups   []byte    `json:"groups,omitempty"` // the groups before, as they were kept
	// State is empty while it is under way.
	State  string `json:"state,omitempty"`
	Reason string `json:"reason,omitempty"`
}

const (
	succeeded = "succeeded"
	failed    = "failed"
	// endedFor is how long an ended deployment is kept for those who watch.
	endedFor = time.Minute
)

// target is what a deployment does to one app or pod.
type target struct {
	Path       string `json:"path"`
	Pod        bool   `json:"pod,omitempty"`
	Action     string `json:"action"`
	WorkloadID string `json:"workloadID,omitempty"`
	Gone       bool   `json:"gone,omitempty"`
	Before     *kept  `json:"before,omitempty"` // nil: it was not there
	Count      int    `json:"count,omitempty"`  // before
}

func (t *target) actionName() string {
	if t.Pod {
		return t.Action + "Pod"
	}
	return t.Action + "Application"
}

type action struct {
	Action string `json:"action"`
	App    string `json:"app,omitempty"`
	Pod    string `json:"pod,omitempty"`
}

type step struct {
	Actions []action `json:"actions"`
}

func (t *target) action(name string) action {
	if t.Pod {
		return action{Action: name, Pod: t.Path}
	}
	return action{Action: name, App: t.Path}
}

// steps are those of a plan: what starts is made first and given its instances then.
func (r *record) steps() []step {
	first, second := step{}, step{}
	for i := range r.Affected {
		t := &r.Affected[i]
		if t.Action == "" {
			continue
		}
		first.Actions = append(first.Actions, t.action(t.actionName()))
		if t.Action == "Start" {
			scale := *t
			scale.Action = "Scale"
			second.Actions = append(second.Actions, scale.action(scale.actionName()))
		}
	}
	out := []step{}
	for _, s := range []step{first, second} {
		if len(s.Actions) > 0 {
			out = append(out, s)
		}
	}
	return out
}

// records are the deployments that are under way, in the order in which they began.
func records(snap *store.Snapshot, ns string) (out []*record) {
	prefix := deploymentPrefix(ns)
	for kv := range snap.Keys().Range(prefix, store.PrefixEnd(prefix)) {
		if kv.TTL > 0 {
			continue // it has ended
		}
		if r := readRecord(kv); r != nil && r.State == "" {
			out = append(out, r)
		}
	}
	slices.SortStableFunc(out, func(a, b *record) int { return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.ID, b.ID)) })
	return out
}

func readRecord(kv *store.KeyValue) *record {
	r := &record{}
	if kv == nil || json.Unmarshal(kv.Value, r) != nil {
		return nil
	}
	return r
}

func recordKey(ns, id string) string { return deploymentPrefix(ns) + id }

// under returns the deployment under way that an app, a pod or a job is part of, nil when there is none.
func under(snap *store.Snapshot, ns, path string) *record {
	kv, ok := snap.Keys().Get(lockKey(ns, path))
	if !ok {
		return nil
	}
	kv, ok = snap.Keys().Get(recordKey(ns, string(kv.Value)))
	if !ok {
		return nil
	}
	if r := readRecord(kv); r != nil && r.State == "" {
		return r
	}
	return nil
}

func (r *record) put(ns string) core.KeyPut {
	data, err := json.Marshal(r)
	if err != nil {
		panic("a record of a deployment is plain data: " + err.Error())
	}
	p := core.KeyPut{Key: recordKey(ns, r.ID), Value: data}
	if r.State != "" {
		p.TTLMilliseconds = endedFor.Milliseconds()
	}
	return p
}

// progress says how a deployment stands: ended and how, or still under way.
func (r *record) progress(snap *store.Snapshot) (state, reason string) {
	for i := range r.Affected {
		t := &r.Affected[i]
		if t.Gone {
			for range store.InstancesOfWorkload(snap, t.WorkloadID) {
				return "", ""
			}
			continue
		}
		w, ok := store.Get[*model.Workload](snap, t.WorkloadID)
		if !ok {
			continue // somebody else removed it
		}
		switch w.Status.Rollout.State {
		case model.RolloutRolledBack, model.RolloutFailed:
			return failed, t.Path + ": " + w.Status.Rollout.Message
		}
		if !reached(snap, w) {
			return "", ""
		}
	}
	return succeeded, ""
}

// reached reports whether a workload is as it is wanted: so many instances of its revision are ready, and
// none of another runs.
func reached(snap *store.Snapshot, w *model.Workload) bool {
	r := &w.Status.Rollout
	if w.Status.Generation != w.Generation || w.Status.Released != w.RevisionID || r.State == model.RolloutUpdating || r.State == model.RolloutRolling || r.State == model.RolloutPaused {
		return false
	}
	ready := 0
	for i := range store.InstancesOfWorkload(snap, w.ID) {
		switch {
		case i.RevisionID == w.RevisionID && i.Serving():
			ready++
		case i.WantsToRun():
			return false
		case !i.Status.State.Final() && i.Desired != model.DesiredRun:
			return false // it is still ending
		}
	}
	return w.Suspended || w.Type.PerNode() || ready == w.Count
}
