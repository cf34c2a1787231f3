package marathon

import (
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/tutti-run/tutti/internal/store"
)

// deploymentInfo is a deployment under way, as clients get it.
type deploymentInfo struct {
	ID             string       `json:"id"`
	Version        string       `json:"version"`
	AffectedApps   []string     `json:"affectedApps"`
	AffectedPods   []string     `json:"affectedPods"`
	Steps          []step       `json:"steps"`
	CurrentActions []actionInfo `json:"currentActions"`
	CurrentStep    int          `json:"currentStep"`
	TotalSteps     int          `json:"totalSteps"`
}

type actionInfo struct {
	action
	ReadinessCheckResults []readiness `json:"readinessCheckResults"`
}

func (r *record) view(snap *store.Snapshot) deploymentInfo {
	v := deploymentInfo{ID: r.ID, Version: r.Version, AffectedApps: []string{}, AffectedPods: []string{}, Steps: r.steps(), CurrentActions: []actionInfo{}}
	for i := range r.Affected {
		t := &r.Affected[i]
		if t.Pod {
			v.AffectedPods = append(v.AffectedPods, t.Path)
		} else {
			v.AffectedApps = append(v.AffectedApps, t.Path)
		}
		one := record{Affected: []target{*t}}
		if state, _ := one.progress(snap); state == "" && t.Action != "" {
			current := *t
			if current.Action == "Start" {
				current.Action = "Scale"
			}
			v.CurrentActions = append(v.CurrentActions, actionInfo{current.action(current.actionName()), []readiness{}})
		}
	}
	v.TotalSteps = len(v.Steps)
	v.CurrentStep = v.TotalSteps
	return v
}

// pending are the deployments that have not come to their end, whether that was told yet or not.
func (a *API) pending(r *request) (out []*record) {
	for _, rec := range records(r.snap, r.ns) {
		if state, _ := rec.progress(r.snap); state == "" {
			out = append(out, rec)
		}
	}
	return out
}

func (a *API) deploymentList(w http.ResponseWriter, r *request) error {
	out := []deploymentInfo{}
	for _, rec := range a.pending(r) {
		out = append(out, rec.view(r.snap))
	}
	answer(w, http.StatusOK, out)
	return nil
}

// deploymentCancel takes a deployment back, which is another one; with force it is only given up.
func (a *API) deploymentCancel(w http.ResponseWriter, r *request) error {
	var back *record
	err := a.again(r, func() (err error) {
		var rec *record
		for _, p := range a.pending(r) {
			if p.ID == r.vars["deployment"] {
				rec = p
			}
		}
		if rec == nil {
			return &invalid{message: fmt.Sprintf("DeploymentPlan '%s' does not exist", r.vars["deployment"]), status: http.StatusNotFound}
		}
		if r.flag("force") {
			return a.finish(r.Context(), r.ns, rec, failed, "canceled")
		}
		c := &change{apps: map[string]*app{}, pods: map[string]*pod{}, force: true}
		for i := range rec.Affected {
			a.takeBack(r, c, &rec.Affected[i])
		}
		if rec.Groups != nil {
			before := &groupTree{}
			if json.Unmarshal(rec.Groups, before) == nil && before.Groups != nil {
				c.groups, c.versions = before, map[string][]byte{}
				c.groups.raw = groupsOf(r.snap, r.ns).raw
			}
		}
		back, err = a.commit(r, c)
		return err
	})
	if err != nil {
		return err
	}
	if back == nil {
		w.WriteHeader(http.StatusAccepted)
		return nil
	}
	answer(w, http.StatusOK, back.result())
	return nil
}

// takeBack adds to a change what a deployment's target was before.
func (a *API) takeBack(r *request, c *change, t *target) {
	switch {
	case t.Before == nil:
		if a.find(r.snap, r.ns, t.Path) != nil {
			c.remove = append(c.remove, t.Path)
		}
	case t.Before.App != nil:
		spec := t.Before.App.clone()
		n := t.Count
		spec.Instances = &n
		spec.Version, spec.VersionInfo = "", nil
		c.apps[t.Path] = spec
	case t.Before.Pod != nil:
		spec := t.Before.Pod
		spec.Scaling.Instances = t.Count
		c.pods[t.Path] = spec
	}
}
