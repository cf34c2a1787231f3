package sim_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/model"
)

// names of the workloads that come and go.
var names = []string{"web", "api", "agent", "import", "db"}

const most = 5 // instances of a workload, so that three nodes hold everything

// secretText is in every secret, to look for it where it must not be.
const secretText = "TOP-SECRET-"

var operator = core.Local("people", "sim")

// deployment returns an application of random policies, or, at the end, of ones that work.
func deployment(rnd *rand.Rand, final bool) core.Deployment {
	d := core.Deployment{
		Application: "shop", Networks: []*model.Network{{Meta: model.Meta{Name: "front"}}},
		Secrets: []core.SecretData{{Meta: model.Meta{Name: "password"}, Data: []byte(secretText + fmt.Sprint(rnd.IntN(3)))}},
	}
	for k, name := range names {
		if !final && rnd.IntN(8) == 0 {
			continue // removed
		}
		does := []conduct{good, plain, good, plain, broken}[rnd.IntN(5)]
		if final && does == broken {
			does = good
		}
		w := &model.Workload{
			Meta: model.Meta{Name: name}, Type: model.ServiceWorkload, Count: 1 + rnd.IntN(most),
			Update: policy(rnd), Rollback: policy(rnd),
			Template: model.Template{
				Networks:  []model.Attachment{{Network: "front"}},
				Restart:   model.RestartPolicy{Condition: model.RestartAlways, Delay: 100 * time.Millisecond},
				StopGrace: time.Second,
				Tasks:     []model.TaskSpec{{Name: "main", Image: "shop", Reserve: model.Resources{MemoryBytes: int64(k+1) * 128 << 20}}},
			},
		}
		task := &w.Template.Tasks[0]
		s := &model.Service{Meta: model.Meta{Name: name}, WorkloadID: name, Networks: []string{"front"}}
		switch name {
		case "web":
			task.Mounts = []model.Mount{{Type: model.MountSecret, Source: "password", Target: "/run/secrets/password"}}
		case "api":
			w.Template.Placement.Spread = []string{"node.labels.zone"}
			w.DependsOn = []model.Dependency{{Workload: "import", Condition: model.DependencyCompleted, Optional: true}}
		case "agent":
			w.Type, w.Count = model.GlobalWorkload, 0
			task.Reserve.MemoryBytes = 64 << 20
			s.Ports = []model.ServicePort{{Protocol: "tcp", Target: 80, Published: 9100, HostMode: true}}
		case "db":
			w.Type, w.Count, does = model.StatefulWorkload, 1+rnd.IntN(3), writer
			task.Reserve.MemoryBytes = 128 << 20
		case "import":
			w.Type, w.Count, does = model.JobWorkload, 1+rnd.IntN(3), finite
			w.Template.Restart.Condition = model.RestartOnFailure
		}
		if does == good || does == broken {
			task.Health = &model.Probe{Exec: []string{"check"}, Interval: 500 * time.Millisecond, Timeout: time.Second, Retries: 3}
		}
		task.Entrypoint = []string{string(does)}
		task.Args = []string{fmt.Sprint(rnd.IntN(3))}
		if final { // an update, whatever was there before
			task.Args = append(task.Args, "final")
		}
		d.Workloads, d.Services = append(d.Workloads, w), append(d.Services, s)
	}
	return d
}

func policy(rnd *rand.Rand) model.UpdatePolicy {
	return model.UpdatePolicy{
		Parallelism: rnd.IntN(3), Monitor: time.Duration(200+rnd.IntN(1000)) * time.Millisecond,
		Order:           []model.UpdateOrder{model.StopFirst, model.StartFirst}[rnd.IntN(2)],
		OnFailure:       []model.FailureAction{model.PauseOnFailure, model.ContinueOnFailure, model.RollBackOnFailure, model.RollBackOnFailure}[rnd.IntN(4)],
		MaxFailureRatio: []float64{0, 0, 0.3}[rnd.IntN(3)],
	}
}

// deploy deploys through a server.
func (c *course) deploy(ctx context.Context, p *process, d core.Deployment) error {
	var told []string
	for _, w := range d.Workloads {
		told = append(told, fmt.Sprintf("%s %d×%v %+v", w.Name, w.Count, append(w.Template.Tasks[0].Entrypoint, w.Template.Tasks[0].Args...), w.Update))
	}
	_, err := p.srv.Core().Deploy(ctx, operator, d)
	c.tell("deploy %s: %v", strings.Join(told, "; "), err)
	return err
}

// people lets people change their minds, through whichever server they find. What they ask for may
// be refused, or be lost in what goes wrong.
func (c *course) people() {
	rnd := rand.New(rand.NewPCG(c.seed, 3))
	c.history.group.Go(func() {
		ctx := c.history.ctx
		for first := true; ; first = false {
			if !first {
				select {
				case <-ctx.Done():
					return
				case <-time.After(time.Duration(rnd.Int64N(int64(time.Second)))):
				}
			}
			live := c.live()
			if len(live) == 0 {
				continue
			}
			p := live[rnd.IntN(len(live))]
			ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
			c.wish(ctx, rnd, p, first)
			cancel()
		}
	})
}

// wish is one thing that people want.
func (c *course) wish(ctx context.Context, rnd *rand.Rand, p *process, first bool) {
	k := p.srv.Core()
	ref := "shop/" + names[rnd.IntN(2)]
	what, err := "", error(nil)
	switch n := rnd.IntN(20); {
	case first || n < 6:
		what, err = "deployments", c.deploy(ctx, p, deployment(rnd, false))
	case n < 11:
		what, err = "scalings", k.Scale(ctx, operator, ref, rnd.IntN(most+1))
	case n < 13:
		what, err = "rollbacks", k.Rollback(ctx, operator, ref)
	case n < 18:
		a := []model.Availability{model.Draining, model.Cordoned, model.Active}[rnd.IntN(3)]
		what, err = "changes of availability", k.SetAvailability(ctx, operator, fmt.Sprint("node-n", rnd.IntN(len(c.hosts))), a)
	case n < 19:
		what, err = "restarts of workloads", k.RestartWorkload(ctx, operator, ref)
	default:
		what, err = "removals", k.Remove(ctx, operator, "shop", false)
	}
	c.tell("people: %s: %v", what, err)
	if err == nil {
		c.count("people: " + what)
	}
}
