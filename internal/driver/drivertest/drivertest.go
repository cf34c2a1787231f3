// Package drivertest is the suite that every driver passes. It tests promises of package driver,
// nothing of how a driver keeps them; what only one kind of driver can do is tested beside it.
package drivertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/drivertest/script"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// Host is a place where one driver can be tried.
type Host struct {
	Driver driver.Driver
	// Reopen returns a new driver over what the first one left, as after a restart of the agent.
	Reopen func() driver.Driver
	// Task returns a task that can run Program; ID and Args are filled in by the suite.
	Task func() driver.Task
	// Program is where the script is found; "" is script.Name.
	Program string
}

// Run holds a driver to what package driver promises. open makes a fresh host for each test and
// cleans up after it.
func Run(t *testing.T, open func(t *testing.T) *Host) {
	tests := []struct {
		name string
		run  func(*suite)
	}{
		{"ExitCodesAreReported", (*suite).exitCodes},
		{"StartingAgainDoesNothing", (*suite).startAgain},
		{"WhatCannotBeStartedSaysWhy", (*suite).refusals},
		{"UnknownIDs", (*suite).unknown},
		{"SignalsReachTheTask", (*suite).signals},
		{"KillEndsWhatDoesNotListen", (*suite).kill},
		{"WaitIsForAnybodyAndMayBeGivenUp", (*suite).wait},
		{"LogsAreChosen", (*suite).logs},
		{"LogsSayWhereAndWhen", (*suite).logStreams},
		{"LongLinesComeInParts", (*suite).longLines},
		{"LogsAreFollowed", (*suite).follow},
		{"ExecStreamsAndExitCode", (*suite).exec},
		{"ExecEndsWithItsCaller", (*suite).execEnds},
		{"ExecIsSignalled", (*suite).execSignals},
		{"AttachSeesTheEnd", (*suite).attach},
		{"AttachFeedsTheTask", (*suite).attachInput},
		{"PausedTasksWait", (*suite).pause},
		{"StatsOfWhatRuns", (*suite).stats},
		{"BoundsChangeWhileItRuns", (*suite).bounds},
		{"ANewDriverFindsEverything", (*suite).reopen},
		{"RemoveLeavesNothing", (*suite).remove},
		{"ManyAtOnce", (*suite).many},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h := open(t)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			program := h.Program
			if program == "" {
				program = script.Name
			}
			test.run(&suite{T: t, h: h, d: h.Driver, ctx: ctx, program: program})
		})
	}
}

type suite struct {
	*testing.T
	h   *Host
	d   driver.Driver
	ctx context.Context

	program string
}

func (s *suite) task(id string, args ...string) driver.Task {
	task := s.h.Task()
	task.ID, task.Args = id, append([]string{s.program}, args...)
	return task
}

func (s *suite) start(id string, args ...string) {
	s.Helper()
	if err := s.d.Start(s.ctx, s.task(id, args...)); err != nil {
		s.Fatalf("start %s: %v", id, err)
	}
}

// end waits for the end of a task.
func (s *suite) end(id string) driver.Status {
	s.Helper()
	st, err := s.d.Wait(s.ctx, id)
	if err != nil {
		s.Fatalf("wait for %s: %v", id, err)
	}
	return st
}

var everything = driver.LogOptions{Tail: -1}

func (s *suite) entries(id string, o driver.LogOptions) []driver.LogEntry {
	s.Helper()
	var out []driver.LogEntry
	if err := s.d.Logs(s.ctx, id, o, func(e driver.LogEntry) error { out = append(out, e); return nil }); err != nil {
		s.Fatalf("logs of %s: %v", id, err)
	}
	return out
}

func text(entries []driver.LogEntry) string {
	var b strings.Builder
	for _, e := range entries {
		b.Write(e.Line)
	}
	return b.String()
}

// said waits until a task has written something.
func (s *suite) said(id, what string) {
	s.Helper()
	errFound := errors.New("found")
	var all strings.Builder
	err := s.d.Logs(s.ctx, id, driver.LogOptions{Follow: true, Tail: -1}, func(e driver.LogEntry) error {
		all.Write(e.Line)
		if strings.Contains(all.String(), what) {
			return errFound
		}
		return nil
	})
	if !errors.Is(err, errFound) {
		s.Fatalf("%s never said %q but %q (%v)", id, what, all.String(), err)
	}
}

func (s *suite) wantKind(err error, kind fault.Kind, doing string) {
	s.Helper()
	if !fault.Is(err, kind) {
		s.Errorf("%s: error is %v, want one of the kind %q", doing, err, kind)
	}
}

func (s *suite) exitCodes() {
	before := time.Now().Add(-time.Second) // clocks of file systems and kernels are coarser
	for _, code := range []int{0, 7, 255} {
		id := fmt.Sprint("i.exit.", code)
		s.start(id, "exit", fmt.Sprint(code))
		st := s.end(id)
		if st.ID != id || st.State != driver.Exited || st.ExitCode != code || st.Error != "" {
			s.Errorf("ended as %+v, want exit code %d", st, code)
		}
		if st.Started.Before(before) || st.Finished.Before(st.Started) {
			s.Errorf("ran from %s to %s, want times that fit", st.Started, st.Finished)
		}
		again, err := s.d.Status(s.ctx, id)
		if err != nil || again.ExitCode != code || !again.Finished.Equal(st.Finished) {
			s.Errorf("status is %+v, %v; want what Wait said: %+v", again, err, st)
		}
	}
}

func (s *suite) startAgain() {
	s.start("i.a.1", "lines", "3", "5")
	s.end("i.a.1")
	s.start("i.a.1", "lines", "3", "6")
	if st := s.end("i.a.1"); st.ExitCode != 5 {
		s.Errorf("ended as %+v, want the exit code of the only run", st)
	}
	if got := text(s.entries("i.a.1", everything)); got != "0\n1\n2\n" {
		s.Errorf("the log holds %q, want the lines of one run", got)
	}
}

func (s *suite) refusals() {
	missing := s.task("i.missing.1")
	missing.Args = []string{"/nothing-here"}
	err := s.d.Start(s.ctx, missing)
	s.wantKind(err, fault.NotFound, "start what is not there")
	if err == nil || !strings.Contains(err.Error(), "/nothing-here") {
		s.Errorf("error is %v, want it to name the executable", err)
	}
	if st := s.end("i.missing.1"); st.ExitCode != 127 || st.Error == "" || st.State != driver.Exited {
		s.Errorf("ended as %+v, want exit code 127 and the reason", st)
	}
	nothing := s.task("i.nothing.1")
	nothing.Args = nil
	s.wantKind(s.d.Start(s.ctx, nothing), fault.Invalid, "start nothing")
	s.wantKind(s.d.Start(s.ctx, s.task("", "exit", "0")), fault.Invalid, "start without an ID")
	list, err := s.d.List(s.ctx)
	if err != nil || len(list) != 1 || list[0].ID != "i.missing.1" {
		s.Errorf("list is %+v, %v; want the one that was tried", list, err)
	}
	if err := s.d.Remove(s.ctx, "i.missing.1"); err != nil {
		s.Errorf("remove what could not be started: %v", err)
	}
}

func (s *suite) unknown() {
	d, ctx, id := s.d, s.ctx, "i.unknown.1"
	_, err := d.Status(ctx, id)
	s.wantKind(err, fault.NotFound, "Status")
	_, err = d.Wait(ctx, id)
	s.wantKind(err, fault.NotFound, "Wait")
	s.wantKind(d.Signal(ctx, id, 15), fault.NotFound, "Signal")
	s.wantKind(d.Kill(ctx, id), fault.NotFound, "Kill")
	s.wantKind(d.Pause(ctx, id), fault.NotFound, "Pause")
	s.wantKind(d.Resume(ctx, id), fault.NotFound, "Resume")
	_, err = d.Exec(ctx, id, driver.ExecSpec{Args: []string{s.program, "exit", "0"}}, driver.Streams{})
	s.wantKind(err, fault.NotFound, "Exec")
	s.wantKind(d.Attach(ctx, id, driver.Streams{}), fault.NotFound, "Attach")
	s.wantKind(d.Logs(ctx, id, everything, func(driver.LogEntry) error { return nil }), fault.NotFound, "Logs")
	_, err = d.Stats(ctx, id)
	s.wantKind(err, fault.NotFound, "Stats")
	s.wantKind(d.Remove(ctx, id), fault.NotFound, "Remove")
	if list, err := d.List(ctx); err != nil || len(list) != 0 {
		s.Errorf("list is %v, %v; want nothing", list, err)
	}
}

func (s *suite) signals() {
	s.start("i.a.1", "echo")
	s.said("i.a.1", "ready")
	for _, n := range []syscall.Signal{syscall.SIGUSR1, syscall.SIGUSR2} {
		if err := s.d.Signal(s.ctx, "i.a.1", int(n)); err != nil {
			s.Fatal(err)
		}
		s.said("i.a.1", fmt.Sprintf("got %d\n", n))
	}
	s.wantKind(s.d.Signal(s.ctx, "i.a.1", 999), fault.Invalid, "send a signal that does not exist")
	if err := s.d.Signal(s.ctx, "i.a.1", int(syscall.SIGTERM)); err != nil {
		s.Fatal(err)
	}
	if st := s.end("i.a.1"); st.ExitCode != 42 {
		s.Errorf("ended as %+v, want the exit code 42 that the task chose", st)
	}
	if err := s.d.Signal(s.ctx, "i.a.1", int(syscall.SIGTERM)); err != nil {
		s.Errorf("signal to an ended task: %v, want no error", err)
	}
}

func (s *suite) kill() {
	s.start("i.a.1", "sleep")
	s.said("i.a.1", "ready")
	if err := s.d.Kill(s.ctx, "i.a.1"); err != nil {
		s.Fatal(err)
	}
	st, err := s.d.Status(s.ctx, "i.a.1")
	if err != nil || st.State != driver.Exited || st.ExitCode != 137 {
		s.Errorf("after Kill the status is %+v, %v; want exit code 137", st, err)
	}
	if err := s.d.Kill(s.ctx, "i.a.1"); err != nil {
		s.Errorf("kill again: %v, want no error", err)
	}
}

func (s *suite) wait() {
	s.start("i.a.1", "echo")
	s.said("i.a.1", "ready")
	short, cancel := context.WithTimeout(s.ctx, 10*time.Millisecond)
	defer cancel()
	if _, err := s.d.Wait(short, "i.a.1"); !errors.Is(err, context.DeadlineExceeded) {
		s.Errorf("a wait that was given up ended with %v, want its context's error", err)
	}
	var wg sync.WaitGroup
	codes := make([]int, 5)
	for i := range codes {
		wg.Go(func() {
			st, err := s.d.Wait(s.ctx, "i.a.1")
			if err != nil {
				s.Error(err)
			}
			codes[i] = st.ExitCode
		})
	}
	if st, err := s.d.Status(s.ctx, "i.a.1"); err != nil || st.State != driver.Running || st.PID == 0 {
		s.Errorf("status is %+v, %v; want it running", st, err)
	}
	if err := s.d.Signal(s.ctx, "i.a.1", int(syscall.SIGTERM)); err != nil {
		s.Fatal(err)
	}
	wg.Wait()
	if !slices.Equal(codes, []int{42, 42, 42, 42, 42}) {
		s.Errorf("waiters got the exit codes %v, want 42 for all", codes)
	}
}

func (s *suite) logs() {
	s.start("i.a.1", "lines", "100", "0")
	s.end("i.a.1")
	all := s.entries("i.a.1", everything)
	if len(all) != 100 || string(all[0].Line) != "0\n" || string(all[99].Line) != "99\n" {
		s.Fatalf("%d lines were kept, want 100 in order: %q", len(all), text(all))
	}
	for tail, want := range map[int]string{0: "", 2: "98\n99\n", 1000: text(all)} {
		if got := text(s.entries("i.a.1", driver.LogOptions{Tail: tail})); got != want {
			s.Errorf("the last %d lines are %q, want %q", tail, got, want)
		}
	}
	since := all[50].Time
	for _, e := range s.entries("i.a.1", driver.LogOptions{Tail: -1, Since: since}) {
		if e.Time.Before(since) {
			s.Errorf("%q of %s is older than %s", e.Line, e.Time, since)
		}
	}
	// Times may be equal, so count what should be there.
	newer, older := 0, 0
	for _, e := range all {
		if !e.Time.Before(since) {
			newer++
		}
		if !e.Time.After(since) {
			older++
		}
	}
	if got := s.entries("i.a.1", driver.LogOptions{Tail: -1, Since: since}); len(got) != newer || string(got[len(got)-1].Line) != "99\n" {
		s.Errorf("%d lines since %s, want %d", len(got), since, newer)
	}
	if got := s.entries("i.a.1", driver.LogOptions{Tail: -1, Until: since}); len(got) != older || string(got[0].Line) != "0\n" {
		s.Errorf("%d lines until %s, want %d", len(got), since, older)
	}
	if got := text(s.entries("i.a.1", driver.LogOptions{Tail: 1, Until: all[99].Time})); got != "99\n" {
		s.Errorf("the last line until the end is %q", got)
	}
	if got := s.entries("i.a.1", driver.LogOptions{Tail: -1, Since: all[99].Time.Add(time.Hour)}); len(got) != 0 {
		s.Errorf("%d lines from the future", len(got))
	}
	stop := errors.New("enough")
	n := 0
	err := s.d.Logs(s.ctx, "i.a.1", everything, func(driver.LogEntry) error {
		if n++; n == 3 {
			return stop
		}
		return nil
	})
	if n != 3 || !errors.Is(err, stop) {
		s.Errorf("after its error the reader was called %d times and Logs gave %v, want 3 and the error", n, err)
	}
}

func (s *suite) logStreams() {
	before := time.Now().Add(-time.Second)
	s.start("i.a.1", "streams")
	s.end("i.a.1")
	got := map[string]string{}
	for _, e := range s.entries("i.a.1", everything) {
		got[e.Stream] += string(e.Line)
		if e.Time.Before(before) || e.Time.After(time.Now()) {
			s.Errorf("%q is of %s, want the time when it was written", e.Line, e.Time)
		}
	}
	if len(got) != 2 || got["stdout"] != "out\n" || got["stderr"] != "err\n" {
		s.Errorf("the log holds %v, want each line in its stream", got)
	}
}

func (s *suite) longLines() {
	const length = 100_000
	s.start("i.a.1", "long", fmt.Sprint(length))
	s.end("i.a.1")
	all := s.entries("i.a.1", everything)
	if want := strings.Repeat("x", length) + "\nafter\n"; text(all) != want {
		s.Fatalf("%d bytes were kept, want %d unchanged", len(text(all)), len(want))
	}
	if len(all) < 3 {
		s.Errorf("a line of %d bytes came in %d parts", length, len(all)-1)
	}
	for i, e := range all[:len(all)-2] {
		if bytes.HasSuffix(e.Line, []byte("\n")) {
			s.Errorf("part %d of the line ends in a newline", i)
		}
	}
}

// follower reads a log in the background.
type follower struct {
	lines chan string
	done  chan error
}

func (s *suite) follow() {
	open := func(ctx context.Context, o driver.LogOptions) *follower {
		f := &follower{lines: make(chan string, 100), done: make(chan error, 1)}
		go func() {
			f.done <- s.d.Logs(ctx, "i.a.1", o, func(e driver.LogEntry) error { f.lines <- string(e.Line); return nil })
		}()
		return f
	}
	next := func(f *follower, want string) {
		s.Helper()
		got := ""
		select {
		case got = <-f.lines:
		case err := <-f.done:
			f.done <- err // for who asks how it ended
			select {
			case got = <-f.lines:
			default:
				s.Fatalf("the log ended with %v before %q", err, want)
			}
		case <-s.ctx.Done():
			s.Fatalf("%q never came", want)
		}
		if got != want {
			s.Fatalf("the next line is %q, want %q", got, want)
		}
	}
	s.start("i.a.1", "echo")
	s.said("i.a.1", "ready")
	s.signal(syscall.SIGUSR1)
	s.said("i.a.1", "got 10")
	all := open(s.ctx, driver.LogOptions{Follow: true, Tail: -1})
	last := open(s.ctx, driver.LogOptions{Follow: true, Tail: 1})
	ctx, giveUp := context.WithCancel(s.ctx)
	dropped := open(ctx, driver.LogOptions{Follow: true, Tail: -1})
	next(all, "ready\n")
	next(all, "got 10\n")
	next(last, "got 10\n")
	next(dropped, "ready\n")
	next(dropped, "got 10\n")
	giveUp()
	if err := <-dropped.done; err != nil && !errors.Is(err, context.Canceled) {
		s.Errorf("a reader that left got %v", err)
	}
	s.signal(syscall.SIGUSR2)
	next(all, "got 12\n")
	next(last, "got 12\n")
	s.signal(syscall.SIGTERM)
	for _, f := range []*follower{all, last} {
		next(f, "last\n")
		if err := <-f.done; err != nil || len(f.lines) != 0 {
			s.Errorf("the log ended with %v and %d lines too many", err, len(f.lines))
		}
	}
}

func (s *suite) signal(n syscall.Signal) {
	s.Helper()
	if err := s.d.Signal(s.ctx, "i.a.1", int(n)); err != nil {
		s.Fatal(err)
	}
}

// until waits for a condition that nothing announces.
func (s *suite) until(what string, ok func() bool) {
	s.Helper()
	for !ok() {
		select {
		case <-s.ctx.Done():
			s.Fatalf("%s: never", what)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func (s *suite) pause() {
	s.start("i.a.1", "echo")
	s.said("i.a.1", "ready")
	if err := s.d.Resume(s.ctx, "i.a.1"); err == nil {
		s.Error("a task that is not paused was resumed")
	}
	if err := s.d.Pause(s.ctx, "i.a.1"); err != nil {
		s.Fatal(err)
	}
	if st, err := s.d.Status(s.ctx, "i.a.1"); err != nil || st.State != driver.Paused {
		s.Errorf("status is %+v, %v; want it paused", st, err)
	}
	_, err := s.d.Exec(s.ctx, "i.a.1", driver.ExecSpec{Args: []string{s.program, "exit", "0"}}, driver.Streams{})
	s.wantKind(err, fault.Conflict, "run something in a paused task")
	s.signal(syscall.SIGUSR1)
	if got := text(s.entries("i.a.1", everything)); got != "ready\n" {
		s.Errorf("while paused the task wrote %q", got)
	}
	if err := s.d.Resume(s.ctx, "i.a.1"); err != nil {
		s.Fatal(err)
	}
	s.said("i.a.1", "got 10")
	if st, err := s.d.Status(s.ctx, "i.a.1"); err != nil || st.State != driver.Running {
		s.Errorf("status is %+v, %v; want it running", st, err)
	}
	// Who comes in while the task is being paused is let in, or turned away, and does not hold it up.
	entered := make(chan struct{})
	go func() {
		defer close(entered)
		for range 20 {
			_, err := s.d.Exec(s.ctx, "i.a.1", driver.ExecSpec{Args: []string{s.program, "exit", "0"}}, driver.Streams{})
			if err != nil && !fault.Is(err, fault.Conflict) {
				s.Errorf("run something in a task that is paused now and then: %v", err)
			}
		}
	}()
	for range 10 {
		if err := errors.Join(s.d.Pause(s.ctx, "i.a.1"), s.d.Resume(s.ctx, "i.a.1")); err != nil {
			s.Errorf("pause and resume a task that others enter: %v", err)
		}
	}
	<-entered
	if err := s.d.Pause(s.ctx, "i.a.1"); err != nil {
		s.Fatal(err)
	}
	if err := s.d.Kill(s.ctx, "i.a.1"); err != nil {
		s.Fatal(err)
	}
	if st := s.end("i.a.1"); st.ExitCode != 137 {
		s.Errorf("a paused task that was killed ended as %+v", st)
	}
}

func (s *suite) stats() {
	s.start("i.a.1", "echo")
	s.said("i.a.1", "ready") // what runs is the program itself by now, no longer what begins it
	st, err := s.d.Stats(s.ctx, "i.a.1")
	if err != nil || st.Pids == 0 || st.MemoryBytes == 0 || st.Time.IsZero() {
		s.Errorf("usage is %+v, %v", st, err)
	}
	status, err := s.d.Status(s.ctx, "i.a.1")
	if err != nil {
		s.Fatal(err)
	}
	list, err := s.d.Processes(s.ctx, "i.a.1")
	if err != nil || len(list) != 1 || list[0].PID != status.PID || !slices.Contains(list[0].Command, "echo") || list[0].Started.IsZero() {
		s.Errorf("processes are %+v, %v; want the one of %+v", list, err, status)
	}
	if err := s.d.Kill(s.ctx, "i.a.1"); err != nil {
		s.Fatal(err)
	}
	_, err = s.d.Processes(s.ctx, "i.a.1")
	s.wantKind(err, fault.Unavailable, "list the processes of a task that ended")
	_, err = s.d.Stats(s.ctx, "i.a.1")
	s.wantKind(err, fault.Unavailable, "read the usage of a task that ended")
}

func (s *suite) bounds() {
	s.start("i.a.1", "echo")
	s.said("i.a.1", "ready")
	limit := func() uint64 {
		s.Helper()
		st, err := s.d.Stats(s.ctx, "i.a.1")
		if err != nil {
			s.Fatal(err)
		}
		return st.MemoryLimitBytes
	}
	before := limit()
	for _, megabytes := range []int64{128, 64, 256, 0} {
		b := model.Bounds{Limit: model.Resources{MemoryBytes: megabytes << 20, NanoCPUs: megabytes * 1e7, Pids: megabytes}, Reserve: model.Resources{NanoCPUs: megabytes * 1e6}}
		if err := s.d.Update(s.ctx, "i.a.1", b); err != nil {
			s.Fatalf("bound a task to %d MB: %v", megabytes, err)
		}
		want := uint64(megabytes << 20)
		if megabytes == 0 {
			want = before
		}
		if got := limit(); got != want {
			s.Errorf("a task that was bounded to %d MB may use %d bytes; before it was %d", megabytes, got, before)
		}
		s.d = s.h.Reopen()
		if code, err := s.d.Exec(s.ctx, "i.a.1", driver.ExecSpec{Args: []string{s.program, "lines", "1", "3"}}, driver.Streams{}); err != nil || code != 3 {
			s.Errorf("exec in a task that was bounded anew ended with %d, %v", code, err)
		}
	}
	s.wantKind(s.d.Update(s.ctx, "i.b.1", model.Bounds{}), fault.NotFound, "bound a task that is not known")
	if err := s.d.Kill(s.ctx, "i.a.1"); err != nil {
		s.Fatal(err)
	}
	s.wantKind(s.d.Update(s.ctx, "i.a.1", model.Bounds{}), fault.Unavailable, "bound a task that ended")
}

func (s *suite) reopen() {
	s.start("i.ended.1", "lines", "2", "9")
	s.end("i.ended.1")
	s.start("i.a.1", "echo")
	s.said("i.a.1", "ready")
	before, err := s.d.Status(s.ctx, "i.a.1")
	if err != nil {
		s.Fatal(err)
	}
	s.d = s.h.Reopen()
	list, err := s.d.List(s.ctx)
	if err != nil || len(list) != 2 {
		s.Fatalf("list is %+v, %v; want both", list, err)
	}
	slices.SortFunc(list, func(a, b driver.Status) int { return strings.Compare(a.ID, b.ID) })
	if st := list[0]; st.ID != "i.a.1" || st.State != driver.Running || !st.Started.Equal(before.Started) || st.PID != before.PID {
		s.Errorf("what runs is found as %+v, want %+v", st, before)
	}
	if st := list[1]; st.ID != "i.ended.1" || st.State != driver.Exited || st.ExitCode != 9 {
		s.Errorf("what ended is found as %+v, want exit code 9", st)
	}
	if got := text(s.entries("i.ended.1", everything)); got != "0\n1\n" {
		s.Errorf("the log of what ended holds %q", got)
	}
	s.signal(syscall.SIGUSR1)
	s.said("i.a.1", "got 10")
	if code, _, _, err := s.run(driver.ExecSpec{Args: []string{s.program, "exit", "4"}}, nil); err != nil || code != 4 {
		s.Errorf("exec gave %d, %v; want 4", code, err)
	}
	s.start("i.a.1", "exit", "1") // was started before
	s.signal(syscall.SIGTERM)
	if st := s.end("i.a.1"); st.ExitCode != 42 {
		s.Errorf("ended as %+v, want 42", st)
	}
	s.d = s.h.Reopen()
	if st := s.end("i.a.1"); st.ExitCode != 42 {
		s.Errorf("after another restart the task has ended as %+v, want 42", st)
	}
}

func (s *suite) remove() {
	s.start("i.a.1", "sleep")
	s.said("i.a.1", "ready")
	s.start("i.other.1", "sleep")
	if err := s.d.Remove(s.ctx, "i.a.1"); err != nil {
		s.Fatal(err)
	}
	_, err := s.d.Status(s.ctx, "i.a.1")
	s.wantKind(err, fault.NotFound, "status of what was removed")
	s.wantKind(s.d.Logs(s.ctx, "i.a.1", everything, func(driver.LogEntry) error { return nil }), fault.NotFound, "logs of what was removed")
	s.wantKind(s.d.Remove(s.ctx, "i.a.1"), fault.NotFound, "remove again")
	list, err := s.h.Reopen().List(s.ctx)
	if err != nil || len(list) != 1 || list[0].ID != "i.other.1" || list[0].State != driver.Running {
		s.Errorf("list is %+v, %v; want only the other, running", list, err)
	}
	s.start("i.a.1", "lines", "1", "8")
	if st := s.end("i.a.1"); st.ExitCode != 8 {
		s.Errorf("what took the place of the removed ended as %+v", st)
	}
	if got := text(s.entries("i.a.1", everything)); got != "0\n" {
		s.Errorf("its log holds %q, want nothing of the removed", got)
	}
}

// many starts tasks while others look at all of them: none may be mistaken for one that was lost.
func (s *suite) many() {
	looking, stop := context.WithCancel(s.ctx)
	var lookers, starters sync.WaitGroup
	for range 2 {
		lookers.Go(func() {
			for looking.Err() == nil {
				if _, err := s.d.List(s.ctx); err != nil {
					s.Error(err)
					return
				}
			}
		})
	}
	const n = 12
	for i := range n {
		starters.Go(func() {
			id := fmt.Sprintf("i%d.a.1", i)
			if err := s.d.Start(s.ctx, s.task(id, "lines", "5", fmt.Sprint(i))); err != nil {
				s.Errorf("start %s: %v", id, err)
				return
			}
			st, err := s.d.Wait(s.ctx, id)
			if err != nil || st.ExitCode != i || st.Error != "" {
				s.Errorf("%s ended as %+v, %v; want exit code %d", id, st, err, i)
			}
			if got := text(s.entries(id, everything)); got != "0\n1\n2\n3\n4\n" {
				s.Errorf("the log of %s holds %q", id, got)
			}
		})
	}
	starters.Wait()
	stop()
	lookers.Wait()
	if list, err := s.d.List(s.ctx); err != nil || len(list) != n {
		s.Errorf("list has %d tasks, %v; want %d", len(list), err, n)
	}
}
