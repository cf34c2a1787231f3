package agent

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/model"
)

// separate is the life of an instance whose tasks live by themselves (model.Template.Separate), until
// it ends or has to pause.
type separate struct {
	w     *worker
	p     *prepared
	adopt bool
	stop  chan struct{} // closed when all tasks are to end
	halt  sync.Once

	lapsed atomic.Bool // a task was suspended with the end of the node's lease for too long, or could not start without one
}

// liveSeparate is live for such an instance, once it is prepared.
func (w *worker) liveSeparate(ctx context.Context, p *prepared) {
	adopt := w.adopted
	w.adopted = false
	for {
		if (!adopt || !w.anyRun(p.template.Tasks)) && !w.awaitTurn(ctx) {
			if ctx.Err() == nil {
				w.finish(ctx, p, outcome{message: "stopped before it was started", clean: true}, "stopped")
			}
			return
		}
		s := &separate{w: w, p: p, adopt: adopt, stop: make(chan struct{})}
		adopt = false
		o, because := s.run(ctx)
		if ctx.Err() != nil {
			return
		}
		if because == "" && o.lapsed {
			w.set(func(st *model.InstanceStatus) {
				st.State, st.Health, st.Message = model.InstanceWaiting, model.HealthNone, o.message
				st.Finished = time.Now()
			})
			w.log.Warn("instance was ended: the node's lease could not be renewed")
			continue
		}
		w.finish(ctx, p, o, because)
		return
	}
}

// run lets the tasks live until they have ended for good, the instance is to stop (then it says
// because of what), or the node's lease ends.
func (s *separate) run(ctx context.Context) (o outcome, because string) {
	w := s.w
	ended := make(chan outcome, 1)
	go func() { ended <- s.course(ctx) }()
	for {
		w.followFolders()
		w.followLinks(ctx)
		w.followBounds(ctx)
		if _, want, _ := w.desired(); !want {
			because = "stopped"
			s.end()
		} else if w.mustGo() != "" {
			s.end()
		}
		w.goOn(ctx, s.p)
		select {
		case <-w.wake:
		case o = <-ended:
			if why := w.mustGo(); because == "" && why != "" {
				o = outcome{never: true, message: why}
			} else if because == "" && s.lapsed.Load() {
				o = outcome{lapsed: true, message: driver.Lapsed}
			}
			return o, because
		}
	}
}

// end has all tasks end.
func (s *separate) end() {
	s.halt.Do(func() {
		close(s.stop)
		s.w.set(func(st *model.InstanceStatus) { st.State, st.Health = model.InstanceStopping, model.HealthNone })
	})
}

func (s *separate) ending() bool {
	select {
	case <-s.stop:
		return true
	default:
		return false
	}
}

// course is the order of things: init tasks one after the other, sidecars among them from their turn
// on, then the tasks, each when the one before has been started, and the ends of the sidecars after
// those of the tasks, the last first.
func (s *separate) course(ctx context.Context) outcome {
	w, t := s.w, s.p.template
	began := s.adopt && w.anyRun(t.Tasks)
	if !began {
		w.set(func(st *model.InstanceStatus) {
			st.State, st.Health, st.Message = model.InstanceStarting, model.HealthNone, ""
		})
	}
	var sidecars []*taskLife
	endSidecars := func() {
		for _, l := range slices.Backward(sidecars) {
			l.end()
			<-l.ended
		}
	}
	if t.Shared().OnePIDs {
		l := s.begin(ctx, holder(), model.RestartAlways, make(chan struct{}))
		sidecars = append(sidecars, l)
	}
	for i := range t.InitTasks {
		task := &t.InitTasks[i]
		if task.Sidecar {
			l := s.begin(ctx, task, model.RestartAlways, make(chan struct{}))
			sidecars = append(sidecars, l)
			select {
			case <-l.up:
			case <-s.stop:
			case <-ctx.Done():
			}
		} else if !began && !w.completed(task) {
			condition := t.Restart.Condition
			if condition == model.RestartAlways {
				condition = model.RestartOnFailure
			}
			l := s.begin(ctx, task, condition, s.stop)
			<-l.ended
			if o := l.outcome(); !o.clean && ctx.Err() == nil && !s.ending() {
				endSidecars()
				o.message = "init " + o.message
				return o
			}
		}
		if ctx.Err() != nil || s.ending() {
			break
		}
	}
	var lives []*taskLife
	for i := range t.Tasks {
		if ctx.Err() != nil || s.ending() {
			break
		}
		l := s.begin(ctx, &t.Tasks[i], t.Restart.Condition, s.stop)
		lives = append(lives, l)
		select {
		case <-l.launched:
		case <-l.ended:
		case <-ctx.Done():
		}
	}
	if ctx.Err() == nil && !s.ending() {
		w.set(func(st *model.InstanceStatus) {
			if st.State == model.InstanceStopping {
				return
			}
			st.State, st.Message, st.Finished = model.InstanceRunning, "", time.Time{}
			if st.Started.IsZero() || !s.adopt {
				st.Started = time.Now()
			}
			w.sumUp(st)
		})
	}
	o := outcome{clean: true, message: "stopped before it was started"}
	for n, l := range lives {
		<-l.ended
		if end := l.outcome(); n == 0 || o.clean && !end.clean {
			o = end
		}
	}
	if ctx.Err() == nil {
		endSidecars()
	}
	for _, l := range sidecars {
		<-l.ended
	}
	return o
}

// completed reports whether an init task has ended well already.
func (w *worker) completed(t *model.TaskSpec) bool {
	st, _ := w.reported()
	i := slices.IndexFunc(st.Tasks, func(have model.TaskStatus) bool { return have.Name == t.Name })
	return i >= 0 && st.Tasks[i].State == string(driver.Exited) && st.Tasks[i].ExitCode == 0 && st.Tasks[i].Error == ""
}

// sumUp says of a running instance how its tasks are together.
func (w *worker) sumUp(st *model.InstanceStatus) {
	t := w.assignment.Template
	if st.State != model.InstanceRunning || !t.Separate {
		return
	}
	ready, restarts := true, 0
	for i := range st.Tasks {
		restarts += st.Tasks[i].Restarts
	}
	isReady := func(name string) bool {
		return slices.ContainsFunc(st.Tasks, func(have model.TaskStatus) bool { return have.Name == name && have.Ready })
	}
	for i := range t.Tasks {
		ready = ready && isReady(t.Tasks[i].Name)
	}
	for i := range t.InitTasks {
		ready = ready && (!t.InitTasks[i].Sidecar || isReady(t.InitTasks[i].Name))
	}
	st.Restarts, st.Health = restarts, model.HealthStarting
	if ready {
		st.Health = model.HealthHealthy
	}
}

// changeTask changes what is said of a task, and of the instance with it.
func (w *worker) changeTask(name string, change func(*model.TaskStatus)) {
	w.set(func(st *model.InstanceStatus) {
		i := slices.IndexFunc(st.Tasks, func(have model.TaskStatus) bool { return have.Name == name })
		if i < 0 {
			st.Tasks = append(st.Tasks, model.TaskStatus{Name: name})
			i = len(st.Tasks) - 1
		}
		change(&st.Tasks[i])
		w.sumUp(st)
	})
}

// taskLife is a task with all of its runs.
type taskLife struct {
	s        *separate
	t        *model.TaskSpec
	count    restartCount
	stop     chan struct{}
	halt     sync.Once
	up       chan struct{} // closed when it is up for the first time
	launched chan struct{} // closed when its first start was tried, AfterStart included
	first    sync.Once
	ended    chan struct{} // closed when it has ended for good
	isUp     bool
	last     driver.Status
	failed   string // why the last run was ended, "" when it ended by itself
}

func (s *separate) begin(ctx context.Context, t *model.TaskSpec, condition model.RestartCondition, stop chan struct{}) *taskLife {
	policy := s.p.template.Restart
	policy.Condition = condition
	l := &taskLife{
		s: s, t: t, count: restartCount{policy: policy}, stop: stop,
		up: make(chan struct{}), launched: make(chan struct{}), ended: make(chan struct{}),
	}
	st, _ := s.w.reported()
	for i := range st.Tasks {
		if st.Tasks[i].Name == t.Name {
			l.count.attempts = min(st.Tasks[i].Restarts, 10)
		}
	}
	go func() {
		defer close(l.ended)
		l.live(ctx)
	}()
	return l
}

// end ends a task that has a stop of its own.
func (l *taskLife) end() { l.halt.Do(func() { close(l.stop) }) }

func (l *taskLife) launch() { l.first.Do(func() { close(l.launched) }) }

func (l *taskLife) outcome() outcome {
	_, name, _ := splitRunID(l.last.ID)
	several := len(l.s.p.template.Tasks)+len(l.s.p.template.InitTasks) > 1
	o := outcome{clean: l.last.ExitCode == 0 && l.last.Error == "" && l.failed == "", message: describeExit(name, several, l.last)}
	if l.failed != "" {
		o.message = l.failed
	}
	return o
}

func (l *taskLife) stopping() bool {
	select {
	case <-l.stop:
		return true
	default:
		return false
	}
}

func (l *taskLife) live(ctx context.Context) {
	w := l.s.w
	for first := true; ; first = false {
		began := time.Now()
		st := l.run(ctx, l.s.adopt && first)
		l.launch()
		if ctx.Err() != nil {
			return
		}
		l.last = st
		if l.stopping() {
			return
		}
		if st.Error == driver.Lapsed {
			l.s.lapsed.Store(true)
			l.s.end()
			return
		}
		o := l.outcome()
		o.ran = time.Since(began)
		if !st.Started.IsZero() && !st.Finished.IsZero() {
			o.ran = st.Finished.Sub(st.Started)
		}
		again, delay := l.count.next(o)
		if !again {
			return
		}
		w.changeTask(l.t.Name, func(st *model.TaskStatus) {
			st.Waiting = fmt.Sprintf("%s; restarting in %s", o.message, delay.Round(100*time.Millisecond))
		})
		w.log.Info("task will be restarted", "task", l.t.Name, "reason", o.message, "delay", delay)
		select {
		case <-ctx.Done():
			return
		case <-l.stop:
			return
		case <-time.After(delay):
		}
	}
}

// run is one run of the task, until it has ended; an adopted one goes on with the latest.
func (l *taskLife) run(ctx context.Context, adopt bool) driver.Status {
	w, p, t := l.s.w, l.s.p, l.t
	l.failed = ""
	if l.stopping() {
		return driver.Status{State: driver.Exited}
	}
	if err := w.emptyLastWords(t, adopt); err != nil {
		w.log.Warn("the file of a task's last words could not be emptied", "task", t.Name, "error", err)
	}
	st, err := w.startTask(ctx, p, t, adopt)
	if err != nil {
		if ctx.Err() == nil {
			l.failed = err.Error()
			st.State = driver.Exited
			if lapsedBefore(err) {
				st.Error = driver.Lapsed
			}
			w.changeTask(t.Name, func(ts *model.TaskStatus) {
				ts.State, ts.ExitCode, ts.Error, ts.Up, ts.Ready = string(driver.Exited), 128, err.Error(), false, false
			})
		}
		return st
	}
	d := w.agent.Drivers[driverName(t)]
	runCtx, cancel := context.WithCancel(ctx)
	var others sync.WaitGroup
	defer others.Wait()
	defer cancel()
	exit := make(chan driver.Status, 1)
	others.Go(func() {
		end, err := d.Wait(runCtx, st.ID)
		if err != nil {
			if runCtx.Err() != nil {
				return
			}
			end = driver.Status{ID: st.ID, State: driver.Exited, ExitCode: 255, Error: err.Error(), Finished: time.Now()}
		}
		exit <- end
	})
	if st.State == driver.Exited { // before it was adopted
		return l.noteEnd(st)
	}
	if t.AfterStart != nil && !adopt {
		if err := w.doHook(runCtx, p, t, st.ID, t.AfterStart); err != nil && runCtx.Err() == nil {
			return l.endRun(ctx, st.ID, "what was to be done after the start failed: "+err.Error(), nil)
		}
	}
	l.launch() // the tasks after this one may start
	verdicts := make(chan finding)
	others.Go(func() { l.watch(runCtx, st.ID, adopt, verdicts) })
	for {
		select {
		case <-ctx.Done():
			return st
		case end := <-exit:
			return l.noteEnd(end)
		case <-l.stop:
			return l.endRun(ctx, st.ID, "", nil)
		case v := <-verdicts:
			switch {
			case v.unhealthy != "":
				w.log.Info("task is unhealthy", "task", t.Name, "output", v.unhealthy)
				return l.endRun(ctx, st.ID, v.unhealthy, v.grace)
			default:
				w.changeTask(t.Name, func(ts *model.TaskStatus) { ts.Up, ts.Ready = true, v.ready })
				if !l.isUp {
					l.isUp = true
					close(l.up)
				}
			}
		}
	}
}

// noteEnd records how a run ended.
func (l *taskLife) noteEnd(st driver.Status) driver.Status {
	w := l.s.w
	_, name, n := splitRunID(st.ID)
	status := taskStatus(l.t, n, st, l.s.p.digests[name])
	status.Message = w.lastWords(l.t, &st)
	w.setTask(status)
	return st
}

// endRun ends a run: because it is unhealthy, or, without a reason, because it is to stop.
func (l *taskLife) endRun(ctx context.Context, id, why string, grace *time.Duration) driver.Status {
	l.failed = why
	w := l.s.w
	w.changeTask(l.t.Name, func(ts *model.TaskStatus) { ts.Ready = false })
	within := w.grace(l.s.p)
	if grace != nil {
		within = *grace
	}
	if l.t.BeforeStop != nil && within > 0 {
		began := time.Now()
		hookCtx, cancel := context.WithTimeout(ctx, within)
		if err := w.doHook(hookCtx, l.s.p, l.t, id, l.t.BeforeStop); err != nil && ctx.Err() == nil {
			w.log.Warn("what was to be done before the stop failed", "task", l.t.Name, "error", err)
		}
		cancel()
		within = max(within-time.Since(began), 2*time.Second)
	}
	st := w.stopTaskWithin(ctx, l.s.p, l.t, id, within)
	if ctx.Err() != nil {
		return st
	}
	if st.State != driver.Exited {
		st = driver.Status{ID: id, State: driver.Exited, ExitCode: 137, Finished: time.Now()}
	}
	return l.noteEnd(st)
}
