package compose

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"

	"github.com/tutti-run/tutti/internal/model"
)

const defaultMonitor = 5 * time.Second

// restart decides which ends lead to a new run: always, as in Docker Swarm, unless a file says
// otherwise; for a job, which should end, only failures.
func (o *one) restart() {
	r := &o.w.Template.Restart
	r.Condition = model.RestartAlways
	if o.w.Type.Ends() {
		r.Condition = model.RestartOnFailure
	}
	key := "restart"
	switch condition, times, _ := strings.Cut(o.Restart, ":"); condition {
	case "":
	case types.RestartPolicyNo:
		r.Condition = model.RestartNever
	case types.RestartPolicyAlways, types.RestartPolicyUnlessStopped:
		r.Condition = model.RestartAlways
	case types.RestartPolicyOnFailure:
		r.Condition = model.RestartOnFailure
		if times != "" {
			n, err := strconv.Atoi(times)
			if err != nil || n < 0 {
				o.invalid("restart", "%q is not how often to try", times)
			}
			r.MaxAttempts = n
		}
	default:
		o.invalid("restart", "%q is none of no, always, on-failure[:TIMES] and unless-stopped", o.Restart)
	}
	if p := o.deploy.RestartPolicy; p != nil {
		key = "deploy.restart_policy"
		o.restartPolicy(p, r)
	}
	if o.w.Type.Ends() && r.Condition == model.RestartAlways {
		who := "a job"
		if waiter := o.ends[o.Name]; waiter != "" {
			who = waiter + " waits for it to complete, but it"
		}
		o.invalid(key, "%s that is restarted whenever it ends never completes; write no or on-failure", who)
	}
}

func (o *one) restartPolicy(p *types.RestartPolicy, r *model.RestartPolicy) {
	job := o.w.Type.Ends()
	*r = model.RestartPolicy{Delay: durationOf(p.Delay, 0), Window: durationOf(p.Window, 0)}
	switch p.Condition {
	case "":
		r.Condition = model.RestartAlways
		if job {
			r.Condition = model.RestartOnFailure
		}
	case "any":
		r.Condition = model.RestartAlways
	case "on-failure":
		r.Condition = model.RestartOnFailure
	case "none":
		r.Condition = model.RestartNever
	default:
		o.invalid("deploy.restart_policy.condition", "%q is none of none, on-failure and any", p.Condition)
	}
	if p.MaxAttempts != nil {
		r.MaxAttempts = int(min(*p.MaxAttempts, 1<<30))
	}
}

// updates decides how one revision replaces another.
func (o *one) updates() {
	if o.w.Type.Ends() {
		for key, p := range map[string]*types.UpdateConfig{"update_config": o.deploy.UpdateConfig, "rollback_config": o.deploy.RollbackConfig} {
			if p != nil {
				o.invalid("deploy."+key, "a job is not updated step by step: it runs again when its definition changed")
			}
		}
		return
	}
	o.w.Update = o.update("update_config", o.deploy.UpdateConfig, model.UpdatePolicy{
		Parallelism: 1, Monitor: defaultMonitor, Order: o.safeOrder(), OnFailure: model.RollBackOnFailure,
	})
	o.w.Rollback = o.update("rollback_config", o.deploy.RollbackConfig, model.UpdatePolicy{
		Parallelism: 1, Monitor: defaultMonitor, Order: o.w.Update.Order, OnFailure: model.PauseOnFailure,
	})
}

// safeOrder is start first, which serves without a gap, unless two instances at once could be in
// each other's way.
func (o *one) safeOrder() model.UpdateOrder {
	shared := slices.ContainsFunc(o.w.Template.Tasks[0].Mounts, func(m model.Mount) bool {
		return !m.ReadOnly && (m.Type == model.MountBind || m.Type == model.MountVolume && m.Source != "")
	})
	onNode := slices.ContainsFunc(o.svc.Ports, func(p model.ServicePort) bool { return p.HostMode })
	if shared || onNode || o.w.Template.HostNetwork || o.fixed() || o.w.Type.PerNode() || o.w.Type == model.StatefulWorkload {
		return model.StopFirst
	}
	return model.StartFirst
}

func (o *one) fixed() bool {
	return slices.ContainsFunc(o.w.Template.Networks, func(a model.Attachment) bool { return a.Address != "" })
}

// update reads update_config or rollback_config over a policy that holds the defaults.
func (o *one) update(key string, c *types.UpdateConfig, p model.UpdatePolicy) model.UpdatePolicy {
	if c == nil {
		return p
	}
	key = "deploy." + key
	if c.Parallelism != nil {
		p.Parallelism = int(min(*c.Parallelism, 1<<30))
	}
	if c.Monitor > 0 {
		p.Monitor = time.Duration(c.Monitor)
	}
	p.Delay, p.MaxFailureRatio = time.Duration(c.Delay), float64(c.MaxFailureRatio)
	if p.MaxFailureRatio < 0 || p.MaxFailureRatio > 1 {
		o.invalid(key+".max_failure_ratio", "%v is not between 0 and 1", c.MaxFailureRatio)
	}
	switch c.FailureAction {
	case "":
	case "pause":
		p.OnFailure = model.PauseOnFailure
	case "continue":
		p.OnFailure = model.ContinueOnFailure
	case "rollback":
		p.OnFailure = model.RollBackOnFailure
		if key == "deploy.rollback_config" {
			o.invalid(key+".failure_action", "a rollback that fails is not rolled back; write pause or continue")
		}
	default:
		o.invalid(key+".failure_action", "%q is none of pause, continue and rollback", c.FailureAction)
	}
	switch c.Order {
	case "":
	case "stop-first":
		p.Order = model.StopFirst
	case "start-first":
		p.Order = model.StartFirst
		switch {
		case o.w.Type.PerNode():
			o.unsupported(key+".order", "a global service stops the old instance of a node first")
		case o.w.Type == model.StatefulWorkload:
			o.invalid(key+".order", "a stateful service has one instance of a slot at a time; write stop-first")
		case o.fixed():
			o.invalid(key+".order", "the old instance holds the fixed address until it has stopped; write stop-first")
		}
	default:
		o.invalid(key+".order", "%q is neither stop-first nor start-first", c.Order)
	}
	return p
}

func (o *one) placement() {
	p := &o.w.Template.Placement
	p.MaxPerNode = int(min(o.deploy.Placement.MaxReplicas, 1<<30))
	for _, text := range o.deploy.Placement.Constraints {
		if c, ok := o.constraint("deploy.placement.constraints", text); ok {
			p.Constraints = append(p.Constraints, c)
		}
	}
	for _, pref := range o.deploy.Placement.Preferences {
		if o.nodeKey("deploy.placement.preferences", pref.Spread) {
			p.Spread = append(p.Spread, pref.Spread)
		}
	}
	if o.Platform != "" {
		p.Platforms = o.platform()
	}
}

// architecture is the name that nodes use: Go's.
func architecture(name string) string {
	name = strings.ToLower(name)
	switch name {
	case "x86_64", "x86-64":
		return "amd64"
	case "aarch64":
		return "arm64"
	case "i386", "i686", "x86":
		return "386"
	}
	return name
}

// platform reads "linux/amd64".
func (o *one) platform() []string {
	parts := strings.Split(o.Platform, "/")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || parts[1] == "" {
		o.invalid("platform", "%q is not OS/ARCHITECTURE, such as linux/amd64", o.Platform)
		return nil
	}
	arch := architecture(parts[1])
	if len(parts) == 3 && (arch != "arm64" || parts[2] != "v8") {
		o.unsupported("platform", "variants such as %q are not told apart yet; write %s/%s", parts[2], parts[0], parts[1])
	}
	return []string{strings.ToLower(parts[0]) + "/" + arch}
}
