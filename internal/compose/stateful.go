package compose

import (
	"fmt"

	"github.com/tutti-run/tutti/internal/model"
)

// stateful makes a workload stateful whose service says so.
func (o *one) stateful(x *extras) {
	switch x.Kind {
	case "":
	case string(model.StatefulWorkload):
		switch {
		case o.deploy.Mode != "" && o.deploy.Mode != "replicated":
			o.invalid(tuttiKey+".kind", "deploy.mode says %s; a stateful service is replicated", o.deploy.Mode)
		case x.Schedule != "":
			o.invalid(tuttiKey+".kind", "a stateful service goes on running; leave out the schedule")
		case o.ends[o.Name] != "":
			o.invalid(tuttiKey+".kind", "a stateful service never completes, which %s waits for", o.ends[o.Name])
		}
		o.w.Type, o.w.Start = model.StatefulWorkload, model.Ordered
	default:
		o.invalid(tuttiKey+".kind", "%q: stateful is accepted; of other kinds deploy.mode tells", x.Kind)
	}
	switch start := model.StartOrder(x.Start); start {
	case "":
	case model.Ordered, model.Parallel:
		if o.w.Type != model.StatefulWorkload {
			o.invalid(tuttiKey+".start", "it is for stateful services; write kind: stateful too")
			return
		}
		o.w.Start = start
	default:
		o.invalid(tuttiKey+".start", "%q is neither ordered nor parallel", x.Start)
	}
}

// first is the name of the service's first instance.
func (o *one) first() string {
	if o.w.Type == model.StatefulWorkload {
		return fmt.Sprintf("%s/%s-0", o.project.Name, o.Name)
	}
	return fmt.Sprintf("%s/%s.1", o.project.Name, o.Name)
}
