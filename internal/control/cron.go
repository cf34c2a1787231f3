package control

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/tutti-run/tutti/internal/cron"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/rollout"
	"github.com/tutti-run/tutti/internal/store"
)

const keptRuns = 3 // of those that completed, and of those that failed, unless the policy says otherwise

// run is a job that a cron workload started.
type run struct {
	job               *model.Workload
	completed, failed bool
}

// runs are those of a cron workload, the newest first.
func (p *pass) runs(w *model.Workload) []run {
	var out []run
	for job := range store.ByApplication[*model.Workload](p.snap, w.Namespace, w.Application) {
		if job.OwnerID != w.ID {
			continue
		}
		in := rollout.Input{Workload: job, Now: p.now, Leaving: p.allNodes().leaving}
		for i := range store.InstancesOfWorkload(p.snap, job.ID) {
			in.Instances = append(in.Instances, i)
		}
		r := run{job: job}
		if job.Status.Generation == job.Generation { // or else it has not begun
			r.completed, r.failed = rollout.JobDone(in)
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b run) int {
		return cmp.Or(b.job.Created.Compare(a.job.Created), cmp.Compare(b.job.Name, a.job.Name))
	})
	return out
}

// cron starts the run of a cron workload that is due, and forgets old ones.
func (p *pass) cron(w *model.Workload) {
	status := w.Status
	status.Generation, status.Released = w.Generation, w.RevisionID
	st := &status.Cron
	defer func() { p.putStatus(w, status) }()
	delete(p.c.timers, w.ID)
	schedule, err := cron.Parse(w.Cron.Schedule, w.Cron.TimeZone)
	if err != nil {
		status.Rollout = model.RolloutStatus{State: model.RolloutFailed, Revision: w.RevisionID, Message: err.Error()}
		return
	}
	status.Rollout = model.RolloutStatus{}
	if st.Last.IsZero() || w.Status.Generation != w.Generation { // people changed it: what was due before is not made up for
		st.Last = p.now
	}
	runs := p.runs(w)
	st.Active = 0
	for _, r := range runs {
		if !r.completed && !r.failed {
			st.Active++
		}
	}
	p.tidyRuns(w, runs)
	if w.Suspended {
		st.Next = time.Time{}
		return
	}
	if due := schedule.Latest(st.Last, p.now); !due.IsZero() {
		st.Last = due
		why := ""
		switch {
		case w.Cron.StartWithin > 0 && p.now.Sub(due) > w.Cron.StartWithin:
			why = fmt.Sprintf("nobody could start it within %s", w.Cron.StartWithin)
		case w.Cron.Overlap == model.OverlapForbid && st.Active > 0:
			why = "an earlier run has not ended"
		}
		zone := due
		if location, err := cron.Location(w.Cron.TimeZone); err == nil {
			zone = due.In(location)
		}
		name := fmt.Sprintf("%.49s-%s", w.Name, zone.Format("20060102-1504"))
		if why != "" {
			st.Skipped = fmt.Sprintf("%s: %s", name, why)
			p.event("run skipped", w, st.Skipped)
		} else {
			p.startRun(w, name, runs)
			st.Active++
		}
	}
	st.Next = schedule.Next(p.now)
	p.revisit(w, st.Next)
}

// startRun makes the job of a run, on condition that nobody changes the cron workload meanwhile.
func (p *pass) startRun(w *model.Workload, name string, runs []run) {
	if _, taken := store.ByName[*model.Workload](p.snap, w.Namespace, w.Application, name); taken {
		return
	}
	if w.Cron.Overlap == model.OverlapReplace {
		for _, r := range runs {
			if !r.completed && !r.failed {
				p.forgetRun(r.job, "a newer run of "+w.FullName()+" takes its place")
			}
		}
	}
	job := &model.Workload{
		Meta: model.Meta{ID: model.NewID(), Namespace: w.Namespace, Application: w.Application, Name: name, Created: p.now, Labels: w.Labels},
		Type: model.JobWorkload, Count: w.Count, Template: w.Template.Clone(), Job: w.Job, OwnerID: w.ID, Generation: 1,
	}
	hash := job.Template.Hash()
	job.RevisionID = model.RevisionIDOf(job.ID, hash)
	p.cs.Expect(model.KindWorkload, w.ID, w.Revision)
	p.put(job)
	p.cs.Put(&model.Revision{
		Meta:       model.Meta{ID: job.RevisionID, Namespace: w.Namespace, Application: w.Application, Name: job.RevisionID, Created: p.now},
		WorkloadID: job.ID, Hash: hash, Number: 1, Template: job.Template.Clone(),
	})
	p.event("run started", job, "as the schedule of "+w.FullName()+" says")
}

// forgetRun removes a run; its instances end.
func (p *pass) forgetRun(job *model.Workload, cause string) {
	p.cs.Delete(model.KindWorkload, job.ID)
	for i := range store.InstancesOfWorkload(p.snap, job.ID) {
		c := current(p, i).Clone()
		if c.Desired == model.DesiredRemove {
			continue
		}
		c.Desired, c.Cause = model.DesiredRemove, cause
		p.put(c)
	}
}

// tidyRuns forgets the oldest runs that have ended.
func (p *pass) tidyRuns(w *model.Workload, runs []run) {
	completed, failed := 0, 0
	for _, r := range runs {
		switch {
		case r.completed:
			if completed++; completed > cmp.Or(w.Cron.KeepCompleted, keptRuns) {
				p.forgetRun(r.job, "it is one of the older runs")
			}
		case r.failed:
			if failed++; failed > cmp.Or(w.Cron.KeepFailed, keptRuns) {
				p.forgetRun(r.job, "it is one of the older runs")
			}
		}
	}
}
