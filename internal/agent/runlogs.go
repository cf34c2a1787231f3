package agent

import (
	"context"
	"slices"
	"strings"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// latestRun returns the driver and newest run of a task; "" is the first task.
func (w *worker) latestRun(task string) (driver.Driver, string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	t, err := w.task(task)
	if err != nil {
		return nil, "", err
	}
	runs := w.runs[t.Name]
	if len(runs) == 0 {
		return nil, "", fault.New(fault.Unavailable, "%s was not started yet: %s", w.assignment.Instance.FullName(), w.status.State)
	}
	return w.agent.Drivers[driverName(t)], runID(w.id, t.Name, runs[len(runs)-1]), nil
}

// logs yields the log of a task, run after run.
func (w *worker) logs(ctx context.Context, task string, o driver.LogOptions, yield func(driver.LogEntry) error) error {
	d, newest, err := w.latestRun(task)
	if err != nil {
		return err
	}
	_, name, last := splitRunID(newest)
	if o.Run != 0 {
		run, err := w.runOf(name, o.Run)
		if err != nil {
			return err
		}
		return d.Logs(ctx, run, o, yield)
	}
	w.mu.Lock()
	earlier := slices.DeleteFunc(slices.Clone(w.runs[name]), func(n int) bool { return n >= last })
	w.mu.Unlock()
	if err := w.earlierLogs(ctx, d, name, earlier, newest, o, yield); err != nil {
		return err
	}
	for {
		if err := d.Logs(ctx, newest, o, yield); err != nil || !o.Follow {
			return err
		}
		n, ok := w.nextRun(ctx, name, last)
		if !ok {
			return nil
		}
		last, newest, o.Tail = n, runID(w.id, name, n), -1
	}
}

// runOf is one of the kept runs of a task, as driver.LogOptions names it.
func (w *worker) runOf(task string, run int) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	runs := w.runs[task]
	if at := len(runs) + run; run < 0 && at >= 0 && at < len(runs) {
		return runID(w.id, task, runs[at]), nil
	}
	if run > 0 && slices.Contains(runs, run) {
		return runID(w.id, task, run), nil
	}
	return "", fault.New(fault.NotFound, "%s has no such run of task %s", w.assignment.Instance.FullName(), task)
}

// earlierLogs yields what the runs before the newest contribute.
func (w *worker) earlierLogs(ctx context.Context, d driver.Driver, task string, earlier []int, newest string, o driver.LogOptions, yield func(driver.LogEntry) error) error {
	o.Follow = false
	want := make([]int, len(earlier)) // how many lines of each run, from its end; negative: all
	room := o.Tail
	count := func(id string) error {
		o := o
		o.Tail = room
		err := d.Logs(ctx, id, o, func(driver.LogEntry) error { room--; return nil })
		if fault.Is(err, fault.NotFound) { // dropped meanwhile
			err = nil
		}
		return err
	}
	if o.Tail >= 0 {
		if err := count(newest); err != nil {
			return err
		}
	}
	for i := range slices.Backward(earlier) {
		want[i] = room
		if o.Tail >= 0 && room > 0 {
			if err := count(runID(w.id, task, earlier[i])); err != nil {
				return err
			}
		}
	}
	for i, n := range earlier {
		o.Tail = want[i]
		if o.Tail == 0 {
			continue
		}
		if err := d.Logs(ctx, runID(w.id, task, n), o, yield); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	return nil
}

// nextRun waits until a task has a newer run; it returns false when there will be none.
func (w *worker) nextRun(ctx context.Context, task string, after int) (int, bool) {
	for {
		w.mu.Lock()
		runs, changed := w.runs[task], w.changed
		told := 0 // the newest that was started: one that is about to be is not known to its driver
		for i := range w.status.Tasks {
			if w.status.Tasks[i].Name == task {
				told = w.status.Tasks[i].Run
			}
		}
		over := w.hasStatus && (w.status.State.Final() || w.status.State == model.InstanceHeld) || w.removing
		w.mu.Unlock()
		for _, n := range runs {
			if n > after && n <= told {
				return n, true
			}
		}
		if over {
			return 0, false
		}
		select {
		case <-ctx.Done():
			return 0, false
		case <-changed:
		}
	}
}

func (w *worker) task(name string) (*model.TaskSpec, error) {
	tasks := w.assignment.Template.Tasks
	var names []string
	for i := range tasks {
		if name == "" || tasks[i].Name == name {
			return &tasks[i], nil
		}
		names = append(names, tasks[i].Name)
	}
	for i := range w.assignment.Template.InitTasks {
		if t := &w.assignment.Template.InitTasks[i]; t.Name == name {
			return t, nil
		}
	}
	return nil, fault.New(fault.NotFound, "%s has no task %q; it has %s", w.assignment.Instance.FullName(), name, strings.Join(names, ", "))
}
