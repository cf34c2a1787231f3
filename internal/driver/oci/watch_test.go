package oci

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/tasklog"
	"github.com/tutti-run/tutti/internal/model"
)

// setUpWatch is for tasks that are watched before there is a supervisor: the profile that confines them is kept once one was started.
func setUpWatch(t *testing.T) *env {
	e := setUp(t)
	e.start("i.first.1", nil, "exit", "0")
	e.wait("i.first.1")
	return e
}

// isWatched reports whether beside a task is only what it was begun by: a supervisor has more threads.
func (e *env) isWatched(id string) bool {
	e.t.Helper()
	st, err := e.d.Status(e.ctx, id)
	if err != nil {
		e.t.Fatal(err)
	}
	threads, err := os.ReadDir("/proc/" + parentOf(e.t, st.PID) + "/task")
	if err != nil {
		e.t.Fatal(err)
	}
	return len(threads) == 1
}

// await asks until the answer is yes.
func (e *env) await(what string, yes func() bool) {
	e.t.Helper()
	for !yes() {
		select {
		case <-e.ctx.Done():
			e.t.Fatal("never: ", what)
		default:
			syscall.Nanosleep(&syscall.Timespec{Nsec: 5e6}, nil)
		}
	}
}

// startParts starts a task that has written a line, and the beginning of one.
func (e *env) startParts() {
	e.t.Helper()
	e.start("i.a.1", nil, "parts")
	e.await("the first line", func() bool { return e.logs("i.a.1", all) == "one\n" })
}

func TestATaskIsWatchedUntilMoreIsAskedFor(t *testing.T) {
	e := setUpWatch(t)
	e.startParts()
	var ends [3]driver.Status
	var waiting sync.WaitGroup
	for n := range ends {
		waiting.Go(func() { ends[n], _ = e.d.Wait(e.ctx, "i.a.1") })
	}
	if _, err := e.d.Stats(e.ctx, "i.a.1"); err != nil {
		t.Error(err)
	}
	if got, err := e.d.Processes(e.ctx, "i.a.1"); err != nil || len(got) != 1 || got[0].Command[1] != "parts" {
		t.Errorf("its processes are %v, %v", got, err)
	}
	if err := e.d.Signal(e.ctx, "i.a.1", int(syscall.SIGWINCH)); err != nil {
		t.Error(err)
	}
	if !e.isWatched("i.a.1") {
		t.Fatal("there is a supervisor before anybody needs it")
	}
	if code, err := e.d.Exec(e.ctx, "i.a.1", driver.ExecSpec{Args: []string{"/prog", "exit", "3"}}, driver.Streams{}); err != nil || code != 3 {
		t.Fatalf("exec gave %d, %v, want 3", code, err)
	}
	if e.isWatched("i.a.1") {
		t.Error("there is no supervisor after an exec")
	}
	var early bytes.Buffer
	attached := make(chan error, 1)
	go func() { attached <- e.d.Attach(e.ctx, "i.a.1", driver.Streams{Stdout: &early, FromStart: true}) }()
	if err := e.d.Signal(e.ctx, "i.a.1", int(syscall.SIGUSR1)); err != nil {
		t.Fatal(err)
	}
	e.await("the second line", func() bool { return e.logs("i.a.1", all) == "one\nbegun\n" })
	if err := e.d.Signal(e.ctx, "i.a.1", int(syscall.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	waiting.Wait()
	for _, st := range ends {
		if st.ExitCode != 7 || st.State != driver.Exited || st.Started.IsZero() || st.Finished.Before(st.Started) {
			t.Errorf("who waited was told %+v, want exit code 7", st)
		}
	}
	if err := <-attached; err != nil || early.String() != "one\nbegun\n" {
		t.Errorf("who was attached saw %q, %v", early.String(), err)
	}
}

func TestAWatchedTaskEndsWithoutASupervisor(t *testing.T) {
	e := setUpWatch(t)
	e.startParts()
	if err := e.d.Signal(e.ctx, "i.a.1", int(syscall.SIGUSR1)); err != nil {
		t.Fatal(err)
	}
	e.await("the second line", func() bool { return e.logs("i.a.1", all) == "one\nbegun\n" })
	if !e.isWatched("i.a.1") {
		t.Error("there is a supervisor before anybody needs it")
	}
	if err := e.d.Kill(e.ctx, "i.a.1"); err != nil {
		t.Fatal(err)
	}
	if st := e.wait("i.a.1"); st.ExitCode != 137 || st.OOM || st.Error != "" {
		t.Errorf("ended as %+v, want exit code 137", st)
	}
}

func TestTheLogOfAWatchedTaskIsBounded(t *testing.T) {
	const lines, room = 3000, 8 << 10
	e := setUpWatch(t)
	e.start("i.a.1", func(task *driver.Task) { task.Log = &model.LogPolicy{FileBytes: room, Files: 2} }, "lines", fmt.Sprint(lines), "0")
	e.wait("i.a.1")
	got := strings.Fields(e.logs("i.a.1", all))
	if len(got) < room/100 {
		t.Fatalf("%d lines were kept", len(got))
	}
	for n, line := range got {
		if want := fmt.Sprint(lines - len(got) + n); line != want {
			t.Fatalf("line %d of %d is %q, want %q", n, len(got), line, want)
		}
	}
	for _, name := range []string{"log", "log.1"} {
		if st, err := os.Stat(filepath.Join(e.dir("i.a.1"), name)); err != nil || st.Size() > room {
			t.Errorf("%s: %v, %v, want at most %d bytes", name, st, err, room)
		}
	}
	e.start("i.b.1", func(task *driver.Task) { task.Log = &model.LogPolicy{None: true} }, "lines", "10", "0")
	if e.wait("i.b.1"); e.logs("i.b.1", all) != "" {
		t.Error("a log is kept of a task that is to have none")
	}
}

// That nothing is left of the cgroups is found out by the tests' Cleanup.
// TestALogIsTheSameWhoeverWritesIt: what watches a task before there is a supervisor, and a supervisor from the start, as a task
// under a lease has, keep the same lines in the same parts, byte by byte.
func TestALogIsTheSameWhoeverWritesIt(t *testing.T) {
	e := setUpWatch(t)
	e.lease(time.Hour)
	kept := func(id string, change func(*driver.Task), seed string) []byte {
		t.Helper()
		e.start(id, change, "odd", seed)
		if st := e.wait(id); st.ExitCode != 0 {
			t.Fatalf("%s ended as %+v", id, st)
		}
		path, _ := tasklog.File(e.dir(id), nil)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var lines []byte
		for line := range bytes.Lines(data) {
			at, rest, _ := bytes.Cut(line, []byte(" "))
			if _, err := time.Parse(time.RFC3339Nano, string(at)); err != nil {
				t.Fatalf("%s keeps %.60q: %v", id, line, err)
			}
			lines = append(lines, rest...)
		}
		return lines
	}
	for n := range 5 {
		seed := strings.Repeat("x", n)
		watched, supervised := kept(fmt.Sprintf("i.watched%d.1", n), nil, seed), kept(fmt.Sprintf("i.supervised%d.1", n), leased, seed)
		if !bytes.Equal(watched, supervised) {
			at := 0
			for at < min(len(watched), len(supervised)) && watched[at] == supervised[at] {
				at++
			}
			t.Errorf("with seed %q they differ at byte %d of %d and %d: %.40q and %.40q", seed, at, len(watched), len(supervised), watched[at:], supervised[at:])
		}
	}
}

func TestCgroupsInAWatchedTasksAreRemoved(t *testing.T) {
	e := setUpWatch(t)
	e.startParts()
	for _, dir := range e.cgroups() {
		if err := os.MkdirAll(filepath.Join(dir, "i.a.1", "more", "below"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.d.Signal(e.ctx, "i.a.1", int(syscall.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	if st := e.wait("i.a.1"); st.ExitCode != 7 {
		t.Errorf("ended as %+v, want exit code 7", st)
	}
}
