package drivertest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
)

func (s *suite) run(spec driver.ExecSpec, in io.Reader) (code int, out, errs string, err error) {
	var o, e bytes.Buffer
	code, err = s.d.Exec(s.ctx, "i.a.1", spec, driver.Streams{Stdin: in, Stdout: &o, Stderr: &e})
	return code, o.String(), e.String(), err
}

func (s *suite) exec() {
	task := s.task("i.a.1", "sleep")
	task.Env = append(task.Env, "COLOUR=red")
	task.WorkingDir = "/tmp"
	if err := s.d.Start(s.ctx, task); err != nil {
		s.Fatal(err)
	}
	code, out, errs, err := s.run(driver.ExecSpec{Args: []string{s.program, "cat"}}, strings.NewReader("hello"))
	if err != nil || code != 3 || out != "hello" || errs != "bye" {
		s.Errorf("exec gave %d, %q, %q, %v; want 3, hello, bye", code, out, errs, err)
	}
	if code, out, _, err := s.run(driver.ExecSpec{Args: []string{s.program, "cat"}}, nil); err != nil || code != 3 || out != "" {
		s.Errorf("exec without input gave %d, %q, %v; want that it finds the end of its input", code, out, err)
	}
	for _, c := range []struct {
		spec driver.ExecSpec
		want string
	}{
		{driver.ExecSpec{}, "red /tmp\n"},
		{driver.ExecSpec{Env: []string{"COLOUR=blue"}}, "blue /tmp\n"},
		{driver.ExecSpec{WorkingDir: "/"}, "red /\n"},
	} {
		c.spec.Args = []string{s.program, "env", "COLOUR"}
		if code, out, _, err := s.run(c.spec, nil); err != nil || code != 0 || out != c.want {
			s.Errorf("exec gave %d, %q, %v; want %q", code, out, err, c.want)
		}
	}
	if code, err := s.d.Exec(s.ctx, "i.a.1", driver.ExecSpec{Args: []string{s.program, "streams"}}, driver.Streams{}); err != nil || code != 0 {
		s.Errorf("exec whose output nobody wants gave %d, %v", code, err)
	}
	_, _, _, err = s.run(driver.ExecSpec{Args: []string{"/nothing-here"}}, nil)
	s.wantKind(err, fault.NotFound, "run what is not there")
	_, _, _, err = s.run(driver.ExecSpec{}, nil)
	s.wantKind(err, fault.Invalid, "run nothing")
	if st, err := s.d.Status(s.ctx, "i.a.1"); err != nil || st.State != driver.Running {
		s.Errorf("the task is %+v, %v; want it unharmed", st, err)
	}
	if err := s.d.Kill(s.ctx, "i.a.1"); err != nil {
		s.Fatal(err)
	}
	_, _, _, err = s.run(driver.ExecSpec{Args: []string{s.program, "exit", "0"}}, nil)
	s.wantKind(err, fault.Unavailable, "run something in a task that ended")
}

// firstWord closes c when something is written.
type firstWord struct {
	once sync.Once
	c    chan struct{}
}

func (f *firstWord) Write(p []byte) (int, error) {
	f.once.Do(func() { close(f.c) })
	return len(p), nil
}

func (s *suite) execEnds() {
	s.start("i.a.1", "sleep")
	ctx, giveUp := context.WithCancel(s.ctx)
	var ready *firstWord
	done := make(chan error, 1)
	run := func(ctx context.Context) {
		_, err := s.d.Exec(ctx, "i.a.1", driver.ExecSpec{Args: []string{s.program, "sleep"}}, driver.Streams{Stdout: ready})
		done <- err
	}
	begin := func(ctx context.Context) {
		ready = &firstWord{c: make(chan struct{})}
		go run(ctx)
		select {
		case <-ready.c:
		case err := <-done:
			s.Fatalf("exec ended with %v before it was given up", err)
		}
	}
	begin(ctx)
	giveUp()
	if err := <-done; !errors.Is(err, context.Canceled) {
		s.Errorf("exec ended with %v, want its context's error", err)
	}
	begin(s.ctx)
	if err := s.d.Kill(s.ctx, "i.a.1"); err != nil {
		s.Fatal(err)
	}
	<-done // ended with its task, one way or the other
}

func (s *suite) execSignals() {
	s.start("i.a.1", "sleep")
	for _, c := range []struct {
		verb string
		want int
	}{{"sleep", 128 + 15}, {"echo", 42}} {
		ready := &firstWord{c: make(chan struct{})}
		signals := make(chan os.Signal, 1)
		go func() {
			<-ready.c
			signals <- syscall.SIGTERM
			close(signals)
		}()
		code, err := s.d.Exec(s.ctx, "i.a.1", driver.ExecSpec{Args: []string{s.program, c.verb}}, driver.Streams{Stdout: ready, Signals: signals})
		if err != nil || code != c.want {
			s.Errorf("%s ended with %d, %v; want %d", c.verb, code, err, c.want)
		}
	}
}

// gathered is a buffer that may be read while it is written to.
type gathered struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (g *gathered) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.buf.Write(p)
}

func (g *gathered) String() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.buf.String()
}

func (s *suite) attach() {
	s.start("i.a.1", "echo")
	s.said("i.a.1", "ready")
	var outs [2]gathered
	done := make(chan error, 3)
	for i := range outs {
		go func() { done <- s.d.Attach(s.ctx, "i.a.1", driver.Streams{Stdout: &outs[i]}) }()
	}
	ctx, leave := context.WithCancel(s.ctx)
	left := make(chan error, 1)
	go func() { left <- s.d.Attach(ctx, "i.a.1", driver.Streams{}) }()
	s.until("both are attached", func() bool {
		s.signal(syscall.SIGUSR1)
		return strings.Contains(outs[0].String(), "got 10") && strings.Contains(outs[1].String(), "got 10")
	})
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		s.Errorf("who left got %v, want its context's error", err)
	}
	s.signal(syscall.SIGTERM)
	for range outs {
		if err := <-done; err != nil {
			s.Errorf("attach ended with %v, want nothing at the task's end", err)
		}
	}
	for i := range outs {
		if got := outs[i].String(); !strings.HasSuffix(got, "last\n") {
			s.Errorf("who was attached saw %q, want it to the last line", got)
		}
	}
	s.wantKind(s.d.Attach(s.ctx, "i.a.1", driver.Streams{}), fault.Unavailable, "attach to a task that ended")
}

func (s *suite) attachInput() {
	task := s.task("i.a.1", "cat")
	task.Stdin = true
	if err := s.d.Start(s.ctx, task); err != nil {
		s.Fatal(err)
	}
	var out gathered
	if err := s.d.Attach(s.ctx, "i.a.1", driver.Streams{Stdin: strings.NewReader("a line\n"), Stdout: &out}); err != nil {
		s.Fatal(err)
	}
	if st := s.end("i.a.1"); st.ExitCode != 3 || out.String() != "a line\n" {
		s.Errorf("ended as %+v after %q, want that it got the line and the end of it", st, out.String())
	}
}
