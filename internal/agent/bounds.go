package agent

import (
	"context"
	"reflect"
	"slices"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// boundsIn are a task's as an assignment has them by now, with those of this node where it says nothing.
func (w *worker) boundsIn(as *wire.Assignment, t *model.TaskSpec) model.Bounds {
	b := t.Bounds()
	for _, list := range [][]model.TaskSpec{as.Template.InitTasks, as.Template.Tasks} {
		if i := slices.IndexFunc(list, func(now model.TaskSpec) bool { return now.Name == t.Name }); i >= 0 {
			b = list[i].Bounds()
		}
	}
	return w.agent.bounded(b)
}

// bounded adds what tasks are bounded in on this node that are not bounded otherwise.
func (a *Agent) bounded(b model.Bounds) model.Bounds {
	if b.Limit.Pids == 0 {
		b.Limit.Pids = a.PidsPerTask
	}
	return b
}

// follow notes that a task is bounded as an assignment says, and returns how.
func (w *worker) follow(as *wire.Assignment, t *model.TaskSpec) model.Bounds {
	b := w.boundsIn(as, t)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bounded[t.Name] = b
	return b
}

// followBounds bounds the tasks that run as the instance's assignment says by now.
func (w *worker) followBounds(ctx context.Context) {
	as, _, _ := w.desired()
	all := slices.Concat(as.Template.InitTasks, as.Template.Tasks)
	for i := range all {
		t := &all[i]
		w.mu.Lock()
		before, known := w.bounded[t.Name]
		w.mu.Unlock()
		if !known || reflect.DeepEqual(before, w.boundsIn(as, t)) {
			continue
		}
		d, id, err := w.latestRun(t.Name)
		if err == nil {
			err = d.Update(ctx, id, w.follow(as, t))
		}
		if err != nil && ctx.Err() == nil {
			w.log.Warn("a task could not be bounded anew: it is when it is started again", "task", t.Name, "error", err)
		}
	}
}

// Bound bounds a task that runs anew; an empty name means the first.
func (a *Agent) Bound(ctx context.Context, instance, task string, b model.Bounds) error {
	d, id, err := a.find(instance, task)
	if err != nil {
		return err
	}
	return d.Update(ctx, id, a.bounded(b))
}
