package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

func (w *worker) anyRun(tasks []model.TaskSpec) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range tasks {
		if len(w.runs[tasks[i].Name]) > 0 {
			return true
		}
	}
	return false
}

func driverName(t *model.TaskSpec) string {
	if t.Driver == "" {
		return "oci"
	}
	return t.Driver
}

// startTask starts the next run of a task, or, when adopting, goes on with the latest one.
func (w *worker) startTask(ctx context.Context, p *prepared, t *model.TaskSpec, adopt bool) (driver.Status, error) {
	d := w.agent.Drivers[driverName(t)]
	w.mu.Lock()
	runs := w.runs[t.Name]
	w.mu.Unlock()
	if adopt && len(runs) > 0 {
		n := runs[len(runs)-1]
		id := runID(w.id, t.Name, n)
		st, err := d.Status(ctx, id)
		if err != nil {
			return st, err
		}
		as, _, _ := w.desired()
		w.follow(as, t)
		w.setTask(taskStatus(t, n, st, p.digests[t.Name]))
		return st, nil
	}
	n := 1
	if len(runs) > 0 {
		n = runs[len(runs)-1] + 1
	}
	id := runID(w.id, t.Name, n)
	task, err := w.resolve(p, t, id)
	if err == nil {
		err = w.giveDevices(t, &task)
	}
	if err == nil {
		err = w.joinOthers(ctx, &task)
	}
	if err != nil {
		return driver.Status{}, err
	}
	w.mu.Lock()
	w.runs[t.Name] = append(w.runs[t.Name], n)
	old := w.runs[t.Name]
	var drop []int
	if len(old) > keptRuns {
		drop = slices.Clone(old[:len(old)-keptRuns])
		w.runs[t.Name] = slices.Clone(old[len(old)-keptRuns:])
	}
	w.mu.Unlock()
	for _, run := range drop {
		if err := d.Remove(ctx, runID(w.id, t.Name, run)); err != nil && !fault.Is(err, fault.NotFound) {
			w.log.Warn("an earlier run could not be removed", "run", run, "error", err)
		}
	}
	end := w.agent.turns.take(ctx)
	w.folders.RLock() // what is found in folders stays there meanwhile
	if err = w.refind(t, &task); err == nil {
		err = d.Start(ctx, task)
	}
	w.folders.RUnlock()
	end()
	st, statusErr := d.Status(ctx, id)
	if statusErr != nil {
		st = driver.Status{ID: id, State: driver.Exited, ExitCode: 127}
		if err != nil {
			st.Error = err.Error()
		}
	}
	w.setTask(taskStatus(t, n, st, p.digests[t.Name]))
	if err != nil {
		as, _, _ := w.desired()
		return st, fmt.Errorf("start %s of %s: %w", t.Name, as.Instance.FullName(), err)
	}
	return st, nil
}

// keptRuns is how many runs of a task keep their logs.
const keptRuns = 3

func taskStatus(t *model.TaskSpec, run int, st driver.Status, digest string) model.TaskStatus {
	return model.TaskStatus{
		Name: t.Name, RunID: st.ID, Run: run, State: string(st.State), PID: st.PID,
		Started: st.Started, Finished: st.Finished, ExitCode: st.ExitCode, OOM: st.OOM,
		Error: st.Error, Image: digest,
	}
}

// ended records the end of a task, in a run that began then, and says what it means.
func (w *worker) ended(p *prepared, st driver.Status, began time.Time) outcome {
	_, name, n := splitRunID(st.ID)
	for i := range p.template.Tasks {
		if t := &p.template.Tasks[i]; t.Name == name {
			w.setTask(taskStatus(t, n, st, p.digests[name]))
		}
	}
	o := outcome{clean: st.ExitCode == 0 && st.Error == "", message: describeExit(name, len(p.template.Tasks) > 1, st), ran: time.Since(began)}
	o.lapsed = st.Error == driver.Lapsed
	if !st.Finished.IsZero() {
		o.ran = st.Finished.Sub(began)
	}
	return o
}

func describeExit(name string, several bool, st driver.Status) string {
	var b strings.Builder
	if several {
		b.WriteString(name + ": ")
	}
	switch {
	case st.OOM && st.ExitCode == 128+9:
		b.WriteString("killed for want of memory: it reached its limit, or all that instances may have here was taken")
	case st.OOM:
		fmt.Fprintf(&b, "exited with code %d after a process of it was killed for want of memory", st.ExitCode)
	case st.Error != "":
		b.WriteString(st.Error)
	case st.ExitCode > 128 && st.ExitCode < 128+65:
		fmt.Fprintf(&b, "ended by signal %d", st.ExitCode-128)
	default:
		fmt.Fprintf(&b, "exited with code %d", st.ExitCode)
	}
	return b.String()
}

// runInit runs one init task to completion, or, when adopting, goes on with the run that an
// earlier agent began.
func (w *worker) runInit(ctx context.Context, p *prepared, t *model.TaskSpec, adopt bool) (outcome, bool) {
	began := time.Now()
	st, err := w.startTask(ctx, p, t, adopt)
	if err != nil {
		kind := fault.KindOf(err)
		return outcome{message: err.Error(), lapsed: lapsedBefore(err), never: kind == fault.Invalid || kind == fault.Unsupported || kind == fault.NotFound, ran: time.Since(began)}, false
	}
	d := w.agent.Drivers[driverName(t)]
	waitCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan driver.Status, 1)
	go func() {
		end, err := d.Wait(waitCtx, st.ID)
		if err != nil {
			if waitCtx.Err() != nil {
				return
			}
			end = driver.Status{ID: st.ID, State: driver.Exited, ExitCode: 255, Error: err.Error(), Finished: time.Now()}
		}
		done <- end
	}()
	for {
		select {
		case <-ctx.Done():
			return outcome{message: "the agent is stopping"}, false
		case <-w.wake:
			if _, want, _ := w.desired(); !want {
				w.set(func(st *model.InstanceStatus) { st.State = model.InstanceStopping })
				return w.stopTasks(ctx, p), false
			}
			w.goOn(ctx, p)
		case end := <-done:
			_, _, n := splitRunID(end.ID)
			w.setTask(taskStatus(t, n, end, p.digests[t.Name]))
			if end.ExitCode != 0 || end.Error != "" {
				return outcome{message: "init " + describeExit(t.Name, true, end), lapsed: end.Error == driver.Lapsed, ran: time.Since(began)}, false
			}
			return outcome{}, true
		}
	}
}

// stopTasks sends every running task its stop signal, waits for the grace period and kills what
// is left. It returns when all have ended.
func (w *worker) stopTasks(ctx context.Context, p *prepared) outcome {
	var wg sync.WaitGroup
	all := slices.Concat(p.template.InitTasks, p.template.Tasks)
	ends := make([]driver.Status, len(all))
	for i := range all {
		t := &all[i]
		w.mu.Lock()
		runs := w.runs[t.Name]
		w.mu.Unlock()
		if len(runs) == 0 {
			continue
		}
		n := runs[len(runs)-1]
		wg.Go(func() {
			ends[i] = w.stopTask(ctx, p, t, runID(w.id, t.Name, n))
			if ends[i].State == driver.Exited {
				w.setTask(taskStatus(t, n, ends[i], p.digests[t.Name]))
			}
		})
	}
	wg.Wait()
	o := outcome{clean: true, message: "stopped"}
	for _, st := range ends[len(p.template.InitTasks):] {
		if st.ExitCode != 0 && st.ExitCode != 128+15 {
			o = outcome{message: describeExit("", false, st)}
		}
	}
	return o
}

func (w *worker) stopTask(ctx context.Context, p *prepared, t *model.TaskSpec, id string) driver.Status {
	return w.stopTaskWithin(ctx, p, t, id, w.grace(p))
}

// grace is how long tasks have to end by themselves.
func (w *worker) grace(p *prepared) time.Duration {
	if as, _, _ := w.desired(); as.Instance.StopWithin != nil {
		return *as.Instance.StopWithin
	}
	return p.template.StopGrace
}

func (w *worker) stopTaskWithin(ctx context.Context, p *prepared, t *model.TaskSpec, id string, grace time.Duration) driver.Status {
	d := w.agent.Drivers[driverName(t)]
	st, err := d.Status(ctx, id)
	if err != nil || st.State == driver.Exited {
		return st
	}
	if grace > 0 {
		w.unpause(ctx, d, st)
		err := d.Signal(ctx, id, stopSignal(t, p.images[t.Name]))
		if isSuspended(err) {
			grace = 0 // another may have its place: it must not run for a moment longer
		} else if err != nil && !fault.Is(err, fault.NotFound) {
			w.log.Warn("stop signal could not be sent", "task", t.Name, "error", err)
		}
		waitCtx, cancel := context.WithTimeout(ctx, grace)
		st, err = d.Wait(waitCtx, id)
		cancel()
		if err == nil {
			return st
		}
		if ctx.Err() != nil {
			return st
		}
	}
	if err := d.Kill(ctx, id); err != nil && !fault.Is(err, fault.NotFound) {
		w.log.Error("task could not be killed", "task", t.Name, "error", err)
	}
	if st, err = d.Wait(ctx, id); err != nil && ctx.Err() == nil {
		w.log.Error("end of a killed task is unknown", "task", t.Name, "error", err)
	}
	return st
}
