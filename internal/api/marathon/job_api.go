package marathon

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

func (a *API) jobTable() []route {
	on := func(method, pattern string, h handler) route {
		return route{method: method, pattern: pattern, handle: h}
	}
	return []route{
		on("GET", "/v1/jobs", a.jobList), on("POST", "/v1/jobs", a.jobCreate), on("GET", "/v1/metrics", a.metrics), on("GET", "/info", a.infoGet),
		on("POST", "/v0/scheduled-jobs", a.jobCreate), on("PUT", "/v0/scheduled-jobs/{job}", a.jobUpdate), on("GET", "/v1/queue", a.jobQueue),
		on("GET", "/v1/jobs/{job}", a.jobGet), on("PUT", "/v1/jobs/{job}", a.jobUpdate), on("DELETE", "/v1/jobs/{job}", a.jobDelete),
		on("GET", "/v1/jobs/{job}/schedules", a.scheduleList), on("POST", "/v1/jobs/{job}/schedules", a.schedulePut),
		on("GET", "/v1/jobs/{job}/schedules/{schedule}", a.scheduleGet), on("PUT", "/v1/jobs/{job}/schedules/{schedule}", a.schedulePut),
		on("DELETE", "/v1/jobs/{job}/schedules/{schedule}", a.scheduleDelete),
		on("GET", "/v1/jobs/{job}/runs", a.runList), on("POST", "/v1/jobs/{job}/runs", a.runStart),
		on("GET", "/v1/jobs/{job}/runs/{run}", a.runGet), on("POST", "/v1/jobs/{job}/runs/{run}/actions/stop", a.runStop),
	}
}

func jobPrefix(ns string) string { return keyRoot(ns) + "job/" }

// jobView is a job with what a client asked for of its schedules and runs.
type jobView struct {
	job
	Schedules      []*jobSchedule `json:"schedules,omitempty"`
	ActiveRuns     *[]runView     `json:"activeRuns,omitempty"`
	History        any            `json:"history,omitempty"`
	HistorySummary any            `json:"historySummary,omitempty"`
}

type runView struct {
	ID          string    `json:"id"`
	JobID       string    `json:"jobId"`
	Status      string    `json:"status"`
	CreatedAt   string    `json:"createdAt"`
	CompletedAt *string   `json:"completedAt"`
	Tasks       []runTask `json:"tasks"`
}

type runTask struct {
	ID          string `json:"id"`
	StartedAt   string `json:"startedAt,omitempty"`
	CompletedAt string `json:"completedAt,omitempty"`
	Status      string `json:"status"`
}

func (a *API) jobState(r *request, id string) (*jobState, *store.KeyValue, error) {
	kv, ok := r.snap.Keys().Get(jobPrefix(r.ns) + id)
	s := &jobState{}
	if !ok || json.Unmarshal(kv.Value, s) != nil || s.Job == nil {
		return nil, nil, &invalid{message: fmt.Sprintf("Job '%s' does not exist", id), status: http.StatusNotFound}
	}
	return s, kv, nil
}

// run is a run of a job: its workload, and what it is called.
type run struct {
	id       string
	workload *model.Workload
}

// runsOf are the runs of a job that are kept, the newest first.
func (a *API) runsOf(r *request, s *jobState) (out []run) {
	schedules := map[string]bool{}
	for _, sc := range s.Schedules {
		if w, ok := store.ByName[*model.Workload](r.snap, r.ns, jobsApplication, scheduleName(s.Job.ID, sc.ID)); ok {
			schedules[w.ID] = true
		}
	}
	for w := range store.ByApplication[*model.Workload](r.snap, r.ns, jobsApplication) {
		if schedules[w.OwnerID] {
			out = append(out, run{strings.TrimPrefix(w.Name[max(0, len(w.Name)-13):], "-"), w})
		} else if k := a.keptOf(w); k != nil && k.Job != nil && k.ID == s.Job.ID && w.Type == model.JobWorkload {
			out = append(out, run{k.Version, w})
		}
	}
	slices.SortFunc(out, func(x, y run) int { return y.workload.Created.Compare(x.workload.Created) })
	return out
}

func scheduleName(jobID, id string) string { return fit(jobID + "_" + id) }

// view says how a run is.
func (x *run) view(r *request, jobID string) runView {
	v := runView{ID: x.id, JobID: jobID, Status: "INITIAL", CreatedAt: stamp(x.workload.Created), Tasks: []runTask{}}
	var ended time.Time
	completed, given := false, x.workload.Status.Rollout.State == model.RolloutFailed
	for i := range store.InstancesOfWorkload(r.snap, x.workload.ID) {
		node := nodeByID(r.snap, i.NodeID)
		state := stateOf(i, node)
		t := runTask{ID: jobID + "." + i.ID, StartedAt: timeText(i.Status.Started), Status: state}
		if i.Status.State.Final() {
			t.CompletedAt = timeText(i.Status.Finished)
			ended = i.Status.Finished
		}
		v.Tasks = append(v.Tasks, t)
		switch {
		case i.Status.State == model.InstanceCompleted && i.Desired == model.DesiredRun:
			completed = true
		case i.Status.State == model.InstanceFailed && x.workload.Template.Restart.Condition == model.RestartNever:
			given = true
		case i.Status.State == model.InstanceRunning:
			v.Status = "ACTIVE"
		case !i.Status.State.Final() && v.Status == "INITIAL":
			v.Status = "STARTING"
		}
	}
	switch {
	case completed:
		v.Status = "SUCCESS"
	case given:
		v.Status = "FAILED"
	default:
		return v
	}
	text := timeText(ended)
	v.CompletedAt = &text
	return v
}

func (a *API) jobAnswer(r *request, s *jobState) *jobView {
	v := &jobView{job: *s.Job}
	with := embedsOf(r)
	if with["schedules"] || strings.HasPrefix(r.URL.Path, "/v0/") {
		v.Schedules = a.schedules(r, s)
	}
	active := []runView{}
	type past struct {
		ID         string   `json:"id"`
		CreatedAt  string   `json:"createdAt"`
		FinishedAt string   `json:"finishedAt"`
		Tasks      []string `json:"tasks"`
	}
	good, bad := []past{}, []past{}
	lastGood, lastBad := (*string)(nil), (*string)(nil)
	for _, x := range a.runsOf(r, s) {
		rv := x.view(r, s.Job.ID)
		if rv.CompletedAt == nil {
			active = append(active, rv)
			continue
		}
		p := past{ID: rv.ID, CreatedAt: rv.CreatedAt, FinishedAt: *rv.CompletedAt, Tasks: []string{}}
		for _, t := range rv.Tasks {
			p.Tasks = append(p.Tasks, t.ID)
		}
		if rv.Status == "SUCCESS" {
			if good = append(good, p); lastGood == nil {
				lastGood = rv.CompletedAt
			}
		} else if bad = append(bad, p); lastBad == nil {
			lastBad = rv.CompletedAt
		}
	}
	if with["activeRuns"] {
		v.ActiveRuns = &active
	}
	if with["history"] {
		v.History = map[string]any{
			"successCount": len(good), "failureCount": len(bad), "lastSuccessAt": lastGood, "lastFailureAt": lastBad, "successfulFinishedRuns": good, "failedFinishedRuns": bad,
		}
	}
	if with["historySummary"] {
		v.HistorySummary = map[string]any{"successCount": len(good), "failureCount": len(bad), "lastSuccessAt": lastGood, "lastFailureAt": lastBad}
	}
	return v
}

func (a *API) schedules(r *request, s *jobState) []*jobSchedule {
	out := []*jobSchedule{}
	for _, sc := range s.Schedules {
		c := *sc
		if w, ok := store.ByName[*model.Workload](r.snap, r.ns, jobsApplication, scheduleName(s.Job.ID, sc.ID)); ok && *c.Enabled {
			c.NextRunAt = timeText(w.Status.Cron.Next)
		}
		out = append(out, &c)
	}
	return out
}

func (a *API) jobList(w http.ResponseWriter, r *request) error {
	out := []*jobView{}
	prefix := jobPrefix(r.ns)
	for kv := range r.snap.Keys().Range(prefix, store.PrefixEnd(prefix)) {
		if s, _, err := a.jobState(r, strings.TrimPrefix(kv.Key, prefix)); err == nil {
			out = append(out, a.jobAnswer(r, s))
		}
	}
	answer(w, http.StatusOK, out)
	return nil
}

func (a *API) jobGet(w http.ResponseWriter, r *request) error {
	s, _, err := a.jobState(r, r.vars["job"])
	if err != nil {
		return err
	}
	answer(w, http.StatusOK, a.jobAnswer(r, s))
	return nil
}

// readJob reads a job, with its schedules where the API's early form has them beside it.
func readJob(r *request) (*jobState, error) {
	o, err := bodyObject(r.Request)
	if err != nil {
		return nil, err
	}
	s := &jobState{Job: &job{}}
	p := &problems{}
	early := strings.HasPrefix(r.URL.Path, "/v0/")
	if raw := o["schedules"]; early && !empty(raw) {
		readInto(raw, &s.Schedules, "/schedules", p)
	}
	o.without("schedules", "activeRuns", "history", "historySummary").into(s.Job, "/", p)
	if err := p.err(); err != nil {
		return nil, err
	}
	s.Job.fillIn()
	s.Job.check(p)
	for i, sc := range s.Schedules {
		if sc == nil {
			p.add(fmt.Sprintf("/schedules(%d)", i), "expected an object")
			continue
		}
		sc.fillIn()
		sc.check(p, fmt.Sprintf("/schedules(%d)", i))
	}
	if len(s.Schedules) > 1 {
		p.add("/schedules", "a job has one schedule at most")
	}
	return s, p.err()
}

func (a *API) jobCreate(w http.ResponseWriter, r *request) error {
	s, err := readJob(r)
	if err != nil {
		return err
	}
	err = a.again(r, func() error {
		if _, _, err := a.jobState(r, s.Job.ID); err == nil {
			return &invalid{message: fmt.Sprintf("Job with this id already exists: %s", s.Job.ID), status: http.StatusConflict}
		}
		return a.keepJob(r, s, 0, nil)
	})
	if err != nil {
		return err
	}
	r.snap = a.Core.Store.Snapshot()
	answer(w, http.StatusCreated, a.jobAnswer(r, s))
	return nil
}

func (a *API) jobUpdate(w http.ResponseWriter, r *request) error {
	s, err := readJob(r)
	if err != nil {
		return err
	}
	if s.Job.ID != r.vars["job"] {
		return badJSON("/id", "does not match the id in the path")
	}
	err = a.again(r, func() error {
		old, kv, err := a.jobState(r, s.Job.ID)
		if err != nil {
			return err
		}
		if !strings.HasPrefix(r.URL.Path, "/v0/") {
			s.Schedules = old.Schedules
		}
		return a.keepJob(r, s, kv.Modified, old)
	})
	if err != nil {
		return err
	}
	r.snap = a.Core.Store.Snapshot()
	answer(w, http.StatusOK, a.jobAnswer(r, s))
	return nil
}

// keepJob makes a job, with its schedules, what it is to be; it was last changed at a revision.
func (a *API) keepJob(r *request, s *jobState, revision uint64, old *jobState) error {
	b := core.Batch{}
	outside, d := core.Deployment{Namespace: r.ns, KeepOthers: true, Members: true}, jobsDeployment(r.ns)
	if old != nil {
		for _, sc := range old.Schedules {
			if !slices.ContainsFunc(s.Schedules, func(n *jobSchedule) bool { return n.ID == sc.ID }) {
				if w, ok := store.ByName[*model.Workload](r.snap, r.ns, jobsApplication, scheduleName(s.Job.ID, sc.ID)); ok {
					b.Remove = append(b.Remove, w.ID)
				}
			}
		}
	}
	for _, sc := range s.Schedules {
		out := jobWorkload(r.snap, s.Job, scheduleName(s.Job.ID, sc.ID), sc)
		if err := a.addJob(r, &outside, &d, out, &kept{ID: s.Job.ID, Job: s.Job}); err != nil {
			return err
		}
	}
	data, err := json.Marshal(s)
	if err != nil {
		panic("a job is plain data: " + err.Error())
	}
	key := jobPrefix(r.ns) + s.Job.ID
	b.Keys = core.KeyChanges{Expect: map[string]uint64{key: revision}, Put: []core.KeyPut{{Key: key, Value: data}}}
	b.Deployments = []core.Deployment{outside, d}
	if err := a.deployJobs(r, b); err != nil {
		return err
	}
	for _, sc := range s.Schedules { // which a deployment leaves as it is
		if w, ok := store.ByName[*model.Workload](a.Core.Store.Snapshot(), r.ns, jobsApplication, scheduleName(s.Job.ID, sc.ID)); ok && w.Suspended == *sc.Enabled {
			if err := a.Core.Suspend(r.Context(), r.who, w.ID, !*sc.Enabled); err != nil {
				return err
			}
		}
	}
	return nil
}

func jobsDeployment(ns string) core.Deployment {
	return core.Deployment{Namespace: ns, Application: jobsApplication, Source: "metronome", KeepOthers: true, Members: true}
}

func (a *API) addJob(r *request, outside, d *core.Deployment, out *part, k *kept) error {
	data, err := json.Marshal(k)
	if err != nil {
		panic("a job is plain data: " + err.Error())
	}
	out.workload.Extensions = map[string][]byte{extension: data}
	d.Workloads = append(d.Workloads, out.workload)
	for _, name := range out.networks {
		if _, ok := store.ByName[*model.Network](r.snap, r.ns, "", name); !ok {
			outside.Networks = append(outside.Networks, &model.Network{Meta: model.Meta{Name: name}, Driver: "overlay", Attachable: true})
		}
	}
	for _, ref := range out.pull {
		if _, err := a.Core.PullImage(r.Context(), r.who, ref, core.NoLogin, nil); err != nil {
			return err
		}
	}
	return nil
}

func (a *API) deployJobs(r *request, b core.Batch) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), 2*time.Minute)
	defer cancel()
	_, err := a.Core.DeployTogether(ctx, r.who, b)
	return err
}

func (a *API) jobDelete(w http.ResponseWriter, r *request) error {
	err := a.again(r, func() error {
		s, kv, err := a.jobState(r, r.vars["job"])
		if err != nil {
			return err
		}
		b := core.Batch{Keys: core.KeyChanges{Expect: map[string]uint64{kv.Key: kv.Modified}, Delete: []string{kv.Key}}}
		for _, x := range a.runsOf(r, s) {
			v := x.view(r, s.Job.ID)
			if v.CompletedAt == nil && !r.flag("stopCurrentJobRuns") {
				return &invalid{message: fmt.Sprintf("There are active job runs. Override with stopCurrentJobRuns=true: %s", v.ID), status: http.StatusConflict}
			}
			if x.workload.OwnerID == "" { // others go with their schedule
				b.Remove = append(b.Remove, x.workload.ID)
			}
		}
		for _, sc := range s.Schedules {
			if w, ok := store.ByName[*model.Workload](r.snap, r.ns, jobsApplication, scheduleName(s.Job.ID, sc.ID)); ok {
				b.Remove = append(b.Remove, w.ID)
			}
		}
		b.Deployments = []core.Deployment{jobsDeployment(r.ns)}
		return a.deployJobs(r, b)
	})
	if err != nil {
		return err
	}
	answer(w, http.StatusOK, map[string]any{})
	return nil
}

func (a *API) scheduleList(w http.ResponseWriter, r *request) error {
	s, _, err := a.jobState(r, r.vars["job"])
	if err != nil {
		return err
	}
	answer(w, http.StatusOK, a.schedules(r, s))
	return nil
}

func (a *API) scheduleGet(w http.ResponseWriter, r *request) error {
	s, _, err := a.jobState(r, r.vars["job"])
	if err != nil {
		return err
	}
	for _, sc := range a.schedules(r, s) {
		if sc.ID == r.vars["schedule"] {
			answer(w, http.StatusOK, sc)
			return nil
		}
	}
	return &invalid{message: fmt.Sprintf("Schedule '%s' does not exist", r.vars["schedule"]), status: http.StatusNotFound}
}

func (a *API) schedulePut(w http.ResponseWriter, r *request) error {
	body, err := readBody(r.Request)
	if err != nil {
		return err
	}
	sc := &jobSchedule{}
	p := &problems{}
	readInto(body, sc, "/", p)
	sc.fillIn()
	if r.vars["schedule"] != "" {
		if sc.ID != "" && sc.ID != r.vars["schedule"] {
			p.add("/id", "does not match the id in the path")
		}
		sc.ID = r.vars["schedule"]
	}
	sc.check(p, "/")
	if err := p.err(); err != nil {
		return err
	}
	err = a.again(r, func() error {
		old, kv, err := a.jobState(r, r.vars["job"])
		if err != nil {
			return err
		}
		s := *old
		s.Schedules = slices.Clone(old.Schedules)
		n := slices.IndexFunc(s.Schedules, func(have *jobSchedule) bool { return have.ID == sc.ID })
		switch {
		case r.Method == http.MethodPost && n >= 0:
			return &invalid{message: "A schedule with id " + sc.ID + " already exists", status: http.StatusConflict}
		case r.Method == http.MethodPut && n < 0:
			return &invalid{message: fmt.Sprintf("Schedule '%s' does not exist", sc.ID), status: http.StatusNotFound}
		case n < 0 && len(s.Schedules) > 0:
			return &invalid{message: "A job has one schedule at most", status: http.StatusUnprocessableEntity}
		case n < 0:
			s.Schedules = append(s.Schedules, sc)
		default:
			s.Schedules[n] = sc
		}
		return a.keepJob(r, &s, kv.Modified, old)
	})
	if err != nil {
		return err
	}
	status := http.StatusOK
	if r.Method == http.MethodPost {
		status = http.StatusCreated
	}
	answer(w, status, sc)
	return nil
}

func (a *API) scheduleDelete(w http.ResponseWriter, r *request) error {
	err := a.again(r, func() error {
		old, kv, err := a.jobState(r, r.vars["job"])
		if err != nil {
			return err
		}
		s := *old
		s.Schedules = slices.DeleteFunc(slices.Clone(old.Schedules), func(have *jobSchedule) bool { return have.ID == r.vars["schedule"] })
		if len(s.Schedules) == len(old.Schedules) {
			return &invalid{message: fmt.Sprintf("Schedule '%s' does not exist", r.vars["schedule"]), status: http.StatusNotFound}
		}
		return a.keepJob(r, &s, kv.Modified, old)
	})
	if err != nil {
		return err
	}
	answer(w, http.StatusOK, map[string]any{})
	return nil
}

func (a *API) runList(w http.ResponseWriter, r *request) error {
	s, _, err := a.jobState(r, r.vars["job"])
	if err != nil {
		return err
	}
	out := []runView{}
	for _, x := range a.runsOf(r, s) {
		if v := x.view(r, s.Job.ID); v.CompletedAt == nil {
			out = append(out, v)
		}
	}
	answer(w, http.StatusOK, out)
	return nil
}

// runStart starts a run now, and forgets the oldest that have ended.
func (a *API) runStart(w http.ResponseWriter, r *request) error {
	var x run
	var id string
	err := a.again(r, func() error {
		s, _, err := a.jobState(r, r.vars["job"])
		if err != nil {
			return err
		}
		b := core.Batch{}
		ended := 0
		for _, old := range a.runsOf(r, s) {
			if old.workload.OwnerID == "" && old.view(r, s.Job.ID).CompletedAt != nil {
				if ended++; ended >= keptRuns {
					b.Remove = append(b.Remove, old.workload.ID)
				}
			}
		}
		id = time.Now().UTC().Format("20060102150405") + model.NewID()[:5]
		outside, d := core.Deployment{Namespace: r.ns, KeepOthers: true, Members: true}, jobsDeployment(r.ns)
		out := jobWorkload(r.snap, s.Job, fit(s.Job.ID+"_"+id), nil)
		if err := a.addJob(r, &outside, &d, out, &kept{ID: s.Job.ID, Job: s.Job, Version: id}); err != nil {
			return err
		}
		b.Deployments = []core.Deployment{outside, d}
		if err := a.deployJobs(r, b); err != nil {
			return err
		}
		r.snap = a.Core.Store.Snapshot()
		for _, have := range a.runsOf(r, s) {
			if have.id == id {
				x = have
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if x.workload == nil {
		return &invalid{message: "the run was removed meanwhile", status: http.StatusConflict}
	}
	answer(w, http.StatusCreated, x.view(r, r.vars["job"]))
	return nil
}

func (a *API) runOf(r *request) (*run, error) {
	s, _, err := a.jobState(r, r.vars["job"])
	if err != nil {
		return nil, err
	}
	for _, x := range a.runsOf(r, s) {
		if x.id == r.vars["run"] {
			return &x, nil
		}
	}
	return nil, &invalid{message: fmt.Sprintf("Job Run '%s' does not exist", r.vars["run"]), status: http.StatusNotFound}
}

func (a *API) runGet(w http.ResponseWriter, r *request) error {
	x, err := a.runOf(r)
	if err != nil {
		return err
	}
	answer(w, http.StatusOK, x.view(r, r.vars["job"]))
	return nil
}

// runStop ends a run, which is then no longer kept.
func (a *API) runStop(w http.ResponseWriter, r *request) error {
	x, err := a.runOf(r)
	if err != nil {
		return err
	}
	if err := a.Core.RemoveWorkload(r.Context(), r.who, x.workload.ID, nil); err != nil {
		return err
	}
	answer(w, http.StatusOK, map[string]any{})
	return nil
}

// jobQueue lists runs that wait for a place.
func (a *API) jobQueue(w http.ResponseWriter, r *request) error {
	type waiting struct {
		JobID string   `json:"jobId"`
		Runs  []string `json:"runs"`
	}
	out := []waiting{}
	prefix := jobPrefix(r.ns)
	for kv := range r.snap.Keys().Range(prefix, store.PrefixEnd(prefix)) {
		s, _, err := a.jobState(r, strings.TrimPrefix(kv.Key, prefix))
		if err != nil {
			continue
		}
		q := waiting{JobID: s.Job.ID}
		for _, x := range a.runsOf(r, s) {
			for i := range store.InstancesOfWorkload(r.snap, x.workload.ID) {
				if i.NodeID == "" {
					q.Runs = append(q.Runs, x.id)
				}
			}
		}
		if len(q.Runs) > 0 {
			out = append(out, q)
		}
	}
	answer(w, http.StatusOK, out)
	return nil
}
