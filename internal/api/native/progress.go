package native

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/tutti-run/tutti/internal/model"
)

// Standing is how a workload is, in one word.
type Standing string

// The standings. Ready and completed are what people want; of the others, failed is the one that
// does not change by itself.
const (
	StandingReady       Standing = "ready"       // all that is wanted serves
	StandingCompleted   Standing = "completed"   // all that was wanted has ended well
	StandingSuspended   Standing = "suspended"   // nothing is wanted
	StandingProgressing Standing = "progressing" // on its way
	StandingWaiting     Standing = "waiting"     // for a dependency
	StandingFailed      Standing = "failed"      // an update was paused, or an instance failed for good
)

// Good reports whether nothing is left to do.
func (s Standing) Good() bool {
	return s == StandingReady || s == StandingCompleted || s == StandingSuspended
}

var badness = []Standing{StandingReady, StandingCompleted, StandingSuspended, StandingProgressing, StandingWaiting, StandingFailed}

// worse returns the one that needs more attention; of good ones, ready.
func worse(a, b Standing) Standing {
	if a.Good() && b.Good() {
		return StandingReady
	}
	if slices.Index(badness, b) > slices.Index(badness, a) {
		return b
	}
	return a
}

// Progress tells how far a workload is from what is wanted of it.
type Progress struct {
	Standing Standing `json:"standing"`
	// Detail says what holds it up, in the words of whoever does.
	Detail string `json:"detail,omitempty"`
	Wanted int    `json:"wanted"` // instances; of a global workload, those that there are
	// Ready, Completed and Failed count the wanted places by what the instance there came to. Of
	// these, Updated is how many of the ready ones have the present revision.
	Ready     int `json:"ready"`
	Updated   int `json:"updated"`
	Completed int `json:"completed,omitempty"`
	Failed    int `json:"failed,omitempty"`
	Restarts  int `json:"restarts,omitempty"` // of what runs now
	// Probed is false when some instance counts as ready only because it runs.
	Probed bool `json:"probed"`
}

// ProgressOf derives the progress of a workload from its instances.
func ProgressOf(w *model.Workload, instances []*model.Instance) Progress {
	if w.Followed != nil {
		return followedProgress(w, instances)
	}
	p := Progress{Probed: true}
	places := placesOf(w, instances)
	switch {
	case w.Suspended, w.Type == model.CronWorkload:
	case w.Type.PerNode():
		p.Wanted = len(places)
	default:
		p.Wanted = w.Count
	}
	held := "" // by the first place that is not well
	for _, pl := range places {
		p.Restarts += pl.restarts
		held = cmp.Or(held, p.count(w, pl))
	}
	p.Standing, p.Detail = p.standing(w, held)
	return p
}

// place is one slot of a workload, or one node of a global one.
type place struct {
	slot     int
	node     string
	current  *model.Instance // the newest of the present revision
	serves   bool            // whichever revision
	restarts int
}

// placesOf sorts the instances that should run into their places. Lost ones are not there: their
// nodes are gone, and others take their place.
func placesOf(w *model.Workload, instances []*model.Instance) []*place {
	type key struct {
		slot int
		node string
	}
	places := map[key]*place{}
	for _, i := range instances {
		surplus := w.Suspended || (!w.Type.PerNode() && i.Slot > w.Count)
		if i.Desired != model.DesiredRun || i.Status.State == model.InstanceLost || surplus {
			continue
		}
		k := key{slot: i.Slot}
		if w.Type.PerNode() {
			k = key{node: i.NodeID}
		}
		p := places[k]
		if p == nil {
			p = &place{slot: k.slot, node: k.node}
			places[k] = p
		}
		p.serves = p.serves || i.Serving()
		if !i.Status.State.Final() {
			p.restarts += i.Status.Restarts
		}
		if i.RevisionID == w.RevisionID && (p.current == nil || i.Created.After(p.current.Created)) {
			p.current = i
		}
	}
	out := slices.Collect(maps.Values(places))
	slices.SortFunc(out, func(a, b *place) int { return cmp.Or(cmp.Compare(a.slot, b.slot), cmp.Compare(a.node, b.node)) })
	return out
}

// count adds a place to the sums and says what is wrong with it, if anything.
func (p *Progress) count(w *model.Workload, at *place) string {
	i := at.current
	switch {
	case i != nil && !w.Type.Job() && i.Serving():
		p.Ready++
		p.Updated++
		p.Probed = p.Probed && i.Status.Health != model.HealthNone
		return ""
	case i != nil && i.Status.State == model.InstanceCompleted && staysEnded(w, i):
		p.Completed++
		return ""
	case i != nil && i.Status.State == model.InstanceFailed && staysEnded(w, i):
		p.Failed++
	case at.serves && !w.Type.Job():
		p.Ready++
	}
	if i == nil {
		return ""
	}
	return describe(i)
}

// staysEnded reports whether nothing takes the place of an ended instance.
func staysEnded(w *model.Workload, i *model.Instance) bool {
	policy := w.Template.Restart
	return w.Type.Job() || policy.Condition == model.RestartNever ||
		(policy.Condition == model.RestartOnFailure && i.Status.State == model.InstanceCompleted) ||
		(policy.MaxAttempts > 0 && i.Status.Restarts >= policy.MaxAttempts)
}

// describe says how an instance that is not ready is.
func describe(i *model.Instance) string {
	switch st := &i.Status; {
	case i.NodeID == "" && i.Reason != "":
		return fmt.Sprintf("%s has no node: %s", i.Name, i.Reason)
	case i.NodeID == "":
		return i.Name + " is to be placed"
	case st.Message != "":
		return fmt.Sprintf("%s is %s: %s", i.Name, st.State, st.Message)
	case st.State == model.InstanceRunning && st.Health != model.HealthNone:
		return fmt.Sprintf("%s runs and is %s", i.Name, healthWords[st.Health])
	default:
		return fmt.Sprintf("%s is %s", i.Name, st.State)
	}
}

var healthWords = map[model.Health]string{
	model.HealthStarting: "not healthy yet", model.HealthHealthy: "healthy", model.HealthUnhealthy: "unhealthy",
}

func (p *Progress) standing(w *model.Workload, held string) (Standing, string) {
	st := &w.Status
	switch {
	case w.Suspended:
		return StandingSuspended, ""
	case st.Generation < w.Generation:
		return StandingProgressing, "the change is being taken up"
	case w.Type == model.CronWorkload && st.Rollout.State != model.RolloutFailed:
		return StandingReady, "the next run is due at " + st.Cron.Next.Format("2006-01-02 15:04 MST")
	case st.Waiting != "" && st.Released != w.RevisionID:
		return StandingWaiting, st.Waiting
	case st.Rollout.State == model.RolloutRolling:
		return StandingProgressing, "rolling back: " + st.Rollout.Message
	case st.Rollout.State == model.RolloutUpdating:
		if w.Paused {
			return StandingProgressing, "paused by people: `tutti rollout resume` lets it go on"
		}
		return StandingProgressing, cmp.Or(held, st.Rollout.Message, fmt.Sprintf("%d of %d updated", p.Updated+p.Completed, p.Wanted))
	case st.Rollout.State == model.RolloutPaused, st.Rollout.State == model.RolloutFailed:
		return StandingFailed, st.Rollout.Message
	case p.Failed > 0:
		return StandingFailed, held
	case w.Type.Job() && p.Completed >= p.Wanted, p.Completed > 0 && p.Completed == p.Wanted:
		return StandingCompleted, ""
	case p.Updated+p.Completed >= p.Wanted:
		return StandingReady, ""
	default:
		return StandingProgressing, held
	}
}
