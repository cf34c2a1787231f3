package agent

import (
	"context"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// pause stops tasks where they are, or lets them go on. A paused instance is not ready: what it gets
// it would not answer. Its probes wait, too.
func (w *worker) pause(ctx context.Context, task string, pause bool) error {
	names := []string{task}
	if task == "" {
		names = nil
		as, _, _ := w.desired()
		for _, t := range as.Template.Tasks {
			names = append(names, t.Name)
		}
	}
	for _, name := range names {
		d, id, err := w.latestRun(name)
		if err != nil {
			return err
		}
		from, to := driver.Running, driver.Paused
		act := d.Pause
		if !pause {
			from, to, act = driver.Paused, driver.Running, d.Resume
		}
		if st, err := d.Status(ctx, id); err == nil && st.State == to && len(names) > 1 {
			continue // asked for by the task before
		}
		if err := act(ctx, id); err != nil {
			return err
		}
		w.set(func(st *model.InstanceStatus) {
			for i := range st.Tasks { // unless it has ended meanwhile
				if t := &st.Tasks[i]; t.RunID == id && t.State == string(from) {
					t.State = string(to)
				}
			}
		})
	}
	return nil
}

// paused reports whether one of an instance's tasks is.
func paused(tasks []model.TaskStatus) bool {
	for i := range tasks {
		if tasks[i].State == string(driver.Paused) {
			return true
		}
	}
	return false
}

// isPaused reports whether a run is.
func (w *worker) isPaused(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.status.Tasks {
		if t := &w.status.Tasks[i]; t.RunID == id && t.State == string(driver.Paused) {
			return true
		}
	}
	return false
}

// unpause lets a task go on that is to be stopped: its stop signal would not reach it.
func (w *worker) unpause(ctx context.Context, d driver.Driver, st driver.Status) {
	if st.State != driver.Paused {
		return
	}
	if err := d.Resume(ctx, st.ID); err != nil && !fault.Is(err, fault.Conflict) && !fault.Is(err, fault.Unavailable) {
		w.log.Warn("a paused task could not be resumed to be stopped", "task", st.ID, "error", err)
	}
}
