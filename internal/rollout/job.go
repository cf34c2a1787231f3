package rollout

import (
	"fmt"
	"slices"
	"time"

	"github.com/tutti-run/tutti/internal/model"
)

const (
	firstBackoff = 10 * time.Second // before a failed instance of a job is replaced; doubles
	lastBackoff  = 6 * time.Minute
)

// remembers reports whether a slot that is not wanted at the moment must know what it has done: one
// of a job that is suspended, or of a node that is away.
func (p *plan) remembers(s *slot) bool {
	t := p.Workload.Type
	return s.counts && t.Job() || t == model.GlobalJobWorkload
}

// JobDone reports whether a job has come to its end: each of its slots has completed, or nothing
// runs any more of one that has failed.
func JobDone(in Input) (completed, failed bool) {
	p := &plan{Input: in}
	p.collect()
	p.out.Rollout = in.Workload.Status.Rollout
	completed = true
	for _, s := range p.slots {
		if !s.counts {
			continue
		}
		if last := p.ended(s); last == nil || last.Status.State != model.InstanceCompleted {
			completed = false
			failed = failed || last != nil && in.Workload.Job.BackoffLimit == 0
		}
		if !s.vacant() || len(s.going) > 0 {
			return false, false
		}
	}
	return completed, !completed && (failed || p.out.Rollout.State == model.RolloutFailed)
}

// ended is the instance in which a slot of a job came to its end, nil when it has not.
func (p *plan) ended(s *slot) *model.Instance {
	for _, i := range s.dead {
		if i.RevisionID == p.Workload.RevisionID && i.Status.State != model.InstanceLost && i.Desired == model.DesiredRun {
			return i
		}
	}
	return nil
}

// failures counts how often instances of a job's present revision failed.
func (p *plan) failures() (n int, told string) {
	for _, i := range p.Instances {
		if i.RevisionID != p.Workload.RevisionID {
			continue
		}
		n += i.Status.Restarts
		if i.Status.State == model.InstanceFailed && i.Desired == model.DesiredRun {
			n++
		}
		if i.Status.Message != "" && (i.Status.Restarts > 0 || i.Status.State == model.InstanceFailed) {
			told = i.Name + ": " + i.Status.Message
		}
	}
	return n, told
}

// judgeJob gives a job up that has failed too often or takes too long.
func (p *plan) judgeJob() {
	r, policy := &p.out.Rollout, &p.Workload.Job
	if p.Held || r.State == model.RolloutFailed || policy.BackoffLimit == 0 && policy.Deadline == 0 {
		return
	}
	if r.Started.IsZero() {
		r.Started = p.Now
	}
	left := slices.ContainsFunc(p.slots, func(s *slot) bool {
		last := p.ended(s)
		return s.wanted && (last == nil || last.Status.State != model.InstanceCompleted)
	})
	if !left {
		return
	}
	failures, told := p.failures()
	due := r.Started.Add(policy.Deadline)
	switch {
	case policy.BackoffLimit > 0 && failures > policy.BackoffLimit:
		r.Message = fmt.Sprintf("the job is given up: it failed %d times, %d may be (%s)", failures, policy.BackoffLimit, told)
	case policy.Deadline > 0 && !due.After(p.Now):
		r.Message = fmt.Sprintf("the job is given up: it has not completed within %s", policy.Deadline)
	default:
		if policy.Deadline > 0 {
			p.revisit(due)
		}
		return
	}
	r.State, r.Failures, r.Finished = model.RolloutFailed, failures, p.Now
}

// runJob runs a slot of a job until it has completed once, or failed for good.
func (p *plan) runJob(s *slot) {
	if p.out.Rollout.State == model.RolloutFailed && !p.Held {
		for _, i := range slices.Concat(s.current, s.old, s.leaving) {
			p.do(Action{Type: Stop, InstanceID: i.ID, Cause: "the job is given up"})
		}
		return
	}
	if n := len(s.current); n > 1 { // the first has come furthest
		for _, i := range s.current[:n-1] {
			p.do(Action{Type: Stop, InstanceID: i.ID, Cause: "another instance has its place"})
		}
	}
	for _, i := range slices.Concat(s.old, s.leaving) {
		// One whose node is being drained is left to finish.
		if i.RevisionID != p.Workload.RevisionID && !p.Held {
			p.do(Action{Type: Stop, InstanceID: i.ID, Cause: "a new revision runs instead"})
		}
	}
	if !s.vacant() || len(s.going) > 0 || p.Held {
		return
	}
	if last := p.ended(s); last != nil && !p.tryAgain(s, last) {
		return
	}
	if most := p.Workload.Job.Parallelism; most > 0 && p.running() >= most {
		return
	}
	p.create(s, p.Workload.RevisionID, s.dead)
}

// tryAgain reports whether a failed instance of a job is to be replaced now.
func (p *plan) tryAgain(s *slot, last *model.Instance) bool {
	if last.Status.State != model.InstanceFailed || p.Workload.Job.BackoffLimit == 0 {
		return false
	}
	pause := firstBackoff
	for _, i := range s.dead[1:] {
		if i.Status.State == model.InstanceFailed && i.RevisionID == p.Workload.RevisionID {
			pause = min(2*pause, lastBackoff)
		}
	}
	due := p.told(last, last.Status.Finished).Add(pause)
	if due.After(p.Now) {
		p.revisit(due)
		return false
	}
	return true
}

// running counts the slots of a job in which something runs or is about to.
func (p *plan) running() int {
	n := 0
	for _, s := range p.slots {
		if s.filled || !s.vacant() || len(s.going) > 0 {
			n++
		}
	}
	return n
}
