package oci

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

func TestMain(m *testing.M) {
	if Reexec(os.Args) {
		return
	}
	os.Exit(m.Run())
}

// rootfs builds a root file system whose only program is testdata/prog, linked statically.
func rootfs(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	root := filepath.Join(t.TempDir(), "rootfs")
	for _, dir := range []string{"proc", "dev", "sys", "tmp", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "build", "-o", filepath.Join(root, "prog"), "./testdata/prog")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the test program: %v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0::/:\napp:x:1000:1000::/home/app:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return root
}

type env struct {
	t    *testing.T
	d    *Driver
	cfg  Config
	root string
	ctx  context.Context
}

func setUp(t *testing.T) *env {
	root := rootfs(t)
	run, err := os.MkdirTemp("", "tt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	cfg := Config{StateDir: filepath.Join(t.TempDir(), "state"), RunDir: run, Log: slog.New(slog.DiscardHandler)}
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	e := &env{t: t, d: d, cfg: cfg, root: root, ctx: ctx}
	t.Cleanup(func() {
		parents, _ := filepath.Glob("/sys/fs/cgroup/*/tutti-test")
		for _, dir := range parents {
			os.Remove(dir)
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

func (e *env) start(id string, change func(*driver.Task), args ...string) {
	e.t.Helper()
	task := driver.Task{
		ID: id, Rootfs: e.root, Args: append([]string{"/prog"}, args...), Env: []string{"PATH=/"},
		Hostname: "box", CgroupParent: "/tutti-test",
	}
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

func TestExitCodesAndOutputAreKept(t *testing.T) {
	e := setUp(t)
	e.start("i.a.1", nil, "lines", "1000", "7")
	if st := e.wait("i.a.1"); st.ExitCode != 7 || st.State != driver.Exited || st.Finished.IsZero() {
		t.Fatalf("ended as %+v, want exit code 7", st)
	}
	got := strings.Fields(e.logs("i.a.1", all))
	if len(got) != 1000 || got[0] != "0" || got[999] != "999" {
		t.Fatalf("%d lines were kept, want all 1000 in order", len(got))
	}
	if tail := e.logs("i.a.1", driver.LogOptions{Tail: 2}); tail != "998\n999\n" {
		t.Fatalf("the last two lines are %q", tail)
	}
}

func TestWhatDoesNotExistIsNamed(t *testing.T) {
	e := setUp(t)
	err := e.d.Start(e.ctx, driver.Task{ID: "i.none.1", Rootfs: e.root, Args: []string{"nothing-here"}, Env: []string{"PATH=/"}, CgroupParent: "/tutti-test"})
	if !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), `"nothing-here"`) {
		t.Fatalf("error is %v, want one that names the executable", err)
	}
	if st := e.wait("i.none.1"); st.ExitCode != 127 {
		t.Fatalf("exit code %d, want 127", st.ExitCode)
	}
	if _, err := e.d.Status(e.ctx, "unknown"); !fault.Is(err, fault.NotFound) {
		t.Fatalf("error is %v, want not found", err)
	}
}

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
	for _, want := range []string{"pid 1", "uid 1000", "hostname box", "seccomp 2"} {
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

func TestStopSignalKillAndTree(t *testing.T) {
	e := setUp(t)
	e.start("i.trap.1", nil, "trap")
	e.waitFor("i.trap.1", "ready")
	if err := e.d.Signal(e.ctx, "i.trap.1", int(syscall.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	if st := e.wait("i.trap.1"); st.ExitCode != 42 {
		t.Fatalf("ended as %+v, want the trap's exit code 42", st)
	}
	e.start("i.tree.1", nil, "tree")
	e.waitFor("i.tree.1", "ready")
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
	e.t.Fatalf("%s never said %q", id, text)
}

func TestExecWithStreamsAndTerminal(t *testing.T) {
	e := setUp(t)
	e.start("i.main.1", nil, "sleep")
	var out, errs bytes.Buffer
	code, err := e.d.Exec(e.ctx, "i.main.1", driver.ExecSpec{Args: []string{"/prog", "cat"}, Env: []string{"X=1"}},
		driver.Streams{Stdin: strings.NewReader("hello"), Stdout: &out, Stderr: &errs})
	if err != nil || code != 3 || out.String() != "hello" || errs.String() != "bye" {
		t.Fatalf("exec gave %d, %q, %q, %v", code, out.String(), errs.String(), err)
	}
	out.Reset()
	code, err = e.d.Exec(e.ctx, "i.main.1", driver.ExecSpec{Args: []string{"/prog", "tty"}, TTY: true, Rows: 33, Cols: 99}, driver.Streams{Stdout: &out})
	if err != nil || code != 0 || !strings.Contains(out.String(), "33 99") {
		t.Fatalf("a terminal gave %d, %q, %v", code, out.String(), err)
	}
}

func TestANewDriverFindsEverything(t *testing.T) {
	e := setUp(t)
	e.start("i.main.1", nil, "sleep")
	again, err := New(e.cfg)
	if err != nil {
		t.Fatal(err)
	}
	list, err := again.List(e.ctx)
	if err != nil || len(list) != 1 || list[0].State != driver.Running {
		t.Fatalf("list is %+v, %v", list, err)
	}
	if err := again.Kill(e.ctx, "i.main.1"); err != nil {
		t.Fatal(err)
	}
	if st, err := again.Wait(e.ctx, "i.main.1"); err != nil || st.ExitCode != 137 {
		t.Fatalf("ended as %+v, %v", st, err)
	}
}

func TestAKilledSupervisorLeavesNoOrphan(t *testing.T) {
	e := setUp(t)
	e.start("i.main.1", nil, "sleep")
	st, err := e.d.Status(e.ctx, "i.main.1")
	if err != nil {
		t.Fatal(err)
	}
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(st.PID) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	supervisor := strings.Fields(string(stat))[3]
	if err := exec.Command("kill", "-9", supervisor).Run(); err != nil {
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
