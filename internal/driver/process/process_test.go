package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/cgroup"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/drivertest"
	"github.com/tutti-run/tutti/internal/driver/supervisor"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

func TestMain(m *testing.M) {
	if Reexec(os.Args) {
		return
	}
	os.Exit(run(m))
}

// program is testdata/prog; every user may execute it.
var program string

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "tutti-process-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "prog")
	out, err := exec.Command("go", "build", "-o", program, "./testdata/prog").CombinedOutput()
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "build the test program: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

type env struct {
	*testing.T
	d       *supervisor.Driver
	cfg     Config
	sandbox string
	cgroup  string
	ctx     context.Context
}

func setUp(t *testing.T) *env {
	if os.Geteuid() != 0 {
		t.Skip("cgroups and users need root")
	}
	run, err := os.MkdirTemp("", "tp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	if err := os.Chmod(run, 0o755); err != nil {
		t.Fatal(err)
	}
	cfg := Config{StateDir: filepath.Join(t.TempDir(), "state"), RunDir: filepath.Join(run, "r"), Log: slog.New(slog.DiscardHandler)}
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	e := &env{T: t, d: d, cfg: cfg, ctx: ctx, sandbox: filepath.Join(run, "sandbox"), cgroup: "/tutti-test-" + filepath.Base(run)}
	if err := os.Mkdir(e.sandbox, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		roots, err := cgroup.Hierarchies()
		if err != nil {
			t.Fatal(err)
		}
		for _, root := range roots {
			if _, err := os.Stat(filepath.Join(root, e.cgroup)); err == nil {
				t.Errorf("cgroup %s is left in %s", e.cgroup, root)
			}
		}
		if err := cgroup.Remove(e.cgroup); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		list, _ := d.List(context.Background())
		for _, st := range list {
			if err := d.Remove(context.Background(), st.ID); err != nil {
				t.Errorf("remove %s: %v", st.ID, err)
			}
		}
	})
	return e
}

func (e *env) task() driver.Task {
	return driver.Task{Sandbox: e.sandbox, Env: []string{"PATH=/usr/bin:/bin"}, CgroupParent: e.cgroup}
}

func TestSuite(t *testing.T) { runSuite(t, func(*driver.Task) {}) }

// runSuite runs what every driver does with tasks that are changed.
func runSuite(t *testing.T, change func(*driver.Task)) {
	drivertest.Run(t, func(t *testing.T) *drivertest.Host {
		e := setUp(t)
		return &drivertest.Host{
			Driver: e.d,
			Reopen: func() driver.Driver {
				d, err := New(e.cfg)
				if err != nil {
					t.Fatal(err)
				}
				return d
			},
			Task: func() driver.Task { task := e.task(); change(&task); return task }, Program: program,
		}
	})
}

func (e *env) start(id string, change func(*driver.Task), args ...string) {
	e.Helper()
	task := e.task()
	task.ID, task.Args = id, append([]string{program}, args...)
	if change != nil {
		change(&task)
	}
	if err := e.d.Start(e.ctx, task); err != nil {
		e.Fatalf("start %s: %v", id, err)
	}
}

func (e *env) wait(id string) driver.Status {
	e.Helper()
	st, err := e.d.Wait(e.ctx, id)
	if err != nil {
		e.Fatalf("wait for %s: %v", id, err)
	}
	return st
}

func (e *env) logs(id string) string {
	e.Helper()
	var b strings.Builder
	err := e.d.Logs(e.ctx, id, driver.LogOptions{Tail: -1}, func(l driver.LogEntry) error { b.Write(l.Line); return nil })
	if err != nil {
		e.Fatalf("logs of %s: %v", id, err)
	}
	return b.String()
}

func (e *env) waitFor(id, text string) {
	e.Helper()
	for !strings.Contains(e.logs(id), text) {
		if e.ctx.Err() != nil {
			e.Fatalf("%s never said %q but %q", id, text, e.logs(id))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// output runs the program to its end.
func (e *env) output(id string, change func(*driver.Task), args ...string) string {
	e.Helper()
	e.start(id, change, args...)
	if st := e.wait(id); st.ExitCode != 0 {
		e.Fatalf("%s ended as %+v after %q", id, st, e.logs(id))
	}
	return e.logs(id)
}

func ownNetwork(t *testing.T) string {
	t.Helper()
	// The first thread, which /proc/self is about, may have been left in a network that a test made.
	network, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return network
}

func TestAProcessIsWhatWasAskedFor(t *testing.T) {
	e := setUp(t)
	want := func(out string, lines ...string) {
		t.Helper()
		for _, line := range lines {
			if !strings.Contains(out, line+"\n") {
				t.Errorf("the process says\n%s\nwant %q in it", out, line)
			}
		}
	}
	want(e.output("i.plain.1", nil, "identity"), "Uid 0 0 0 0", "dir "+e.sandbox, "network "+ownNetwork(t), "NoNewPrivs 0", "SigIgn 0000000000000000", "Seccomp 0")
	umask := uint32(0o027)
	if err := os.Mkdir(filepath.Join(e.sandbox, "work"), 0o755); err != nil {
		t.Fatal(err)
	}
	want(e.output("i.chosen.1", func(task *driver.Task) {
		task.User, task.Groups, task.Umask, task.OOMScoreAdjust = "1234:2345", []string{"77"}, &umask, 321
		task.SecurityOpts, task.WorkingDir = []string{"no-new-privileges"}, "work"
		task.Ulimits = []model.Ulimit{{Name: "core", Soft: 5, Hard: 6}}
	}, "identity"), "Uid 1234 1234 1234 1234", "Gid 2345 2345 2345 2345", "Groups 77", "umask 027", "oom 321", "NoNewPrivs 1", "core 5 6",
		"dir "+filepath.Join(e.sandbox, "work"))
	if out := e.output("i.fds.1", nil, "descriptors"); out != "0 1 2\n" {
		t.Errorf("the process has the descriptors %q", out)
	}
}

func TestAProcessMayHaveANetworkOfItsOwn(t *testing.T) {
	e := setUp(t)
	path := filepath.Join(filepath.Dir(e.sandbox), "netns")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	e.start("i.net.1", func(task *driver.Task) { task.NetNS = path }, "sleep")
	network := func() string {
		var out bytes.Buffer
		if _, err := e.d.Exec(e.ctx, "i.net.1", driver.ExecSpec{Args: []string{program, "identity"}}, driver.Streams{Stdout: &out}); err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(out.String(), "network ")
		name, _, _ := strings.Cut(rest, "\n")
		return name
	}()
	st, err := e.d.Status(e.ctx, "i.net.1")
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", st.PID))
	if err != nil || own == ownNetwork(t) || network != own {
		t.Fatalf("the process is in %s, what is executed in it in %s, the host in %s, %v", own, network, ownNetwork(t), err)
	}
}

func TestMountsAreTheTasksAlone(t *testing.T) {
	e := setUp(t)
	source := filepath.Join(filepath.Dir(e.sandbox), "source")
	if err := os.Mkdir(source, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"data": "from the volume", "hosts": "192.0.2.1 away", "secret": "psst"} {
		if err := os.WriteFile(filepath.Join(source, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	before, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	mounts := func(task *driver.Task) {
		task.Mounts = []driver.Mount{
			{Type: "bind", Source: source, Target: filepath.Join(e.sandbox, "deep/inside"), ReadOnly: true},
			{Type: "bind", Source: filepath.Join(source, "hosts"), Target: "/etc/hosts"},
			{Type: "bind", Source: filepath.Join(source, "secret"), Target: "/run/secrets/one", ReadOnly: true},
			{Type: "bind", Source: filepath.Join(source, "secret"), Target: "/run/secrets/two", ReadOnly: true},
			{Type: "tmpfs", Target: filepath.Join(e.sandbox, "memory"), SizeBytes: 1 << 20},
		}
	}
	e.start("i.m.1", mounts, "sleep")
	e.waitFor("i.m.1", "ready")
	execute := func(args ...string) string {
		t.Helper()
		var out bytes.Buffer
		if _, err := e.d.Exec(e.ctx, "i.m.1", driver.ExecSpec{Args: append([]string{program}, args...)}, driver.Streams{Stdout: &out}); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	if got, want := execute("read", "deep/inside/data", "/etc/hosts", "/run/secrets/one", "/run/secrets/two"),
		"from the volume <nil>\n192.0.2.1 away <nil>\npsst <nil>\npsst <nil>\n"; got != want {
		t.Errorf("the task reads %q, want %q", got, want)
	}
	if got := execute("write", "deep/inside/data"); !strings.Contains(got, "read-only") {
		t.Errorf("writing to a read-only mount gave %q", got)
	}
	if got := execute("write", "memory/x"); got != "<nil>\n" {
		t.Errorf("writing to memory gave %q", got)
	}
	after, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the host's mounts were\n%s\nand are\n%s", before, after)
	}
	if _, err := os.Stat("/run/secrets/one"); !os.IsNotExist(err) {
		t.Errorf("the secret is seen on the host: %v", err)
	}
	for _, c := range []struct{ target, want string }{{"/tutti-nowhere/x", "does not exist on this host"}, {filepath.Join(e.sandbox, "out/x"), "path escapes"}} {
		if err := os.MkdirAll(e.sandbox, 0o755); err != nil {
			t.Fatal(err)
		}
		os.Remove(filepath.Join(e.sandbox, "out"))
		if err := os.Symlink("/var/tmp", filepath.Join(e.sandbox, "out")); err != nil {
			t.Fatal(err)
		}
		task := e.task()
		task.ID, task.Args = "i.bad.1", []string{program, "exit", "0"}
		task.Mounts = []driver.Mount{{Type: "bind", Source: source, Target: c.target}}
		if err := e.d.Start(e.ctx, task); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("a mount at %s gave %v, want %q in it", c.target, err, c.want)
		}
		if err := e.d.Remove(e.ctx, "i.bad.1"); err != nil {
			t.Error(err)
		}
	}
}

func TestWhatOnlyContainersHaveIsRefused(t *testing.T) {
	e := setUp(t)
	for what, change := range map[string]func(*driver.Task){
		"privileged": func(task *driver.Task) { task.Privileged = true },
		"cap":        func(task *driver.Task) { task.CapAdd = []string{"NET_ADMIN"} },
		"init":       func(task *driver.Task) { task.Init = true },
		"root":       func(task *driver.Task) { task.Rootfs = "/" },
	} {
		task := e.task()
		task.ID, task.Args = "i.a.1", []string{program, "exit", "0"}
		change(&task)
		if err := e.d.Start(e.ctx, task); !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), what) {
			t.Errorf("start gave %v, want that %s is refused", err, what)
		}
	}
	task := e.task()
	task.ID, task.Args, task.User = "i.b.1", []string{"sh"}, "nobody-of-this-name"
	if err := e.d.Start(e.ctx, task); !fault.Is(err, fault.Invalid) {
		t.Errorf("an unknown user gave %v", err)
	}
}

func TestAProgramIsFoundInThePath(t *testing.T) {
	e := setUp(t)
	task := e.task()
	task.ID, task.Args = "i.a.1", []string{"sh", "-c", "echo from $0; exit 3"}
	if err := e.d.Start(e.ctx, task); err != nil {
		t.Fatal(err)
	}
	if st := e.wait("i.a.1"); st.ExitCode != 3 || e.logs("i.a.1") != "from sh\n" {
		t.Fatalf("ended as %+v after %q", st, e.logs("i.a.1"))
	}
	if err := os.WriteFile(filepath.Join(e.sandbox, "script"), []byte("#!/nothing/here\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct {
		name, want string
		kind       fault.Kind
	}{{"./script", "interpreter", fault.NotFound}, {"tutti-no-such-program", "not found on this host", fault.NotFound}, {"./", "may not be executed", fault.Invalid}} {
		task.ID, task.Args = fmt.Sprint("i.b.", i+1), []string{c.name}
		if err := e.d.Start(e.ctx, task); !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s gave %v, want %q in it", c.name, err, c.want)
		}
	}
}

// alive counts processes of the test's program with those arguments.
func alive(t *testing.T, args string) (n int) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if _, err := strconv.Atoi(entry.Name()); err != nil {
			continue
		}
		line, _ := os.ReadFile("/proc/" + entry.Name() + "/cmdline")
		if strings.TrimRight(string(line), "\x00") == program+"\x00"+args {
			n++
		}
	}
	return n
}

func TestTheWholeTreeEndsWithItsFirstProcess(t *testing.T) {
	e := setUp(t)
	e.start("i.tree.1", nil, "tree")
	e.waitFor("i.tree.1", "ready")
	if n := alive(t, "sleep"); n != 1 {
		t.Fatalf("%d processes were left to the supervisor, want 1", n)
	}
	if err := e.d.Signal(e.ctx, "i.tree.1", int(unix.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	if st := e.wait("i.tree.1"); st.ExitCode != 128+15 {
		t.Fatalf("ended as %+v", st)
	}
	if n := alive(t, "sleep"); n != 0 {
		t.Errorf("%d processes outlived their task", n)
	}
}

func TestAForkBombIsContainedAndEnds(t *testing.T) {
	e := setUp(t)
	e.start("i.bomb.1", func(task *driver.Task) { task.Limit.Pids = 60 }, "bomb")
	for alive(t, "bomb") < 5 && e.ctx.Err() == nil {
		time.Sleep(5 * time.Millisecond)
	}
	st, err := e.d.Stats(e.ctx, "i.bomb.1")
	if err != nil || st.Pids > 60 {
		t.Fatalf("usage is %+v, %v", st, err)
	}
	if err := e.d.Kill(e.ctx, "i.bomb.1"); err != nil {
		t.Fatal(err)
	}
	if st := e.wait("i.bomb.1"); st.ExitCode != 137 {
		t.Errorf("ended as %+v", st)
	}
	if n := alive(t, "bomb"); n != 0 {
		t.Errorf("%d processes outlived their task", n)
	}
}

func TestMemoryHogIsReportedAsSuch(t *testing.T) {
	e := setUp(t)
	e.start("i.hog.1", func(task *driver.Task) { task.Limit.MemoryBytes = 32 << 20 }, "hog")
	if st := e.wait("i.hog.1"); st.ExitCode != 137 || !st.OOM {
		t.Fatalf("ended as %+v, want exit code 137 for want of memory", st)
	}
}

func TestTerminals(t *testing.T) {
	e := setUp(t)
	e.start("i.main.1", nil, "sleep")
	var out bytes.Buffer
	code, err := e.d.Exec(e.ctx, "i.main.1", driver.ExecSpec{Args: []string{program, "tty"}, TTY: true, Rows: 33, Cols: 99}, driver.Streams{Stdout: &out})
	if err != nil || code != 0 || !strings.Contains(out.String(), "33 99") {
		t.Fatalf("a terminal gave %d, %q, %v", code, out.String(), err)
	}
	e.start("i.tty.1", func(task *driver.Task) { task.TTY = true }, "tty")
	if st := e.wait("i.tty.1"); st.ExitCode != 0 {
		t.Fatalf("ended as %+v", st)
	}
	if got := e.logs("i.tty.1"); !strings.HasSuffix(got, "\r\n") {
		t.Fatalf("the log of a terminal holds %q, want it as it was shown", got)
	}
}

func TestAKilledSupervisorLeavesNoOrphan(t *testing.T) {
	e := setUp(t)
	e.start("i.main.1", nil, "tree")
	e.waitFor("i.main.1", "ready")
	st, err := e.d.Status(e.ctx, "i.main.1")
	if err != nil {
		t.Fatal(err)
	}
	parent := parentOf(t, st.PID)
	if err := unix.Kill(parent, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if end := e.wait("i.main.1"); end.State != driver.Exited || end.Error == "" {
		t.Fatalf("ended as %+v, want an end that says why", end)
	}
	for alive(t, "tree")+alive(t, "sleep") > 0 {
		if e.ctx.Err() != nil {
			t.Fatal("the process outlived its supervisor")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func parentOf(t *testing.T, pid int) int {
	t.Helper()
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	parent, err := strconv.Atoi(strings.Fields(string(stat))[3])
	if err != nil {
		t.Fatal(err)
	}
	return parent
}

// A task that is waited for may end after its supervisor has taken the last of its output, and before anybody sees that
// the supervisor was killed.
func TestTheLastWordsOfATaskWithoutSupervisor(t *testing.T) {
	e := setUp(t)
	e.start("i.words.1", func(task *driver.Task) {
		task.Args = []string{"/bin/sh", "-c", "trap 'echo last; exit' USR1; echo first; while :; do sleep 0.02; done"}
	})
	e.waitFor("i.words.1", "first")
	st, err := e.d.Status(e.ctx, "i.words.1")
	if err != nil {
		t.Fatal(err)
	}
	parent := parentOf(t, st.PID)
	proc := "/proc/" + strconv.Itoa(st.PID)
	pipe, err := os.Readlink(proc + "/fd/1")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan driver.Status, 1)
	go func() {
		st, err := e.d.Wait(e.ctx, "i.words.1")
		if err != nil {
			t.Error(err)
		}
		ended <- st
	}()
	until := func(what string, done func() bool) {
		t.Helper()
		for !done() {
			if e.ctx.Err() != nil {
				t.Fatalf("never: %s", what)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	until("who waits holds the pipe", func() bool {
		fds, err := filepath.Glob("/proc/self/fd/*")
		return err == nil && slices.ContainsFunc(fds, func(fd string) bool { to, err := os.Readlink(fd); return err == nil && to == pipe })
	})
	if err := errors.Join(unix.Kill(parent, unix.SIGSTOP), unix.Kill(st.PID, unix.SIGUSR1)); err != nil {
		t.Fatal(err)
	}
	until("the task ends", func() bool { _, err := os.Readlink(proc + "/fd/1"); return err != nil })
	if err := unix.Kill(parent, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if st := <-ended; st.Error == "" {
		t.Errorf("ended as %+v, want an end that says why", st)
	}
	if got := e.logs("i.words.1"); got != "first\nlast\n" {
		t.Errorf("the log holds %q", got)
	}
}

// A task whose supervisor is killed neither goes on nor ends before an agent has kept what it printed.
func TestATaskWithoutSupervisorIsStopped(t *testing.T) {
	e := setUp(t)
	for id, user := range map[string]string{"i.root.1": "", "i.nobody.1": "65534"} {
		e.start(id, func(task *driver.Task) {
			task.User = user
			task.Args = []string{"/bin/sh", "-c", "echo first; sleep 0.3; echo second"}
		})
		e.waitFor(id, "first")
		st, err := e.d.Status(e.ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(parentOf(t, st.PID), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		time.Sleep(600 * time.Millisecond)
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(st.PID) + "/stat")
		if err != nil || !strings.Contains(string(stat), ") T ") {
			t.Errorf("%s is %q, %v, want it to be stopped", id, stat, err)
		}
		if st := e.wait(id); st.Error == "" {
			t.Errorf("%s ended as %+v, want an end that says why", id, st)
		}
		if got := e.logs(id); got != "first\n" {
			t.Errorf("%s printed %q", id, got)
		}
	}
}
