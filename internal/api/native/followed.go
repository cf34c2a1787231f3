package native

import (
	"cmp"
	"context"
	"fmt"
	"net/http"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/model"
)

// Paths for whoever shows what another platform keeps.
const (
	pathFollow   = "/v1/workloads/follow"   // core.Following
	pathUnfollow = "/v1/workloads/unfollow" // Ref, an ID
)

func (s *server) followRoutes(mux *http.ServeMux) {
	mux.HandleFunc("POST "+pathFollow, change(s, func(ctx context.Context, who core.Caller, f core.Following) (done, error) {
		return done{}, s.Core.Follow(ctx, who, f)
	}))
	mux.HandleFunc("POST "+pathUnfollow, change(s, func(ctx context.Context, who core.Caller, r Ref) (done, error) {
		return done{}, s.Core.Unfollow(ctx, who, r.Ref)
	}))
}

// Follow shows what another platform keeps; see core.Core.Follow.
func (c *Client) Follow(ctx context.Context, f core.Following) error {
	return postDone(ctx, c, pathFollow, f)
}

// Unfollow forgets what another platform keeps no more, by its ID.
func (c *Client) Unfollow(ctx context.Context, id string) error {
	return postDone(ctx, c, pathUnfollow, Ref{id})
}

// followedProgress is the progress of a workload that another platform keeps: as that tells, and as its
// instances are.
func followedProgress(w *model.Workload, instances []*model.Instance) Progress {
	f := w.Followed
	p := Progress{Probed: true, Wanted: w.Count, Completed: f.Completed, Failed: f.Failed}
	switch {
	case w.Suspended, w.Type == model.CronWorkload:
		p.Wanted = 0
	case w.Type.PerNode():
		p.Wanted = f.Wanted
	}
	held, there := "", 0
	for _, i := range instances {
		if i.Desired != model.DesiredRun || i.Status.State == model.InstanceLost {
			continue
		}
		there++
		if !i.Status.State.Final() {
			p.Restarts += i.Status.Restarts
		}
		switch {
		case w.Type.Job():
			if i.Status.State != model.InstanceCompleted && !i.Serving() {
				held = cmp.Or(held, describe(i))
			}
		case i.Serving():
			p.Ready++
			p.Probed = p.Probed && i.Status.Health != model.HealthNone
		default:
			held = cmp.Or(held, describe(i))
		}
	}
	p.Updated = min(p.Ready, f.Updated)
	p.Standing, p.Detail = p.followedStanding(w, there, held)
	return p
}

func (p *Progress) followedStanding(w *model.Workload, there int, held string) (Standing, string) {
	f := w.Followed
	switch {
	case f.Count != w.Count:
		return StandingProgressing, fmt.Sprintf("%s is being told to have %d", w.Belongs.Platform, w.Count)
	case w.Suspended:
		return StandingSuspended, ""
	case f.Failing:
		return StandingFailed, f.Message
	case w.Type == model.CronWorkload:
		return StandingReady, w.Belongs.Platform + " starts its runs"
	case w.Type.Job():
		if p.Completed >= p.Wanted {
			return StandingCompleted, ""
		}
	case p.Updated >= p.Wanted && there <= p.Wanted:
		return StandingReady, ""
	case w.Paused && p.Ready >= p.Wanted:
		return StandingReady, "its rollout is paused"
	}
	return StandingProgressing, cmp.Or(held, f.Message)
}
