package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/fake"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/overlay"
	"github.com/tutti-run/tutti/internal/wire"
)

func TestAnAssignmentBecomesARunningInstance(t *testing.T) {
	inWorld(t, func(w *world) {
		w.images.settings["app"] = image.Settings{
			Entrypoint: []string{"serve"}, Cmd: []string{"--fast"}, Env: []string{"A=image", "B=image"},
			User: "app", WorkingDir: "/srv", Volumes: []string{"/cache"},
		}
		as := w.assignment("i1", model.TaskSpec{
			Name: "app", Image: "app", Digest: "sha256:app", Env: []string{"B=task", "C=task"},
			Mounts: []model.Mount{
				{Type: model.MountVolume, Source: "v1", Target: "/data"},
				{Type: model.MountTmpfs, Target: "/tmp", SizeBytes: 1024},
				{Type: model.MountConfig, Source: "c1", Target: "/etc/app.conf"},
			},
		})
		as.Volumes = []*model.Volume{{Meta: model.Meta{ID: "v1", Name: "data"}}}
		as.Configs = map[string][]byte{"c1": []byte("a: b")}
		as.Template.ExtraHosts = []model.HostEntry{{Name: "db", Address: "10.0.0.9"}, {Name: "host", Address: "host-gateway"}}
		as.Template.DNS.Search = []string{"example.org"}
		as.Template.Sysctls = map[string]string{"net.core.somaxconn": "1024", "kernel.shm_rmid_forced": "1"}
		w.assign(as)
		st := w.wantState("i1", model.InstanceRunning)
		if !st.Ready || st.ReadySince.IsZero() || st.Health != model.HealthNone || st.Restarts != 0 || st.Started.IsZero() {
			t.Errorf("status is %+v, want it ready", st)
		}
		if got := w.states("i1"); got != "preparing starting running+" {
			t.Errorf("it went through %s", got)
		}
		if len(st.Tasks) != 1 || st.Tasks[0].RunID != "i1.app.1" || st.Tasks[0].State != "running" || st.Tasks[0].Image != "sha256:app" || st.Tasks[0].Run != 1 {
			t.Errorf("tasks are %+v", st.Tasks)
		}
		run := w.state.Started()[0]
		if !slices.Equal(run.Args, []string{"serve", "--fast"}) || run.User != "app" || run.WorkingDir != "/srv" || run.Hostname != "web-1" {
			t.Errorf("what is run is %+v, want what the image says", run)
		}
		for _, want := range []string{"A=image", "B=task", "C=task", "HOSTNAME=web-1"} {
			if !slices.Contains(run.Env, want) {
				t.Errorf("environment %v lacks %s", run.Env, want)
			}
		}
		if run.NetNS != "/netns/i1" || run.CgroupParent != "/tutti/i1" || run.Rootfs != "/rootfs/i1.app" {
			t.Errorf("it runs in %s, %s, %s", run.NetNS, run.CgroupParent, run.Rootfs)
		}
		attached := w.links.attached["i1"]
		if len(attached.Interfaces) != 1 || attached.Interfaces[0].IP.String() != "10.1.0.7" || len(attached.Sysctls) != 1 {
			t.Errorf("it is attached as %+v", attached)
		}
		content := map[string]string{}
		mounts := map[string]driver.Mount{}
		for _, m := range run.Mounts {
			mounts[m.Target] = m
			if data, err := os.ReadFile(m.Source); err == nil {
				content[m.Target] = string(data)
			}
		}
		for target, want := range map[string]string{
			"/etc/hosts":       "10.1.0.7\tweb-1\n",
			"/etc/hostname":    "web-1\n",
			"/etc/resolv.conf": "nameserver 169.254.1.1\nsearch example.org\noptions ndots:0\n",
		} {
			if !strings.HasSuffix(content[target], want) {
				t.Errorf("%s holds %q, want %q at its end", target, content[target], want)
			}
		}
		if !strings.Contains(content["/etc/hosts"], "10.0.0.9\tdb\n") || !strings.Contains(content["/etc/hosts"], ResolverAddress+"\thost\n") {
			t.Errorf("/etc/hosts holds %q", content["/etc/hosts"])
		}
		if mounts["/data"].Source != "/volumes/v1" || mounts["/cache"].Source != "/volumes/i1-app-1000" || mounts["/tmp"].Type != "tmpfs" {
			t.Errorf("mounts are %+v", mounts)
		}
		if m := mounts["/etc/app.conf"]; m.Source != "/secrets/i1/app.2" || !m.ReadOnly {
			t.Errorf("the configuration is mounted as %+v", m)
		}
		if want := []string{"fill v1 from /rootfs/i1.app/data", "fill i1-app-1000 from /rootfs/i1.app/cache"}; !slices.Equal(w.volumes.log, want) {
			t.Errorf("volumes were used so: %v, want %v", w.volumes.log, want)
		}
	})
}

func TestReadyComesWithTheProbe(t *testing.T) {
	inWorld(t, func(w *world) {
		var serves atomic.Bool
		w.state.Programs["check"] = func(p *fake.Process) int {
			if serves.Load() {
				return 0
			}
			fmt.Fprint(p.Stderr, "not yet")
			return 1
		}
		app := task("serve")
		app.Health = &model.Probe{Exec: []string{"check"}, Interval: 10 * time.Second, Retries: 3}
		w.assign(w.assignment("i1", app))
		time.Sleep(5 * time.Second) // asked many times by now, and none of it counts yet
		if st := w.wantState("i1", model.InstanceRunning); st.Ready || st.Health != model.HealthStarting || !strings.Contains(st.Message, "not yet") {
			t.Errorf("status is %+v, want it starting, with what the probe says", st)
		}
		serves.Store(true)
		took := w.until("it is ready", func() bool { return w.status("i1").Ready })
		if took > 2*time.Second {
			t.Errorf("it took %s to see that it serves", took)
		}
		if st := w.status("i1"); st.Health != model.HealthHealthy || st.Message != "" {
			t.Errorf("status is %+v, want it healthy", st)
		}
	})
}

func TestWhatIsUnhealthyIsRestartedInPlace(t *testing.T) {
	inWorld(t, func(w *world) {
		var healthy atomic.Bool
		healthy.Store(true)
		w.state.Programs["check"] = func(p *fake.Process) int {
			if healthy.Load() {
				return 0
			}
			fmt.Fprint(p.Stdout, "queue is stuck")
			return 1
		}
		app := task("serve")
		app.Health = &model.Probe{Exec: []string{"check"}, Interval: 10 * time.Second, Retries: 3}
		w.assign(w.assignment("i1", app))
		w.until("it is ready", func() bool { return w.status("i1").Ready })
		healthy.Store(false)
		took := w.untilState("i1", model.InstanceWaiting)
		if took < 20*time.Second || took > 40*time.Second {
			t.Errorf("it was given up after %s, want three failures at intervals of 10s", took)
		}
		st := w.status("i1")
		if st.Ready || !strings.Contains(st.Message, "unhealthy: queue is stuck") || st.Tasks[0].State != "exited" || st.Tasks[0].ExitCode != 0 {
			t.Errorf("status is %+v, want the reason, and that it was asked to stop", st)
		}
		healthy.Store(true)
		w.until("it is ready again", func() bool { return w.status("i1").Ready })
		if st := w.status("i1"); st.Restarts != 1 || st.Tasks[0].Run != 2 {
			t.Errorf("status is %+v, want its second run", st)
		}
		if got := w.states("i1"); !strings.Contains(got, "running/healthy+ running/unhealthy waiting starting running/starting running/healthy+") {
			t.Errorf("it went through %s", got)
		}
		w.wantRuns("i1.app.1", "i1.app.2")
	})
}

func TestProbesThatHangAreCutOff(t *testing.T) {
	inWorld(t, func(w *world) {
		w.state.Programs["check"] = func(p *fake.Process) int { <-p.Done; return 0 }
		app := task("serve")
		app.Health = &model.Probe{Exec: []string{"check"}, Interval: 10 * time.Second, Timeout: 2 * time.Second, Retries: 2}
		w.assign(w.assignment("i1", app))
		w.untilState("i1", model.InstanceWaiting)
		if st := w.status("i1"); !strings.Contains(st.Message, "longer than 2s") {
			t.Errorf("message is %q, want that the probe took too long", st.Message)
		}
	})
}

func TestAnImagesHealthCheckIsTheDefault(t *testing.T) {
	inWorld(t, func(w *world) {
		asked := atomic.Int32{}
		w.state.Programs["/bin/sh"] = func(p *fake.Process) int { asked.Add(1); return 0 }
		w.images.settings["app"] = image.Settings{Health: &model.Probe{Shell: "curl localhost", Interval: time.Second}}
		without := task("serve")
		without.NoHealth = true
		w.assign(w.assignment("i1", task("serve")), w.assignment("i2", without))
		w.until("it is ready", func() bool { return w.status("i1").Ready })
		if st := w.status("i1"); st.Health != model.HealthHealthy || asked.Load() == 0 {
			t.Errorf("status is %+v after %d probes", st, asked.Load())
		}
		if st := w.status("i2"); st.Health != model.HealthNone || !st.Ready {
			t.Errorf("one that wants no probes is %+v", st)
		}
	})
}

func TestRestartPolicies(t *testing.T) {
	for _, c := range []struct {
		name   string
		policy model.RestartPolicy
		code   string
		want   model.InstanceState
		runs   int
	}{
		{"never, clean", model.RestartPolicy{Condition: model.RestartNever}, "0", model.InstanceCompleted, 1},
		{"never, failing", model.RestartPolicy{Condition: model.RestartNever}, "3", model.InstanceFailed, 1},
		{"on failure, clean", model.RestartPolicy{Condition: model.RestartOnFailure}, "0", model.InstanceCompleted, 1},
		{"on failure, failing", model.RestartPolicy{Condition: model.RestartOnFailure, MaxAttempts: 2}, "3", model.InstanceFailed, 3},
		{"always, clean", model.RestartPolicy{Condition: model.RestartAlways, MaxAttempts: 4}, "0", model.InstanceCompleted, 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.policy = c.policy
				w.assign(w.assignment("i1", task("nap", "1s", c.code)))
				w.until("it has ended", func() bool { return w.status("i1").State.Final() })
				st := w.wantState("i1", c.want)
				if got := len(w.runs()); got != c.runs || st.Restarts != c.runs-1 {
					t.Errorf("it ran %d times and counts %d restarts, want %d runs", got, st.Restarts, c.runs)
				}
				if !strings.Contains(st.Message, "exited with code "+c.code) || fmt.Sprint(st.Tasks[0].ExitCode) != c.code || st.Finished.IsZero() {
					t.Errorf("status is %+v, want how it ended", st)
				}
				if w.images.mounted["i1.app"] || len(w.links.attached) != 0 {
					t.Errorf("what ended still holds %v, %v", w.images.mounted, w.links.attached)
				}
				if st := w.driverStatus("i1.app." + fmt.Sprint(c.runs)); st.State != driver.Exited {
					t.Errorf("its last run is %+v, want it kept for its log", st)
				}
			})
		})
	}
}

// gaps returns how long passed between the end of each run and the begin of the next; each is
// said when it is over.
func gaps(w *world, n int) (out []time.Duration) {
	for len(out) < n {
		w.untilState("i1", model.InstanceWaiting)
		out = append(out, w.until("it runs again", func() bool { return w.status("i1").State != model.InstanceWaiting }).Round(time.Second))
	}
	return out
}

func TestRestartsBackOff(t *testing.T) {
	inWorld(t, func(w *world) {
		w.policy.Delay = time.Second
		w.assign(w.assignment("i1", task("nap", "1s", "1")))
		want := []time.Duration{1, 2, 4, 8, 16, 32, 60, 60}
		for i, got := range gaps(w, len(want)) {
			if got != want[i]*time.Second {
				t.Errorf("pause %d is %s, want %ds", i+1, got, want[i])
			}
		}
	})
}

func TestALongRunForgives(t *testing.T) {
	inWorld(t, func(w *world) {
		w.policy = model.RestartPolicy{Condition: model.RestartAlways, Delay: time.Second, Window: time.Minute, MaxAttempts: 3}
		w.assign(w.assignment("i1", task("nap", "2m", "1")))
		for i, got := range gaps(w, 6) {
			if got != time.Second {
				t.Errorf("pause %d is %s, want the first one again", i+1, got)
			}
		}
	})
}

func TestADelayOverTheLimitIsKept(t *testing.T) {
	r := &restartCount{policy: model.RestartPolicy{Condition: model.RestartAlways, Delay: 5 * time.Minute}}
	for range 3 {
		if again, delay := r.next(outcome{}); !again || delay != 5*time.Minute {
			t.Errorf("next is %v after %s, want the policy's own delay", again, delay)
		}
	}
}

func TestWhatCanNeverStartFailsAtOnce(t *testing.T) {
	inWorld(t, func(w *world) {
		w.assign(w.assignment("i1", task("/missing")))
		st := w.wantState("i1", model.InstanceFailed)
		if !strings.Contains(st.Message, `"/missing" was not found`) || st.Tasks[0].ExitCode != 127 {
			t.Errorf("status is %+v, want it to name what is missing", st)
		}
		nothing := w.assignment("i2", task())
		w.assign(nothing)
		if st := w.wantState("i2", model.InstanceFailed); !strings.Contains(st.Message, "says what to run") {
			t.Errorf("message is %q", st.Message)
		}
		other := task("serve")
		other.Driver = "vm"
		w.assign(w.assignment("i3", other))
		if st := w.wantState("i3", model.InstanceFailed); !strings.Contains(st.Message, `no driver "vm"`) {
			t.Errorf("message is %q", st.Message)
		}
	})
}

func TestPreparationIsTriedAgain(t *testing.T) {
	inWorld(t, func(w *world) {
		w.images.set(errAway)
		w.assign(w.assignment("i1", task("serve")))
		if st := w.wantState("i1", model.InstancePreparing); !strings.Contains(st.Message, "away") {
			t.Errorf("message is %q", st.Message)
		}
		time.Sleep(2 * time.Second)
		w.images.set(nil)
		w.untilState("i1", model.InstanceRunning)

		w.images.set(errAway)
		w.assign(w.assignment("i2", task("serve")))
		w.untilState("i2", model.InstanceFailed)
		if st := w.status("i2"); !strings.Contains(st.Message, "away") {
			t.Errorf("message is %q", st.Message)
		}
		w.images.set(fault.New(fault.Invalid, "no such name"))
		w.assign(w.assignment("i3", task("serve")))
		w.wantState("i3", model.InstanceFailed) // at once
	})
}

func TestInitTasksComeFirstAndInOrder(t *testing.T) {
	inWorld(t, func(w *world) {
		as := w.assignment("i1", named("app", "serve"))
		as.Template.InitTasks = []model.TaskSpec{named("one", "nap", "5s", "0"), named("two", "nap", "3s", "0")}
		w.assign(as)
		if st := w.wantState("i1", model.InstanceStarting); st.Ready {
			t.Errorf("it is ready before it is initialized: %+v", st)
		}
		w.wantRuns("i1.one.1")
		if took := w.untilState("i1", model.InstanceRunning); took < 8*time.Second {
			t.Errorf("it ran after %s, want both init tasks to have ended", took)
		}
		w.wantRuns("i1.one.1", "i1.two.1", "i1.app.1")
	})
}

func TestAFailingInitTaskKeepsTheRestBack(t *testing.T) {
	inWorld(t, func(w *world) {
		w.policy = model.RestartPolicy{Condition: model.RestartOnFailure, MaxAttempts: 1}
		as := w.assignment("i1", named("app", "serve"))
		as.Template.InitTasks = []model.TaskSpec{named("one", "nap", "1s", "4"), named("two", "serve")}
		w.assign(as)
		w.untilState("i1", model.InstanceFailed)
		if st := w.status("i1"); !strings.Contains(st.Message, "init one: exited with code 4") {
			t.Errorf("message is %q", st.Message)
		}
		w.wantRuns("i1.one.1", "i1.one.2")
	})
}

func TestTasksOfAnInstanceEndTogether(t *testing.T) {
	inWorld(t, func(w *world) {
		w.policy = model.RestartPolicy{Condition: model.RestartNever}
		w.assign(w.assignment("i1", named("app", "serve"), named("helper", "nap", "5s", "9")))
		w.wantState("i1", model.InstanceRunning)
		w.untilState("i1", model.InstanceFailed)
		st := w.status("i1")
		if st.Message != "helper: exited with code 9" || st.Tasks[0].State != "exited" || st.Tasks[0].ExitCode != 0 || st.Tasks[1].ExitCode != 9 {
			t.Errorf("status is %+v, want that the helper ended, and the other was asked to", st)
		}
	})
}

func TestDrainingRunsOnAndStoppingAsks(t *testing.T) {
	inWorld(t, func(w *world) {
		as := w.assignment("i1", task("serve"))
		w.assign(as)
		w.wantState("i1", model.InstanceRunning)
		w.want(as, model.DesiredDrain)
		time.Sleep(time.Minute)
		if st := w.wantState("i1", model.InstanceRunning); !st.Ready {
			t.Errorf("status is %+v, want it to go on", st)
		}
		w.want(as, model.DesiredStop)
		st := w.wantState("i1", model.InstanceCompleted) // without time having passed
		if st.Ready || st.Tasks[0].ExitCode != 0 || st.Message != "stopped" {
			t.Errorf("status is %+v", st)
		}
		if got := w.states("i1"); !strings.HasSuffix(got, "running+ stopping completed") {
			t.Errorf("it went through %s", got)
		}
		if log := w.logs("i1", driver.LogOptions{Tail: -1}); log != "serving\nsignal 15\n" {
			t.Errorf("its log holds %q, want it kept", log)
		}
		w.wantRuns("i1.app.1")
	})
}

func (w *world) logs(id string, o driver.LogOptions) string {
	w.Helper()
	var b strings.Builder
	if err := w.agent.Logs(context.Background(), id, "", o, func(e driver.LogEntry) error { b.Write(e.Line); return nil }); err != nil {
		w.Fatalf("logs of %s: %v", id, err)
	}
	return b.String()
}

func TestWhatDoesNotListenIsKilledAfterTheGrace(t *testing.T) {
	inWorld(t, func(w *world) {
		as := w.assignment("i1", named("app", "stubborn"), named("polite", "serve"))
		as.Template.StopGrace = 7 * time.Second
		w.assign(as)
		w.want(as, model.DesiredStop)
		w.wantState("i1", model.InstanceStopping)
		if took := w.untilState("i1", model.InstanceCompleted); took.Round(time.Second) != 7*time.Second {
			t.Errorf("it was killed after %s, want its grace of 7s", took)
		}
		if st := w.status("i1"); st.Tasks[0].ExitCode != 137 || st.Tasks[1].ExitCode != 0 {
			t.Errorf("tasks are %+v", st.Tasks)
		}
		none := w.assignment("i2", task("serve"))
		none.Template.StopGrace = 0
		w.assign(none)
		w.want(none, model.DesiredStop)
		if st := w.wantState("i2", model.InstanceCompleted); st.Tasks[0].ExitCode != 137 {
			t.Errorf("without grace, the task is %+v, want it killed at once", st.Tasks[0])
		}
	})
}

func TestStopSignals(t *testing.T) {
	for _, c := range []struct {
		task, image string
		want        int
	}{
		{"", "", 15}, {"SIGQUIT", "", 3}, {"quit", "", 3}, {"", "SIGINT", 2}, {"1", "SIGINT", 1},
		{"SIGRTMIN+3", "", 37}, {"", "RTMAX-1", 63}, {"SIGRTMIN+99", "", 15}, {"nonsense", "", 15},
	} {
		got := stopSignal(&model.TaskSpec{StopSignal: c.task}, &image.Info{Config: image.Settings{StopSignal: c.image}})
		if got != c.want {
			t.Errorf("task %q, image %q: signal %d, want %d", c.task, c.image, got, c.want)
		}
	}
	inWorld(t, func(w *world) {
		w.images.settings["app"] = image.Settings{StopSignal: "SIGQUIT"}
		as := w.assignment("i1", task("quit"))
		w.assign(as)
		w.want(as, model.DesiredStop)
		if log := w.logs("i1", driver.LogOptions{Tail: 1}); log != "signal 3\n" {
			t.Errorf("the task was stopped by %q, want the signal that its image names", log)
		}
	})
}

func TestStoppingEndsEveryStage(t *testing.T) {
	stages := map[string]func(w *world) *wire.Assignment{
		"preparing": func(w *world) *wire.Assignment {
			w.images.set(errAway)
			return w.assignment("i1", task("serve"))
		},
		"starting": func(w *world) *wire.Assignment {
			as := w.assignment("i1", task("serve"))
			as.Template.InitTasks = []model.TaskSpec{named("one", "serve")}
			return as
		},
		"waiting": func(w *world) *wire.Assignment {
			w.policy.Delay = time.Hour
			return w.assignment("i1", task("nap", "1ms", "1"))
		},
	}
	for stage, prepare := range stages {
		t.Run(stage, func(t *testing.T) {
			inWorld(t, func(w *world) {
				as := prepare(w)
				w.assign(as)
				time.Sleep(10 * time.Millisecond)
				w.wantState("i1", model.InstanceState(stage))
				w.want(as, model.DesiredStop)
				w.until("it has ended", func() bool { return w.status("i1").State == model.InstanceCompleted })
				if len(w.links.attached) != 0 || len(w.images.mounted) != 0 {
					t.Errorf("it still holds %v, %v", w.links.attached, w.images.mounted)
				}
			})
		})
	}
}

func TestRemovalLeavesNothing(t *testing.T) {
	inWorld(t, func(w *world) {
		as := w.assignment("i1", task("serve"))
		w.assign(as, w.assignment("i2", task("serve")))
		w.agent.Assign(&wire.Assign{Remove: []string{"i1", "unknown"}})
		w.settle()
		if got := w.agent.Instances(); !slices.Equal(got, []string{"i2"}) {
			t.Errorf("instances are %v, want only the other", got)
		}
		if st := w.driverStatus("i1.app.1"); st.ID != "" {
			t.Errorf("its run is still known: %+v", st)
		}
		if !slices.Equal(w.session.forgot, []string{"i1"}) || !slices.Contains(w.volumes.log, "remove those of i1") {
			t.Errorf("forgotten are %v, volumes did %v", w.session.forgot, w.volumes.log)
		}
		if w.links.attached["i1"].Instance != "" || w.images.mounted["i1.app"] {
			t.Error("it still has its links or its root file system")
		}
		matches, err := filepath.Glob(filepath.Join(w.dir, "agent", "*", "i1*"))
		if err != nil || len(matches) != 0 {
			t.Errorf("files are left: %v, %v", matches, err)
		}
		if !strings.Contains(w.states("i1"), "stopping completed") {
			t.Errorf("it went through %s, want that it was asked to stop first", w.states("i1"))
		}
		_, err = w.agent.Exec(context.Background(), "i1", "", driver.ExecSpec{Args: []string{"serve"}}, driver.Streams{})
		if !fault.Is(err, fault.NotFound) {
			t.Errorf("exec in what was removed gave %v", err)
		}
	})
}

func TestAFullAssignmentDropsTheRest(t *testing.T) {
	inWorld(t, func(w *world) {
		one, two := w.assignment("i1", task("serve")), w.assignment("i2", task("serve"))
		w.assign(one, two)
		w.assign(w.assignment("i3", task("serve"))) // a difference: nothing else changes
		w.wantRuns("i1.app.1", "i2.app.1", "i3.app.1")
		w.agent.Assign(&wire.Assign{Full: true, Put: []wire.Assignment{*one}})
		w.settle()
		if got := w.agent.Instances(); !slices.Equal(got, []string{"i1"}) {
			t.Errorf("instances are %v, want only what the full assignment names", got)
		}
		w.wantState("i1", model.InstanceRunning)
		w.wantRuns("i1.app.1", "i2.app.1", "i3.app.1")
		w.agent.Assign(&wire.Assign{Full: true})
		w.settle()
		if got := w.agent.Instances(); len(got) != 0 {
			t.Errorf("instances are %v, want none", got)
		}
	})
}

func TestANewAgentAdoptsWhatRuns(t *testing.T) {
	inWorld(t, func(w *world) {
		w.policy.Delay = time.Second
		app := task("serve")
		app.Health = &model.Probe{Exec: []string{"/prog", "exit", "0"}, Interval: 10 * time.Second}
		as := w.assignment("i1", app)
		w.assign(as)
		w.until("it is ready", func() bool { return w.status("i1").Ready })
		if err := fake.New(w.state).Kill(w.Context(), "i1.app.1"); err != nil {
			t.Fatal(err)
		}
		w.until("it is ready again", func() bool { st := w.status("i1"); return st.Ready && st.Restarts == 1 })
		before := w.status("i1")
		w.agent.Assign(&wire.Assign{Revision: 77})
		w.end()
		time.Sleep(time.Hour)
		hosts := filepath.Join(w.dir, "run", "files", "i1", "hosts")
		if err := os.WriteFile(hosts, []byte("changed by the task"), 0o644); err != nil {
			t.Fatal(err)
		}
		w.start()
		time.Sleep(time.Minute)
		st := w.wantState("i1", model.InstanceRunning)
		if !st.Ready || st.Restarts != 1 || !st.ReadySince.Equal(before.ReadySince) || !st.Started.Equal(before.Started) || st.Tasks[0].Run != 2 {
			t.Errorf("status is %+v, want it as before: %+v", st, before)
		}
		if got := w.states("i1"); got != "running/healthy+" {
			t.Errorf("for the new agent it went through %s, want that it was ready all the time", got)
		}
		if got := w.agent.Statuses()["i1"]; !got.Ready {
			t.Errorf("a new session is told %+v", got)
		}
		w.wantRuns("i1.app.1", "i1.app.2")
		if w.agent.Revision() != 77 {
			t.Errorf("the agent knows of revision %d, want 77", w.agent.Revision())
		}
		if data, err := os.ReadFile(hosts); err != nil || string(data) != "changed by the task" {
			t.Errorf("a file of the running task was replaced by %q, %v", data, err)
		}
		w.want(as, model.DesiredStop)
		w.wantState("i1", model.InstanceCompleted)
		w.end()
		w.start()
		if st := w.wantState("i1", model.InstanceCompleted); st.Restarts != 1 {
			t.Errorf("what had ended is %+v for the next agent", st)
		}
		w.wantRuns("i1.app.1", "i1.app.2")
		w.agent.Assign(&wire.Assign{Remove: []string{"i1"}})
		w.settle()
		if len(w.agent.Instances()) != 0 || w.driverStatus("i1.app.2").ID != "" {
			t.Error("what had ended before cannot be removed")
		}
	})
}

func TestWhatEndedMeanwhileIsReported(t *testing.T) {
	inWorld(t, func(w *world) {
		w.policy = model.RestartPolicy{Condition: model.RestartNever}
		w.assign(w.assignment("i1", task("nap", "30s", "5")), w.assignment("i2", named("app", "serve"), named("helper", "nap", "40s", "6")))
		w.end()
		time.Sleep(time.Minute)
		w.start()
		st := w.wantState("i1", model.InstanceFailed)
		if st.Tasks[0].ExitCode != 5 || st.Message != "exited with code 5" || st.Ready {
			t.Errorf("status is %+v, want the exit code", st)
		}
		if got := w.states("i1"); got != "running+ failed" { // the first is what is remembered
			t.Errorf("for the new agent it went through %s", got)
		}
		if st := w.wantState("i2", model.InstanceFailed); st.Message != "helper: exited with code 6" || st.Tasks[0].ExitCode != 0 {
			t.Errorf("status is %+v, want the other task ended, too", st)
		}
		w.wantRuns("i1.app.1", "i2.app.1", "i2.helper.1")
	})
}

func TestRestartsAreCountedOverAgents(t *testing.T) {
	inWorld(t, func(w *world) {
		w.policy = model.RestartPolicy{Condition: model.RestartAlways, Delay: 4 * time.Second, MaxAttempts: 3}
		w.assign(w.assignment("i1", task("nap", "1s", "1")))
		w.until("it was restarted twice", func() bool { return w.status("i1").Restarts == 2 })
		w.end()
		time.Sleep(time.Minute)
		w.start()
		if st := w.wantState("i1", model.InstanceWaiting); !strings.HasSuffix(st.Message, "restarting in 16s") {
			t.Errorf("message is %q, want the third pause", st.Message)
		}
		// Once more while it waits: the end that is known already counts no second time.
		w.end()
		w.start()
		w.untilState("i1", model.InstanceFailed)
		if st := w.status("i1"); st.Restarts != 3 || len(w.runs()) != 4 {
			t.Errorf("after %d runs the status is %+v, want three restarts as the policy allows", len(w.runs()), st)
		}
	})
}

// The run itself says how long it was, not how long an agent saw it.
func TestALongRunForgivesOverAgents(t *testing.T) {
	inWorld(t, func(w *world) {
		w.policy = model.RestartPolicy{Condition: model.RestartAlways, Delay: 4 * time.Second, Window: time.Minute}
		long := atomic.Bool{}
		w.state.Programs["work"] = func(p *fake.Process) int {
			d := time.Second
			if long.Load() {
				d = 10 * time.Minute
			}
			select {
			case <-time.After(d):
			case <-p.Done:
			}
			return 1
		}
		w.assign(w.assignment("i1", task("work")))
		w.until("it was restarted", func() bool { return w.status("i1").Restarts == 2 })
		long.Store(true)
		w.until("it was restarted again", func() bool { return w.status("i1").Restarts == 3 })
		w.end()
		time.Sleep(time.Hour)
		w.start()
		if st := w.wantState("i1", model.InstanceWaiting); !strings.HasSuffix(st.Message, "restarting in 4s") {
			t.Errorf("message is %q, want the first pause after a run of ten minutes", st.Message)
		}
	})
}

func TestAnInitTaskIsAdopted(t *testing.T) {
	inWorld(t, func(w *world) {
		as := w.assignment("i1", named("app", "serve"))
		as.Template.InitTasks = []model.TaskSpec{named("one", "nap", "1s", "0"), named("two", "nap", "1m", "0"), named("three", "nap", "1s", "0")}
		w.assign(as)
		time.Sleep(10 * time.Second)
		w.wantRuns("i1.one.1", "i1.two.1")
		w.end()
		w.start()
		w.untilState("i1", model.InstanceRunning)
		w.wantRuns("i1.one.1", "i1.two.1", "i1.three.1", "i1.app.1")
	})
}

func TestWhatWasToStopWhileTheAgentWasAwayIsAskedTo(t *testing.T) {
	inWorld(t, func(w *world) {
		w.images.settings["app"] = image.Settings{StopSignal: "SIGQUIT"}
		quit := w.assignment("i1", task("quit"))
		serve := w.assignment("i2", task("serve"))
		w.assign(quit, serve)
		w.end()
		// The cluster's wish arrived, and the agent was killed before it could act.
		stop := *quit
		stop.Instance = quit.Instance.Clone()
		stop.Instance.Desired = model.DesiredStop
		if err := saveAssignment(filepath.Join(w.dir, "agent", "assignments"), &stop); err != nil {
			t.Fatal(err)
		}
		w.start()
		if st := w.wantState("i1", model.InstanceCompleted); st.Tasks[0].ExitCode != 0 {
			t.Errorf("status is %+v, want that it ended by itself", st)
		}
		if log := w.logs("i1", driver.LogOptions{Tail: 1}); log != "signal 3\n" {
			t.Errorf("it was stopped by %q, want its image's signal", log)
		}

		// Another can be told to stop before the new agent could take it over.
		w.end()
		w.images.set(errAway)
		w.start()
		time.Sleep(10 * time.Minute)
		if st := w.wantState("i2", model.InstanceRunning); !st.Ready {
			t.Errorf("status is %+v, want what runs left alone although it cannot be taken over", st)
		}
		w.want(serve, model.DesiredStop)
		w.until("it has ended", func() bool { return w.status("i2").State == model.InstanceCompleted })
		if log := w.logs("i2", driver.LogOptions{Tail: 1}); log != "signal 15\n" {
			t.Errorf("it was stopped by %q", log)
		}
		w.wantRuns("i1.app.1", "i2.app.1")
	})
}

func TestSecretsAreNeverOnDisk(t *testing.T) {
	inWorld(t, func(w *world) {
		const hidden = "correct horse battery staple"
		app := task("serve")
		app.Mounts = []model.Mount{{Type: model.MountSecret, Source: "s1", Target: "/run/secrets/key", UID: "1000", Mode: 0o400}}
		as := w.assignment("i1", app)
		as.Secrets = map[string][]byte{"s1": []byte(hidden)}
		w.assign(as)
		w.wantState("i1", model.InstanceRunning)
		files := w.secrets.files["i1"]
		if len(files) != 1 || string(files[0].Data) != hidden || files[0].UID != 1000 || files[0].Mode != 0o400 {
			t.Errorf("files in memory are %+v", files)
		}
		if found := w.onDisk(hidden); len(found) != 0 {
			t.Errorf("the secret is on disk: %v", found)
		}
		if found := w.onDisk("s1"); len(found) == 0 {
			t.Error("the search finds nothing at all; it should find the assignment")
		}
		mount := w.state.Started()[0].Mounts
		if m := mount[len(mount)-1]; m.Source != "/secrets/i1/app.0" || m.Target != "/run/secrets/key" || !m.ReadOnly {
			t.Errorf("the secret is mounted as %+v", m)
		}
		// A new agent was told none, and needs none, as long as the host has them.
		w.end()
		w.start()
		w.wantState("i1", model.InstanceRunning)
		w.wantRuns("i1.app.1")
		w.want(as, model.DesiredStop)
		w.wantState("i1", model.InstanceCompleted)
		if len(w.secrets.files) != 0 {
			t.Error("secrets of what ended are kept in memory")
		}
		// Without them, an instance waits to be told.
		without := w.assignment("i2", app)
		w.assign(without)
		if st := w.wantState("i2", model.InstancePreparing); !strings.Contains(st.Message, "has not reached node node-1") {
			t.Errorf("message is %q", st.Message)
		}
		without.Secrets = as.Secrets
		w.assign(without)
		w.untilState("i2", model.InstanceRunning)
	})
}

func TestDamagedAssignmentsDoNotKeepTheNodeDown(t *testing.T) {
	inWorld(t, func(w *world) {
		w.assign(w.assignment("i1", task("serve")), w.assignment("i2", task("serve")), w.assignment("i3", task("serve")))
		w.end()
		dir := filepath.Join(w.dir, "agent", "assignments")
		for name, content := range map[string]string{"i2.cbor": "", "i3.cbor": "\xa0", "i4.status": "x", "i5.cbor.new": "x"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		w.start()
		w.wantState("i1", model.InstanceRunning)
		if got := w.agent.Instances(); !slices.Equal(got, []string{"i1"}) {
			t.Errorf("instances are %v, want the one that is whole", got)
		}
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 2 {
			t.Errorf("kept files are %v, %v; want those of the whole one", entries, err)
		}
		if w.driverStatus("i2.app.1").ID != "" || w.images.mounted["i2.app"] {
			t.Error("what belongs to nothing was left")
		}
		w.assign(w.assignment("i2", task("serve"))) // the cluster tells it again
		w.wantState("i2", model.InstanceRunning)
	})
}

func TestLeftOversAreSwept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		d := fake.New(w.state)
		for _, id := range []string{"gone.app.1", "strange"} {
			if err := d.Start(t.Context(), driver.Task{ID: id, Args: []string{"serve"}}); err != nil {
				t.Fatal(err)
			}
		}
		w.links.attached["gone"] = overlay.Attachment{Instance: "gone"}
		w.images.mounted["gone.app"] = true
		w.start()
		defer w.state.End()
		defer func() { w.end() }()
		if list, err := d.List(t.Context()); err != nil || len(list) != 0 {
			t.Errorf("runs are %v, %v; want none", list, err)
		}
		if len(w.links.attached)+len(w.images.mounted) != 0 {
			t.Errorf("left are %v, %v", w.links.attached, w.images.mounted)
		}
	})
}

// blind is a driver that cannot say what runs.
type blind struct{ driver.Driver }

func (blind) List(context.Context) ([]driver.Status, error) { return nil, errAway }

func TestAnAgentThatCannotSeeWhatRunsDoesNotBegin(t *testing.T) {
	w := newWorld(t)
	a, err := New(Deps{DataDir: w.dir, Drivers: map[string]driver.Driver{"oci": blind{}}, Links: w.links, Images: w.images, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Run(t.Context(), &recorder{}); !errors.Is(err, errAway) {
		t.Fatalf("the agent ended with %v, want the driver's error", err)
	}
	a.Assign(&wire.Assign{Put: []wire.Assignment{*w.assignment("i1", task("serve"))}}) // must not wait for ever
	if got := a.Instances(); len(got) != 0 {
		t.Errorf("instances are %v, want none", got)
	}
}

// Log reading goes over the runs of a task as if they were one.
func TestLogsAreOfAllKeptRuns(t *testing.T) {
	inWorld(t, func(w *world) {
		var n atomic.Int32
		w.state.Programs["work"] = func(p *fake.Process) int {
			run := n.Add(1)
			fmt.Fprintf(p.Stdout, "%d a\n%d b\n", run, run)
			select {
			case <-time.After(time.Second):
			case <-p.Done:
			}
			return 1
		}
		w.policy = model.RestartPolicy{Condition: model.RestartAlways, Delay: time.Second, MaxAttempts: 4}
		w.assign(w.assignment("i1", task("work")))
		var followed, late strings.Builder
		var reading sync.WaitGroup
		follow := func(to *strings.Builder, tail int) {
			reading.Go(func() {
				err := w.agent.Logs(context.Background(), "i1", "app", driver.LogOptions{Follow: true, Tail: tail}, func(e driver.LogEntry) error {
					to.Write(e.Line)
					return nil
				})
				if err != nil {
					t.Errorf("following: %v", err)
				}
			})
		}
		follow(&followed, -1)
		w.until("it was restarted", func() bool { return w.status("i1").Restarts == 1 })
		follow(&late, 3)
		w.untilState("i1", model.InstanceFailed)
		reading.Wait()
		all := "1 a\n1 b\n2 a\n2 b\n3 a\n3 b\n4 a\n4 b\n5 a\n5 b\n"
		if followed.String() != all {
			t.Errorf("a follower saw %q, want all runs", followed.String())
		}
		if want := all[strings.Index(all, "1 b"):]; late.String() != want {
			t.Errorf("a follower of the last three lines saw %q, want %q", late.String(), want)
		}
		for tail, want := range map[int]string{
			-1: "3 a\n3 b\n4 a\n4 b\n5 a\n5 b\n", // three runs are kept
			0:  "", 1: "5 b\n", 2: "5 a\n5 b\n", 3: "4 b\n5 a\n5 b\n", 100: "3 a\n3 b\n4 a\n4 b\n5 a\n5 b\n",
		} {
			if got := w.logs("i1", driver.LogOptions{Tail: tail}); got != want {
				t.Errorf("the last %d lines are %q, want %q", tail, got, want)
			}
		}
		err := w.agent.Logs(w.Context(), "i1", "", driver.LogOptions{Tail: -1}, func(driver.LogEntry) error { return errStop })
		if !errors.Is(err, errStop) {
			t.Errorf("a reader that fails gets %v", err)
		}
		if err := w.agent.Logs(w.Context(), "i1", "other", driver.LogOptions{}, nil); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "it has app") {
			t.Errorf("a task that does not exist gives %v", err)
		}
	})
}

func TestExecAndStatsReachTheLatestRun(t *testing.T) {
	inWorld(t, func(w *world) {
		w.assign(w.assignment("i1", named("app", "serve"), named("helper", "serve")))
		var out strings.Builder
		code, err := w.agent.Exec(w.Context(), "i1", "helper", driver.ExecSpec{Args: []string{"/prog", "lines", "1", "7"}}, driver.Streams{Stdout: &out})
		if err != nil || code != 7 || out.String() != "0\n" {
			t.Errorf("exec gave %d, %q, %v", code, out.String(), err)
		}
		if st, err := w.agent.Stats(w.Context(), "i1", ""); err != nil || st.Pids != 1 {
			t.Errorf("usage is %+v, %v", st, err)
		}
		if _, err := w.agent.Stats(w.Context(), "unknown", ""); !fault.Is(err, fault.NotFound) {
			t.Errorf("usage of an unknown instance gives %v", err)
		}
		w.images.set(errAway)
		w.assign(w.assignment("i2", task("serve")))
		if _, err := w.agent.Exec(w.Context(), "i2", "", driver.ExecSpec{Args: []string{"x"}}, driver.Streams{}); !fault.Is(err, fault.Unavailable) {
			t.Errorf("exec in what was not started yet gives %v", err)
		}
	})
}

func TestAPausedInstanceIsLeftAloneUntilItGoesOn(t *testing.T) {
	inWorld(t, func(w *world) {
		w.state.Programs["check"] = func(p *fake.Process) int { return 0 }
		app := named("app", "serve")
		app.Health = &model.Probe{Exec: []string{"check"}, Interval: 5 * time.Second, Retries: 2}
		w.assign(w.assignment("i1", app, named("helper", "serve")))
		w.until("it is ready", func() bool { return w.status("i1").Ready })
		if err := w.agent.Pause(w.Context(), "i1", "", true); err != nil {
			w.Fatal(err)
		}
		if st := w.wantState("i1", model.InstanceRunning); st.Ready || st.Tasks[0].State != "paused" || st.Tasks[1].State != "paused" {
			w.Errorf("status is %+v, want both tasks paused, and no connections for them", st)
		}
		if err := w.agent.Pause(w.Context(), "i1", "", true); err != nil {
			w.Errorf("pausing again gave %v", err)
		}
		time.Sleep(time.Minute) // a probe of it would fail
		if st := w.wantState("i1", model.InstanceRunning); st.Restarts != 0 {
			w.Errorf("status is %+v, want that it waits", st)
		}
		if err := w.agent.Pause(w.Context(), "i1", "", false); err != nil {
			w.Fatal(err)
		}
		if st := w.status("i1"); !st.Ready || st.Tasks[0].State != "running" {
			w.Errorf("status is %+v, want it back", st)
		}
		if err := w.agent.Pause(w.Context(), "i1", "app", false); !fault.Is(err, fault.Conflict) {
			w.Errorf("resuming what runs gave %v", err)
		}
		// One that is paused hears its stop signal all the same.
		if err := w.agent.Pause(w.Context(), "i1", "app", true); err != nil {
			w.Fatal(err)
		}
		w.agent.Assign(&wire.Assign{Remove: []string{"i1"}})
		took := w.until("it is gone", func() bool { return len(w.agent.Instances()) == 0 })
		if took > time.Second {
			w.Errorf("it took %s to stop", took)
		}
	})
}

// part is a part of the network.
type part struct {
	mu     sync.Mutex
	fail   error
	synced []uint64
	kept   int
}

func (p *part) Sync(_ context.Context, n *wire.Network) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.synced = append(p.synced, n.Revision)
	return p.fail
}

func (p *part) Keep(context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kept++
	return p.fail
}

func (p *part) set(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fail = err
}

func TestTheNetworkIsPutInForceAndSaidSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		one, two := &part{}, &part{fail: errAway}
		w.network = []NetworkState{one, two}
		w.start()
		defer w.state.End()
		defer func() { w.end() }()
		time.Sleep(time.Minute)
		w.settle()
		if one.kept != 0 {
			t.Error("what is not in force yet was kept up")
		}
		w.agent.SetNetwork(&wire.Network{Revision: 5})
		w.settle()
		if len(w.session.applied) != 0 || !slices.Equal(one.synced, []uint64{5}) {
			t.Errorf("in force is said to be %v after %v", w.session.applied, one.synced)
		}
		w.agent.networkUnchanged(6)
		two.set(nil)
		time.Sleep(time.Second)
		w.settle()
		if !slices.Equal(w.session.applied, []uint64{6}) {
			t.Errorf("in force is said to be %v, want 6", w.session.applied)
		}
		w.agent.networkUnchanged(8)
		w.agent.SetNetwork(&wire.Network{Revision: 9})
		w.settle()
		if !slices.Equal(w.session.applied, []uint64{6, 8, 9}) {
			t.Errorf("in force is said to be %v", w.session.applied)
		}
		time.Sleep(time.Minute)
		w.settle()
		if one.kept == 0 || two.kept == 0 {
			t.Error("the parts were not kept up")
		}
	})
}

func TestAnInstanceWaitsForTheNetworkToKnowIt(t *testing.T) {
	inWorld(t, func(w *world) {
		w.agent.SetNetwork(&wire.Network{Revision: 5})
		w.settle()
		w.assign(w.assignment("i1", task("serve")))
		w.wantState("i1", model.InstancePreparing)
		w.agent.SetNetwork(&wire.Network{Revision: 6, Instances: []wire.NetworkInstance{{ID: "i1"}}})
		w.settle()
		w.wantState("i1", model.InstancePreparing) // it is known by other addresses than it has
		w.agent.SetNetwork(&wire.Network{Revision: 7, Instances: []wire.NetworkInstance{{ID: "i1", Addresses: []model.Address{{Network: "net", IP: "10.1.0.7"}}}}})
		w.settle()
		w.wantState("i1", model.InstanceRunning)
		w.assign(w.assignment("i2", task("serve")))
		if took := w.untilState("i2", model.InstanceRunning); took.Round(time.Second) != networkPatience {
			t.Errorf("it was started after %s, want that it does not wait for ever", took)
		}
	})
}

func TestMountsAreCheckedOnTheHost(t *testing.T) {
	inWorld(t, func(w *world) {
		w.volumes.root = t.TempDir()
		missing := filepath.Join(t.TempDir(), "deep", "dir")
		bind := task("serve")
		bind.Mounts = []model.Mount{{Type: model.MountBind, Source: missing, Target: "/x"}}
		w.assign(w.assignment("i1", bind))
		if st := w.wantState("i1", model.InstanceFailed); !strings.Contains(st.Message, missing+" does not exist on node node-1") {
			t.Errorf("message is %q", st.Message)
		}
		bind.Mounts[0].CreateHostPath = true
		w.assign(w.assignment("i2", bind))
		w.wantState("i2", model.InstanceRunning)
		if st, err := os.Stat(missing); err != nil || !st.IsDir() {
			t.Errorf("the bind source was not made: %v", err)
		}

		sub := func(id, path string) {
			app := task("serve")
			app.Mounts = []model.Mount{{Type: model.MountVolume, Source: "v1", Target: "/x", SubPath: path, NoCopy: true}}
			as := w.assignment(id, app)
			as.Volumes = []*model.Volume{{Meta: model.Meta{ID: "v1", Name: "v"}}}
			w.assign(as)
		}
		inside := filepath.Join(w.volumes.root, "v1")
		for id, c := range map[string]struct{ path, want string }{
			"s1": {"a/b", inside + "/a/b"}, "s2": {"../../etc", inside + "/etc"}, "s3": {"/", inside},
		} {
			sub(id, c.path)
			w.wantState(id, model.InstanceRunning)
			started := w.state.Started()
			mounts := started[len(started)-1].Mounts
			if got := mounts[len(mounts)-1].Source; got != c.want {
				t.Errorf("sub-path %q is mounted from %s, want %s", c.path, got, c.want)
			}
		}
		if err := os.Symlink("/etc", filepath.Join(inside, "link")); err != nil {
			t.Fatal(err)
		}
		sub("s4", "link/cron.d")
		time.Sleep(time.Minute)
		if st := w.status("s4"); st.State == model.InstanceRunning || !strings.Contains(st.Message, "sub-path") {
			t.Errorf("a sub-path that leads out of its volume gives %+v", st)
		}
	})
}

func TestHostNetwork(t *testing.T) {
	inWorld(t, func(w *world) {
		as := w.assignment("i1", task("serve"))
		as.Template.HostNetwork = true
		as.Template.DNS.Servers = []string{"192.0.2.53"}
		w.assign(as)
		w.wantState("i1", model.InstanceRunning)
		if len(w.links.attached) != 0 || w.state.Started()[0].NetNS != "" {
			t.Error("it was given a network of its own")
		}
		data, err := os.ReadFile(filepath.Join(w.dir, "run", "files", "i1", "resolv.conf"))
		if err != nil || string(data) != "nameserver 192.0.2.53\n" {
			t.Errorf("its resolver file holds %q, %v", data, err)
		}
	})
}

// Probes through the network are tried with a real one, outside of a bubble.
func TestNetworkProbes(t *testing.T) {
	status := atomic.Int32{}
	status.Store(http.StatusOK)
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" {
			rw.WriteHeader(http.StatusNotFound)
			return
		}
		rw.WriteHeader(int(status.Load()))
	}))
	defer srv.Close()
	port := srv.Listener.Addr().(*net.TCPAddr).Port
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closedPort := closed.Addr().(*net.TCPAddr).Port
	closed.Close()
	w := &worker{}
	host := &prepared{template: &model.Template{HostNetwork: true}}
	probe := func(p *prepared, probe model.Probe) error {
		_, err := w.probe(t.Context(), p, &model.TaskSpec{}, "", &probe, time.Minute)
		return err
	}
	get := model.Probe{HTTP: &model.HTTPProbe{Port: port, Path: "healthz"}}
	if err := probe(host, get); err != nil {
		t.Errorf("GET of what serves: %v", err)
	}
	status.Store(http.StatusServiceUnavailable)
	if err := probe(host, get); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("GET of what fails: %v", err)
	}
	if err := probe(host, model.Probe{TCPPort: port}); err != nil {
		t.Errorf("connect to what listens: %v", err)
	}
	if err := probe(host, model.Probe{TCPPort: closedPort}); err == nil {
		t.Error("connect to what does not listen was a pass")
	}
	if err := probe(&prepared{template: &model.Template{NoNetwork: true}}, get); err == nil {
		t.Error("one without a network was asked through the host's")
	}
	if err := probe(host, model.Probe{}); err == nil {
		t.Error("a probe that does nothing was a pass")
	}
}

func TestFailuresCountOncePerInterval(t *testing.T) {
	begin := time.Now()
	p := model.Probe{Interval: 10 * time.Second, Retries: 2, StartPeriod: 30 * time.Second}
	type step struct {
		at   int // seconds
		ok   bool
		want model.Health
	}
	for name, steps := range map[string][]step{
		"failures in the start period do not count": {
			{1, false, model.HealthStarting}, {15, false, model.HealthStarting}, {29, false, model.HealthStarting},
			{35, false, model.HealthStarting}, {45, false, model.HealthStarting}, {56, false, model.HealthUnhealthy},
		},
		"a success ends it": {
			{1, true, model.HealthHealthy}, {12, false, model.HealthHealthy}, {23, false, model.HealthUnhealthy}, {33, true, model.HealthHealthy},
		},
		"many in one interval are one": {
			{1, true, model.HealthHealthy}, {41, false, model.HealthHealthy}, {42, false, model.HealthHealthy}, {43, false, model.HealthHealthy},
			{52, false, model.HealthUnhealthy},
		},
		"a success in between starts anew": {
			{41, false, model.HealthStarting}, {42, true, model.HealthHealthy}, {52, false, model.HealthHealthy}, {53, true, model.HealthHealthy},
		},
	} {
		s := newProbeState(p, begin, model.HealthNone)
		for i, st := range steps {
			if got := s.result(begin.Add(time.Duration(st.at)*time.Second), st.ok); got != st.want {
				t.Errorf("%s: after step %d it is %s, want %s", name, i, got, st.want)
			}
		}
	}
}

// TestProbesComeSoonAtFirst holds how late the first success may be noticed, and that an interval that is shorter counts.
func TestProbesComeSoonAtFirst(t *testing.T) {
	begin := time.Now()
	for _, c := range []struct {
		probe       model.Probe
		after, want time.Duration
	}{
		{model.Probe{}, 0, 50 * time.Millisecond},
		{model.Probe{}, 600 * time.Millisecond, 200 * time.Millisecond},
		{model.Probe{}, time.Hour, 1600 * time.Millisecond},
		{model.Probe{Interval: time.Second}, time.Hour, time.Second},
		{model.Probe{StartInterval: 20 * time.Millisecond}, time.Hour, 20 * time.Millisecond},
	} {
		s := newProbeState(c.probe, begin, model.HealthNone)
		if got := s.next(begin.Add(c.after)); got != c.want {
			t.Errorf("%+v: after %s the next comes in %s, want %s", c.probe, c.after, got, c.want)
		}
		s.result(begin.Add(c.after), true)
		if got := s.next(begin.Add(c.after)); got != s.probe.Interval {
			t.Errorf("%+v: after a success the next comes in %s, want %s", c.probe, got, s.probe.Interval)
		}
	}
}
