package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runc/libcontainer/seccomp"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/cgroup"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/drivertest"
	"github.com/tutti-run/tutti/internal/driver/supervisor"
	"github.com/tutti-run/tutti/internal/driver/tasklog"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

func TestMain(m *testing.M) {
	if Reexec(os.Args) {
		return
	}
	os.Exit(run(m))
}

// program is testdata/prog, linked statically: what the tests run in containers.
var program string

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "tutti-oci-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "prog")
	cmd := exec.Command("go", "build", "-o", program, "./testdata/prog")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the test program: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// rootfs builds a root file system whose only program is testdata/prog.
func rootfs(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	if !seccomp.Enabled {
		t.Skip("containers need the build tag seccomp")
	}
	root := filepath.Join(t.TempDir(), "rootfs")
	for _, dir := range []string{"proc", "dev", "sys", "tmp", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(root, "prog"), string(data), 0o755)
	writeFile(t, filepath.Join(root, "etc/passwd"), "root:x:0:0::/:\napp:x:1000:1000::/home/app:\n", 0o644)
	return root
}

func writeFile(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

type env struct {
	t      *testing.T
	d      *supervisor.Driver
	cfg    Config
	root   string
	cgroup string
	ctx    context.Context
}

func setUp(t *testing.T) *env {
	root := rootfs(t)
	run, err := os.MkdirTemp("", "tt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	cfg := Config{StateDir: filepath.Join(t.TempDir(), "state"), FilterDir: filepath.Join(run, "filters"), RunDir: run, Log: slog.New(slog.DiscardHandler)}
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	e := &env{t: t, d: d, cfg: cfg, root: root, ctx: ctx, cgroup: "/tutti-test-" + filepath.Base(run)}
	t.Cleanup(func() {
		if left := e.cgroups(); len(left) > 0 {
			t.Errorf("cgroups are left: %v", left)
			if err := cgroup.Remove(e.cgroup); err != nil {
				t.Error(err)
			}
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

// dir is where a run is kept.
func (e *env) dir(id string) string { return filepath.Join(e.cfg.StateDir, id) }

// cgroups returns where the tests' cgroup exists.
func (e *env) cgroups() (found []string) {
	roots, err := cgroup.Hierarchies()
	if err != nil {
		e.t.Fatal(err)
	}
	for _, root := range roots {
		if _, err := os.Stat(filepath.Join(root, e.cgroup)); err == nil {
			found = append(found, filepath.Join(root, e.cgroup))
		}
	}
	return found
}

func (e *env) task() driver.Task {
	return driver.Task{Rootfs: e.root, Env: []string{"PATH=/"}, Hostname: "box", CgroupParent: e.cgroup}
}

// The tests' Cleanup also proves, after each part of the suite, that no cgroup was left.
func TestSuite(t *testing.T) { suite(t, "") }

// suite holds a runtime to what drivers promise.
func suite(t *testing.T, runtime string) {
	drivertest.Run(t, func(t *testing.T) *drivertest.Host { return setUp(t).host(runtime) })
}

func (e *env) host(runtime string) *drivertest.Host {
	return &drivertest.Host{
		Driver: e.d,
		Reopen: func() driver.Driver {
			d, err := New(e.cfg)
			if err != nil {
				e.t.Fatal(err)
			}
			return d
		},
		Task: func() driver.Task {
			task := e.task()
			task.Runtime = runtime
			return task
		},
	}
}

func (e *env) start(id string, change func(*driver.Task), args ...string) {
	e.t.Helper()
	task := e.task()
	task.ID, task.Args = id, append([]string{"/prog"}, args...)
	if change != nil {
		change(&task)
	}
	if err := e.d.Start(e.ctx, task); err != nil {
		e.t.Fatalf("start %s: %v", id, err)
	}
}

func (e *env) wait(id string) driver.Status {
	e.t.Helper()
	st, err := e.d.Wait(e.ctx, id)
	if err != nil {
		e.t.Fatalf("wait for %s: %v", id, err)
	}
	return st
}

func (e *env) logs(id string, o driver.LogOptions) string {
	e.t.Helper()
	var b strings.Builder
	if err := e.d.Logs(e.ctx, id, o, func(l driver.LogEntry) error { b.Write(l.Line); return nil }); err != nil {
		e.t.Fatalf("logs of %s: %v", id, err)
	}
	return b.String()
}

var all = driver.LogOptions{Tail: -1}

func TestIsolationUserAndLimits(t *testing.T) {
	e := setUp(t)
	e.start("i.id.1", func(task *driver.Task) {
		task.User = "app"
		task.Limit = model.Resources{MemoryBytes: 64 << 20, NanoCPUs: 5e8, Pids: 50}
	}, "identity")
	if st := e.wait("i.id.1"); st.ExitCode != 0 {
		t.Fatalf("ended as %+v: %s", st, e.logs("i.id.1", all))
	}
	out := e.logs("i.id.1", all)
	for _, want := range []string{"pid 1", "uid 1000", "hostname box", "seccomp 2", "ignores 0000000000000000"} {
		if !strings.Contains(out, want) {
			t.Errorf("the container says %q, want %q in it", out, want)
		}
	}
}

func TestMemoryHogIsReportedAsSuch(t *testing.T) {
	e := setUp(t)
	e.start("i.hog.1", func(task *driver.Task) { task.Limit.MemoryBytes = 32 << 20 }, "hog")
	if st := e.wait("i.hog.1"); st.ExitCode != 137 || !st.OOM {
		t.Fatalf("ended as %+v, want exit code 137 for want of memory", st)
	}
}

func TestKillEndsTheWholeTree(t *testing.T) {
	e := setUp(t)
	e.start("i.tree.1", nil, "tree")
	e.waitFor("i.tree.1", "ready")
	if st, err := e.d.Stats(e.ctx, "i.tree.1"); err != nil || st.Pids < 4 {
		t.Fatalf("usage is %+v, %v; want four processes at least", st, err)
	}
	if err := e.d.Kill(e.ctx, "i.tree.1"); err != nil {
		t.Fatal(err)
	}
	if st := e.wait("i.tree.1"); st.ExitCode != 137 {
		t.Fatalf("ended as %+v, want 137", st)
	}
}

func (e *env) waitFor(id, text string) {
	e.t.Helper()
	for range 500 {
		if strings.Contains(e.logs(id, all), text) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	st, err := e.d.Status(e.ctx, id)
	e.t.Fatalf("%s never said %q but %q; it is %+v, %v", id, text, e.logs(id, all), st, err)
}

func TestTerminals(t *testing.T) {
	e := setUp(t)
	e.start("i.main.1", nil, "sleep")
	var out bytes.Buffer
	code, err := e.d.Exec(e.ctx, "i.main.1", driver.ExecSpec{Args: []string{"/prog", "tty"}, TTY: true, Rows: 33, Cols: 99}, driver.Streams{Stdout: &out})
	if err != nil || code != 0 || !strings.Contains(out.String(), "33 99") {
		t.Fatalf("a terminal gave %d, %q, %v", code, out.String(), err)
	}
	e.start("i.tty.1", func(task *driver.Task) { task.TTY = true }, "tty")
	if st := e.wait("i.tty.1"); st.ExitCode != 0 {
		t.Fatalf("ended as %+v", st)
	}
	if got := e.logs("i.tty.1", all); !strings.HasSuffix(got, "\r\n") {
		t.Fatalf("the log of a terminal holds %q, want it as it was shown", got)
	}
}

// What was executed is gone when its caller is, and a caller who failed leaves nothing open in
// the supervisor, which lives on.
func TestExecLeavesNothingBehind(t *testing.T) {
	e := setUp(t)
	e.start("i.main.1", nil, "sleep")
	count := func() string {
		var out bytes.Buffer
		if code, err := e.d.Exec(e.ctx, "i.main.1", driver.ExecSpec{Args: []string{"/prog", "processes"}}, driver.Streams{Stdout: &out}); err != nil || code != 0 {
			t.Fatalf("count processes: %d, %v", code, err)
		}
		return strings.TrimSpace(out.String())
	}
	ctx, cancel := context.WithCancel(e.ctx)
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := e.d.Exec(ctx, "i.main.1", driver.ExecSpec{Args: []string{"/prog", "sleep"}}, driver.Streams{Stdout: w})
		done <- err
	}()
	if _, err := r.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if n := count(); n != "3" {
		t.Fatalf("%s processes run, want the task, the one executed, and the one that counts", n)
	}
	cancel()
	if err := <-done; err == nil {
		t.Fatal("exec ended well without its caller")
	}
	for count() != "2" {
		if e.ctx.Err() != nil {
			t.Fatal("what was executed outlived its caller")
		}
	}
	st, err := e.d.Status(e.ctx, "i.main.1")
	if err != nil {
		t.Fatal(err)
	}
	fds := func() int {
		entries, err := os.ReadDir("/proc/" + parentOf(t, st.PID) + "/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := fds()
	for range 10 {
		_, err := e.d.Exec(e.ctx, "i.main.1", driver.ExecSpec{Args: []string{"/nothing"}}, driver.Streams{Stdin: strings.NewReader("x")})
		if !fault.Is(err, fault.NotFound) {
			t.Fatalf("error is %v, want not found", err)
		}
	}
	for fds() > before {
		if e.ctx.Err() != nil {
			t.Fatalf("the supervisor holds %d descriptors after ten failures, %d before", fds(), before)
		}
		time.Sleep(5 * time.Millisecond)
	}
	// Those who look after what failures left behind leave the task to who waits for it.
	if err := e.d.Kill(e.ctx, "i.main.1"); err != nil {
		t.Fatal(err)
	}
	if st := e.wait("i.main.1"); st.ExitCode != 137 {
		t.Errorf("ended as %+v, want 137", st)
	}
}

// Docker images may have absolute links where libraries expect files.
func TestUsersAreLookedUpAsTheImageMeansThem(t *testing.T) {
	e := setUp(t)
	if err := os.Mkdir(filepath.Join(e.root, "store"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(e.root, "etc/passwd"), filepath.Join(e.root, "store/users")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/store/users", filepath.Join(e.root, "etc/passwd")); err != nil {
		t.Fatal(err)
	}
	e.start("i.id.1", func(task *driver.Task) { task.User = "app" }, "identity")
	e.wait("i.id.1")
	if out := e.logs("i.id.1", all); !strings.Contains(out, "uid 1000") {
		t.Fatalf("the container says %q, want uid 1000 in it", out)
	}
	outside := filepath.Join(t.TempDir(), "passwd")
	writeFile(t, outside, "app:x:4711:4711::/:\n", 0o644)
	if err := os.Remove(filepath.Join(e.root, "etc/passwd")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../../../../../.."+outside, filepath.Join(e.root, "etc/passwd")); err != nil {
		t.Fatal(err)
	}
	task := e.task()
	task.ID, task.Args, task.User = "i.id.2", []string{"/prog", "identity"}, "app"
	if err := e.d.Start(e.ctx, task); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), `"app"`) {
		t.Fatalf("start gave %v, want that the image has no such user", err)
	}
}

// A crash of the machine can leave anything that was just being written empty.
func TestADamagedRunIsOneThatEnded(t *testing.T) {
	e := setUp(t)
	for _, id := range []string{"i.bare.1", "i.cut.1", "i.begun.1"} {
		if err := os.MkdirAll(e.dir(id), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []string{"i.cut.1", "i.begun.1"} {
		writeFile(t, filepath.Join(e.dir(id), "task.json"), `{"ID":"`+id+`"}`, 0o600)
	}
	writeFile(t, filepath.Join(e.dir("i.cut.1"), "status.json"), "", 0o600)
	list, err := e.d.List(e.ctx)
	if err != nil || len(list) != 2 {
		t.Fatalf("list is %+v, %v; want the two that were to run", list, err)
	}
	for _, st := range list {
		if st.State != driver.Exited || st.Error == "" || st.ID == "" {
			t.Errorf("a run that was cut short is %+v, want it ended, with a reason", st)
		}
	}
	if _, err := os.Stat(e.dir("i.bare.1")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory of a run that never was is still there: %v", err)
	}
}

// addLibraries gives an image what a dynamically linked test binary needs to run in it.
func addLibraries(t *testing.T, root, exe string) {
	t.Helper()
	out, err := exec.Command("ldd", exe).Output()
	if err != nil {
		t.Skipf("the libraries of the test binary cannot be told: %v", err)
	}
	for _, field := range strings.Fields(string(out)) {
		if !filepath.IsAbs(field) {
			continue
		}
		data, err := os.ReadFile(field)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(root, filepath.Dir(field)), 0o755); err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(root, field), string(data), 0o755)
	}
}

func TestInitReapsAndPassesOn(t *testing.T) {
	e := setUp(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if linker, err := interpreter(exe); err != nil {
		t.Fatal(err)
	} else if linker != "" {
		task := e.task()
		task.ID, task.Args, task.Init = "i.lib.1", []string{"/prog", "exit", "0"}, true
		if err := e.d.Start(e.ctx, task); !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), linker) {
			t.Fatalf("start gave %v, want that the image lacks %s", err, linker)
		}
		addLibraries(t, e.root, exe)
	}
	e.start("i.main.1", func(task *driver.Task) { task.Init = true }, "echo")
	e.waitFor("i.main.1", "ready")
	var out bytes.Buffer
	if _, err := e.d.Exec(e.ctx, "i.main.1", driver.ExecSpec{Args: []string{"/prog", "orphan"}}, driver.Streams{Stdout: &out}); err != nil {
		t.Fatal(err)
	}
	for {
		out.Reset()
		if _, err := e.d.Exec(e.ctx, "i.main.1", driver.ExecSpec{Args: []string{"/prog", "processes"}}, driver.Streams{Stdout: &out}); err != nil {
			t.Fatal(err)
		}
		if strings.TrimSpace(out.String()) == "3" { // init, the task, the one that counts
			break
		}
	}
	if err := e.d.Signal(e.ctx, "i.main.1", int(syscall.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	if st := e.wait("i.main.1"); st.ExitCode != 42 {
		t.Fatalf("ended as %+v, want the task's own exit code 42", st)
	}
}

// parentOf returns the process ID of a process's parent: of a container's, its supervisor.
func parentOf(t *testing.T, pid int) string {
	t.Helper()
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(stat))[3]
}

func TestAKilledSupervisorLeavesNoOrphan(t *testing.T) {
	e := setUp(t)
	e.start("i.main.1", nil, "sleep")
	st, err := e.d.Status(e.ctx, "i.main.1")
	if err != nil {
		t.Fatal(err)
	}
	if err := exec.Command("kill", "-9", parentOf(t, st.PID)).Run(); err != nil {
		t.Fatal(err)
	}
	end := e.wait("i.main.1")
	if end.State != driver.Exited || end.Error == "" {
		t.Fatalf("ended as %+v, want an end that says why", end)
	}
	for range 100 {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(st.PID) + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return // gone, or dead and left to the machine's init process
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the container outlived its supervisor")
}

// TestNothingIsLostOfATaskWhoseSupervisorIsKilled while no agent is there either: it neither goes on nor ends, and what
// it has printed is kept.
func TestNothingIsLostOfATaskWhoseSupervisorIsKilled(t *testing.T) {
	e := setUpWatch(t)
	e.lease(time.Hour)
	const ticks = 60
	for id, change := range map[string]func(*driver.Task){
		"i.watched.1": nil,
		"i.leased.1":  leased,
		"i.user.1":    func(task *driver.Task) { task.User = "1000:1000" },
		"i.nnp.1":     func(task *driver.Task) { task.SecurityOpts = []string{"no-new-privileges"} },
	} {
		t.Run(id, func(t *testing.T) {
			e.start(id, change, "tick", strconv.Itoa(ticks))
			e.await("some lines", func() bool { return e.lines(id) >= 3 })
			st, err := e.d.Status(e.ctx, id)
			if err != nil {
				t.Fatal(err)
			}
			supervisor, err := strconv.Atoi(parentOf(t, st.PID))
			if err != nil {
				t.Fatal(err)
			}
			proc := "/proc/" + strconv.Itoa(st.PID)
			pipe, err := os.OpenFile(proc+"/fd/1", os.O_RDONLY|unix.O_NONBLOCK, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer pipe.Close()
			unread := func() int {
				n, err := unix.IoctlGetInt(int(pipe.Fd()), unix.TIOCINQ)
				if err != nil {
					t.Fatal(err)
				}
				return n / len("tick\n")
			}
			if err := unix.Kill(supervisor, unix.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			e.await("something that nobody has read", func() bool { return unread() > 0 })
			if err := unix.Kill(supervisor, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			e.await("the task stops", func() bool {
				stat, err := os.ReadFile(proc + "/stat")
				return err == nil && strings.Contains(string(stat), ") T ")
			})
			path, _ := tasklog.File(e.dir(id), nil)
			written, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			want := bytes.Count(written, []byte("\n")) + unread()
			time.Sleep(ticks * 10 * time.Millisecond) // it would have ended by itself
			st, err = e.d.Status(e.ctx, id)
			if err != nil || st.State != driver.Exited || st.Error == "" {
				t.Errorf("ended as %+v, %v, want an end that says why", st, err)
			}
			if got := e.lines(id); got != want || want >= ticks {
				t.Errorf("%d lines of %d are kept; it was to print %d", got, want, ticks)
			}
		})
	}
}
