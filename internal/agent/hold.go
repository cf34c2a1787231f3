package agent

import (
	"context"
	"time"

	"github.com/tutti-run/tutti/internal/model"
)

// mayHold reports whether an instance that ends now is kept to be started again.
func (w *worker) mayHold() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.removing || !w.assignment.Template.KeepEnded {
		return false
	}
	d := w.assignment.Instance.Desired
	return d == model.DesiredRun || d == model.DesiredHold
}

// laidOut reports whether an instance is to be made and kept before it is started for the first time. Its lock is held.
func (w *worker) laidOut() bool {
	i := w.assignment.Instance
	return !w.removing && w.assignment.Template.KeepEnded && i.Desired == model.DesiredHold && i.Starts == 0
}

// startedAnew reports whether people started the instance again since its latest run began.
func (w *worker) startedAnew() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := w.assignment.Instance
	return !w.removing && i.Desired == model.DesiredRun && i.Starts > w.starts
}

// countStarts begins a run that people asked for: earlier failures count no more.
func (w *worker) countStarts(restarts *restartCount) {
	restarts.attempts = 0
	w.mu.Lock()
	w.starts, w.attempts = w.assignment.Instance.Starts, 0
	w.mu.Unlock()
}

// hold keeps an instance whose tasks have ended, are ended here or were never started, until it is started. It
// returns false when it is to end for good, and has, or when ctx is done. An instance that was held
// already keeps its status.
func (w *worker) hold(ctx context.Context, p *prepared, o outcome, already bool) bool {
	if !already {
		w.stopTasks(ctx, p)
		w.set(func(st *model.InstanceStatus) {
			st.State, st.Health, st.Message = model.InstanceHeld, model.HealthNone, o.message
			if len(st.Tasks) > 0 {
				st.Finished = time.Now()
			}
		})
		w.log.Info("instance is kept", "reason", o.message)
	}
	for {
		w.followLinks(ctx)
		if w.startedAnew() {
			return true
		}
		if !w.mayHold() {
			if ctx.Err() == nil {
				w.finish(ctx, p, o, "stopped")
			}
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-w.wake:
		}
	}
}
