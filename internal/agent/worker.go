package agent

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// worker lives as long as its instance is assigned here. Its run loop is the only writer of the
// instance's status and the only caller that starts, stops or removes its tasks.
type worker struct {
	id      string
	agent   *Agent
	log     *slog.Logger
	adopted bool

	wake chan struct{} // capacity 1: something in the fields below changed

	mu         sync.Mutex
	assignment *wire.Assignment
	removing   bool
	status     model.InstanceStatus
	hasStatus  bool
	attempts   int           // restarts that the policy counts
	starts     uint64        // how many of the instance's starts were followed
	changed    chan struct{} // closed and replaced at each status change
	runs       map[string][]int
	prepared   *prepared // nil until it is; not changed afterwards
	evicted    string    // why it is to be ended for others; "" when it is not
	linked     linked
	bounded    map[string]model.Bounds // by task: those of the assignment that its latest run has

	followed *wire.Assignment // whose folders were laid out; the run loop's
	term     int              // of the node's lease in which the tasks run that need one; the run loop's
	folders  sync.RWMutex     // what is in folders changes under it

	keeping sync.Mutex // held while the status is kept on disk
	keptSeq uint64     // the number of that
}

func newWorker(a *Agent, as *wire.Assignment, adopted bool) *worker {
	return &worker{
		id: as.Instance.ID, agent: a, assignment: as, adopted: adopted,
		log:     a.Log.With("instance", as.Instance.ID, "name", as.Instance.FullName()),
		wake:    make(chan struct{}, 1),
		changed: make(chan struct{}),
		runs:    map[string][]int{}, bounded: map[string]model.Bounds{},
	}
}

func (w *worker) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *worker) update(as *wire.Assignment) {
	w.mu.Lock()
	w.assignment = as
	w.mu.Unlock()
	w.poke()
}

func (w *worker) remove() {
	w.mu.Lock()
	w.removing = true
	w.mu.Unlock()
	w.poke()
}

// desired returns the current assignment and whether its tasks should run.
func (w *worker) desired() (as *wire.Assignment, run, remove bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	run = w.assignment.Instance.Desired == model.DesiredRun || w.assignment.Instance.Desired == model.DesiredDrain
	return w.assignment, run && !w.removing, w.removing
}

// key stands for the assignment; it is "" where secrets of it are missing, which are not kept on
// disk. ok is false for an instance that is being removed.
func (w *worker) key() (key string, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	key = w.assignment.Key
	for _, t := range slices.Concat(w.assignment.Template.InitTasks, w.assignment.Template.Tasks) {
		for _, m := range t.Mounts {
			if m.Type == model.MountSecret && w.assignment.Secrets == nil {
				key = ""
			}
		}
	}
	return key, !w.removing
}

func (w *worker) reported() (model.InstanceStatus, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.status, w.hasStatus
}

// set changes the status and reports it when it differs.
func (w *worker) set(change func(*model.InstanceStatus)) {
	w.mu.Lock()
	st := w.status
	st.Tasks = slices.Clone(st.Tasks)
	change(&st)
	ready := st.State == model.InstanceRunning && (st.Health == model.HealthNone || st.Health == model.HealthHealthy) && !paused(st.Tasks)
	if ready && !st.Ready {
		st.ReadySince = time.Now()
	}
	st.Ready = ready
	same := w.hasStatus && equalStatus(&w.status, &st)
	if !same {
		st.Seq = w.agent.sequence.Add(1)
	}
	w.status, w.hasStatus = st, true
	kept := keptStatus{Status: st, Attempts: w.attempts, Starts: w.starts}
	if !same {
		close(w.changed)
		w.changed = make(chan struct{})
		w.agent.session.Report(w.id, st) // only queues; under the lock so that reports keep their order
	}
	w.mu.Unlock()
	if !same && !passing(st.State) {
		w.keep(&kept)
	}
}

// keep keeps a status on disk, unless a later one is there already.
func (w *worker) keep(kept *keptStatus) {
	w.keeping.Lock()
	defer w.keeping.Unlock()
	if kept.Status.Seq < w.keptSeq {
		return
	}
	w.keptSeq = kept.Status.Seq
	if err := saveStatus(w.agent.assignments(), w.id, kept); err != nil {
		w.log.Error("status could not be kept on disk", "error", err)
	}
}

// tellAgain tells the status under a new number.
func (w *worker) tellAgain() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.hasStatus {
		w.status.Seq = w.agent.sequence.Add(1)
		w.agent.session.Report(w.id, w.status)
	}
}

// passing states are not kept on disk: an agent that finds an instance in one goes on from what runs.
func passing(s model.InstanceState) bool {
	return s == model.InstancePreparing || s == model.InstanceStarting || s == model.InstanceStopping
}

func equalStatus(a, b *model.InstanceStatus) bool {
	x, y := *a, *b
	x.Tasks, y.Tasks = nil, nil
	return fmt.Sprint(x) == fmt.Sprint(y) && slices.Equal(a.Tasks, b.Tasks)
}

func (w *worker) setTask(t model.TaskStatus) {
	w.set(func(st *model.InstanceStatus) {
		for i := range st.Tasks {
			if st.Tasks[i].Name == t.Name {
				message := t.Message
				t.Follow(&st.Tasks[i])
				t.Message = cmp.Or(message, t.Message)
				st.Tasks[i] = t
				w.sumUp(st)
				return
			}
		}
		st.Tasks = append(st.Tasks, t)
		w.sumUp(st)
	})
}

// run is the life of the instance on this node.
func (w *worker) run(ctx context.Context) {
	if w.adopted {
		if kept, ok := loadStatus(w.agent.assignments(), w.id); ok {
			w.mu.Lock()
			w.status, w.hasStatus, w.attempts, w.starts = kept.Status, true, kept.Attempts, kept.Starts
			w.mu.Unlock()
			w.tellAgain()
		}
	}
	w.live(ctx)
	if ctx.Err() != nil {
		return // the agent stops; the instance goes on
	}
	for { // ended: stay for logs until told to forget
		if _, _, remove := w.desired(); remove {
			break
		}
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		}
	}
	w.cleanUp(ctx)
}

// recall takes over which runs an earlier agent started.
func (w *worker) recall(runs []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range runs {
		if _, task, n := splitRunID(id); n > 0 {
			w.runs[task] = append(w.runs[task], n)
			slices.Sort(w.runs[task])
		}
	}
}

// live prepares, starts, watches and restarts the tasks until the instance has ended or ctx is
// done. On return without ctx done, the status is final and only logs and files are left.
func (w *worker) live(ctx context.Context) {
	if st, ok := w.reported(); ok && st.State.Final() {
		return // it had ended before the agent was restarted
	}
	p, ok := w.prepareUntilDone(ctx)
	if !ok {
		return
	}
	if p.template.Separate {
		w.liveSeparate(ctx, p)
		return
	}
	w.mu.Lock()
	restarts := &restartCount{policy: p.template.Restart, attempts: w.attempts}
	held := w.adopted && w.status.State == model.InstanceHeld
	if !w.adopted {
		w.starts = w.assignment.Instance.Starts
	}
	laid := w.laidOut()
	w.mu.Unlock()
	for {
		var outcome outcome
		switch {
		case laid:
			outcome.message = "not started yet"
		case !held:
			outcome = w.runOnce(ctx, p, w.adopted)
		}
		w.adopted = false
		if ctx.Err() != nil {
			return
		}
		if !held && !laid && w.startedAnew() { // it was told to run once more while it ran
			w.countStarts(restarts)
			continue
		}
		_, want, _ := w.desired()
		if want && outcome.lapsed { // no fault of its own
			w.set(func(st *model.InstanceStatus) {
				st.State, st.Health, st.Message = model.InstanceWaiting, model.HealthNone, outcome.message
				st.Finished = time.Now()
			})
			w.log.Warn("instance was ended: the node's lease could not be renewed")
			continue
		}
		as, _, _ := w.desired()
		restarts.policy = as.Template.Restart
		again, delay := restarts.next(outcome)
		if held || laid || w.mayHold() && (!want || !again) {
			if !w.hold(ctx, p, outcome, held) {
				return
			}
			held, laid = false, false
			w.countStarts(restarts)
			continue
		}
		if !want {
			w.finish(ctx, p, outcome, "stopped")
			return
		}
		if !again {
			w.finish(ctx, p, outcome, "")
			return
		}
		w.set(func(st *model.InstanceStatus) {
			st.State, st.Health = model.InstanceWaiting, model.HealthNone
			st.Finished = time.Now()
			st.Message = fmt.Sprintf("%s; restarting in %s", outcome.message, delay.Round(100*time.Millisecond))
		})
		w.log.Info("instance will be restarted", "reason", outcome.message, "delay", delay)
		if !w.sleep(ctx, delay) {
			if ctx.Err() != nil {
				return
			}
			if w.mayHold() {
				if !w.hold(ctx, p, outcome, false) {
					return
				}
				w.countStarts(restarts)
				continue
			}
			w.finish(ctx, p, outcome, "stopped")
			return
		}
		w.mu.Lock()
		w.attempts = restarts.attempts // kept with the status: an end that nothing followed is judged anew
		w.mu.Unlock()
		w.set(func(st *model.InstanceStatus) { st.Restarts++ })
	}
}

// prepareUntilDone prepares the instance, again and again where that may help.
func (w *worker) prepareUntilDone(ctx context.Context) (*prepared, bool) {
	for attempt := 0; ; attempt++ {
		as, want, _ := w.desired()
		w.mu.Lock()
		laid := w.laidOut()
		w.mu.Unlock()
		if !want && !laid {
			// What an earlier agent left running is stopped as it should be, prepared or not.
			p, running := w.unprepared(ctx, as)
			o := outcome{message: "stopped before it was started", clean: true}
			if running {
				w.set(func(st *model.InstanceStatus) { st.State, st.Health = model.InstanceStopping, model.HealthNone })
				o = w.stopTasks(ctx, p)
			}
			if ctx.Err() == nil {
				w.finish(ctx, p, o, "stopped")
			}
			return nil, false
		}
		w.mu.Lock()
		fresh := !w.hasStatus
		w.mu.Unlock()
		if fresh {
			w.set(func(st *model.InstanceStatus) { st.State = model.InstancePreparing })
		}
		p, err := w.prepare(ctx, as)
		if err == nil {
			w.mu.Lock()
			w.prepared = p
			w.mu.Unlock()
			return p, true
		}
		if ctx.Err() != nil {
			return nil, false
		}
		w.log.Warn("instance could not be prepared", "error", err, "attempt", attempt+1)
		// What can never work, or was tried often enough for this node, fails; the cluster
		// replaces the instance where another node may do better. Not what runs: it is only this
		// agent that cannot take it over yet.
		bare, running := w.unprepared(ctx, as)
		if kind := fault.KindOf(err); !running && !as.Template.Separate && (kind == fault.Invalid || kind == fault.Unsupported || attempt >= 4) {
			w.finish(ctx, bare, outcome{message: err.Error()}, "")
			return nil, false
		}
		if !running {
			w.set(func(st *model.InstanceStatus) {
				st.State, st.Message = model.InstancePreparing, err.Error()
			})
		}
		again := time.Second << min(attempt, 4)
		if laid { // wanted, though not to run
			select {
			case <-ctx.Done():
			case <-time.After(again):
			case <-w.wake:
			}
		} else {
			w.sleepUntil(ctx, again, func() bool { // what it was lacking may have come
				now, _, _ := w.desired()
				return now != as
			})
		}
		if ctx.Err() != nil {
			return nil, false
		}
	}
}

// unprepared is what can be known of an instance without preparing it, enough to stop what an
// earlier agent left running.
func (w *worker) unprepared(ctx context.Context, as *wire.Assignment) (p *prepared, running bool) {
	p = &prepared{template: as.Template, images: map[string]*image.Info{}, digests: map[string]string{}}
	for _, t := range slices.Concat(as.Template.InitTasks, as.Template.Tasks) {
		w.mu.Lock()
		runs := w.runs[t.Name]
		w.mu.Unlock()
		d := w.agent.Drivers[driverName(&t)]
		if len(runs) == 0 || d == nil {
			continue
		}
		st, err := d.Status(ctx, runID(w.id, t.Name, runs[len(runs)-1]))
		if err != nil || st.State == driver.Exited {
			continue
		}
		running = true
		p.digests[t.Name] = t.Digest
		if driverName(&t) == "oci" && t.StopSignal == "" {
			// The image may name a stop signal; if it does not come quickly, SIGTERM will do.
			imageCtx, cancel := context.WithTimeout(ctx, time.Second)
			if info, err := w.agent.Images.Ensure(imageCtx, t.Image, t.Digest, func(image.Progress) {}); err == nil {
				p.images[t.Name], p.digests[t.Name] = &info, info.Digest
			}
			cancel()
		}
	}
	return p, running
}

// sleep waits; it returns false early when the instance should no longer run or ctx is done.
func (w *worker) sleep(ctx context.Context, d time.Duration) bool {
	return w.sleepUntil(ctx, d, func() bool { return false })
}

// sleepUntil is sleep, but for not longer than until something holds of which the worker is woken.
func (w *worker) sleepUntil(ctx context.Context, d time.Duration, holds func() bool) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		if _, want, _ := w.desired(); !want {
			return false
		}
		if holds() {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-t.C:
			return true
		case <-w.wake:
		}
	}
}

// outcome is how one run of all tasks ended.
type outcome struct {
	clean   bool // every task ended with exit code 0
	lapsed  bool // it was ended because the node's lease did
	never   bool // it can never be started: restarting is of no use
	ran     time.Duration
	message string
}

// runOnce starts the init tasks and the tasks (or adopts those that run), watches them until
// the first one ends or the instance is to stop, and ends the rest.
func (w *worker) runOnce(ctx context.Context, p *prepared, adopt bool) outcome {
	if !adopt || !w.anyRun(p.template.Tasks) {
		if !w.awaitTurn(ctx) {
			return outcome{message: "stopped before it was started", clean: true}
		}
	}
	began := time.Now()
	if !adopt || !w.anyRun(p.template.Tasks) {
		w.set(func(st *model.InstanceStatus) {
			st.State, st.Health, st.Message = model.InstanceStarting, model.HealthNone, ""
		})
		for i := range p.template.InitTasks {
			if o, ok := w.runInit(ctx, p, &p.template.InitTasks[i], adopt); !ok {
				return o
			}
		}
	}
	exits := make(chan driver.Status, len(p.template.Tasks))
	watchCtx, stopWatching := context.WithCancel(ctx)
	var watching sync.WaitGroup
	defer func() { stopWatching(); watching.Wait() }()
	var ids []string
	var first *driver.Status // the first that had ended before it was adopted
	for i := range p.template.Tasks {
		t := &p.template.Tasks[i]
		st, err := w.startTask(ctx, p, t, adopt)
		if err != nil {
			if ctx.Err() != nil {
				return outcome{message: "the agent is stopping"}
			}
			w.stopTasks(ctx, p)
			kind := fault.KindOf(err)
			return outcome{message: err.Error(), lapsed: lapsedBefore(err), never: kind == fault.Invalid || kind == fault.Unsupported || kind == fault.NotFound, ran: time.Since(began)}
		}
		if adopt && !st.Started.IsZero() && st.Started.Before(began) {
			began = st.Started
		}
		if adopt && st.State == driver.Exited && (first == nil || st.Finished.Before(first.Finished)) {
			first = &st
		}
		ids = append(ids, st.ID)
		d := w.agent.Drivers[driverName(t)]
		watching.Go(func() {
			st, err := d.Wait(watchCtx, st.ID)
			if err != nil {
				if watchCtx.Err() != nil {
					return
				}
				st = driver.Status{ID: st.ID, State: driver.Exited, ExitCode: 255, Error: err.Error(), Finished: time.Now()}
			}
			exits <- st
		})
	}
	if first != nil { // never say that it runs
		o := w.ended(p, *first, began)
		w.stopTasks(ctx, p)
		return o
	}
	health := w.startProbes(watchCtx, &watching, p, ids)
	w.set(func(st *model.InstanceStatus) {
		st.State, st.Message = model.InstanceRunning, ""
		st.Started, st.Finished = began, time.Time{}
		if len(st.Tasks) > 0 && !st.Tasks[0].Started.IsZero() {
			st.Started = st.Tasks[0].Started
		}
		if health == nil {
			st.Health = model.HealthNone
		} else if st.Health == model.HealthNone || !adopt {
			st.Health = model.HealthStarting
		}
	})

	for {
		w.followLinks(ctx)
		w.followBounds(ctx)
		// Looked at each time: who waited for the instance's turn may have heard the wake-up.
		if _, want, _ := w.desired(); !want || w.startedAnew() {
			w.set(func(st *model.InstanceStatus) { st.State, st.Health = model.InstanceStopping, model.HealthNone })
			return w.stopTasks(ctx, p)
		}
		if why := w.mustGo(); why != "" {
			w.log.Warn("instance is ended for others", "reason", why)
			w.set(func(st *model.InstanceStatus) { st.State, st.Health = model.InstanceStopping, model.HealthNone })
			w.stopTasks(ctx, p)
			return outcome{never: true, message: why}
		}
		w.goOn(ctx, p)
		select {
		case <-ctx.Done():
			return outcome{message: "the agent is stopping"}
		case <-w.wake:
		case st := <-exits:
			o := w.ended(p, st, began)
			w.stopTasks(ctx, p)
			return o
		case h := <-health:
			if o, over := w.probed(ctx, p, h); over {
				o.ran = time.Since(began)
				return o
			}
		}
	}
}

// probed takes over a probe's verdict. An unhealthy instance is restarted as its policy says.
func (w *worker) probed(ctx context.Context, p *prepared, h verdict) (outcome, bool) {
	w.set(func(st *model.InstanceStatus) {
		if st.State == model.InstanceRunning {
			st.Health = h.health
			st.Message = ""
			if h.health != model.HealthHealthy {
				st.Message = h.output
			}
		}
	})
	if h.health != model.HealthUnhealthy || p.template.KeepEnded {
		return outcome{}, false
	}
	message := "unhealthy: " + h.output
	w.log.Info("instance is unhealthy", "output", h.output)
	w.stopTasks(ctx, p)
	return outcome{message: message}, true
}

// finish ends the instance on this node: what it used is freed, its logs stay, its status is final.
func (w *worker) finish(ctx context.Context, p *prepared, o outcome, because string) {
	if p != nil {
		w.stopTasks(ctx, p)
	}
	w.free(ctx)
	w.set(func(st *model.InstanceStatus) {
		st.State = model.InstanceFailed
		if o.clean || because != "" {
			st.State = model.InstanceCompleted
		}
		st.Health, st.Message, st.Finished = model.HealthNone, o.message, time.Now()
	})
	st, _ := w.reported()
	w.log.Info("instance ended", "state", st.State, "reason", o.message)
}
