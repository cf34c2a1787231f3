package oci

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/cgroups"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// The programs are packages of Debian's, which `make test` installs.

func TestSuiteOfRunc(t *testing.T) { suite(t, "runc") }

// crun refuses hosts whose cgroups are of both versions with controllers in the second: there it is held
// to the suite in a place where the second is not mounted.
func TestSuiteOfCrun(t *testing.T) {
	unified, _ := os.ReadFile("/sys/fs/cgroup/unified/cgroup.controllers")
	if !cgroups.IsCgroup2HybridMode() || len(bytes.TrimSpace(unified)) == 0 || os.Geteuid() != 0 {
		suite(t, "crun")
		return
	}
	t.Logf("%s", elsewhere(t, "TestSuiteOfCrun", "umount /sys/fs/cgroup/unified"))
}

// elsewhere runs a test of this program in a mount namespace of its own, where a script was run before. Some part of it must pass.
func elsewhere(t *testing.T, test, script string) []byte {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-ec", script+` && exec "$0" -test.run="$1" -test.v -test.timeout=5m`, "/proc/"+strconv.Itoa(os.Getpid())+"/exe", "^"+strings.ReplaceAll(test, "/", "$/^")+"$")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if passed := strings.Count(string(out), "--- PASS"); err != nil || passed < 2 {
		t.Fatalf("%v, %d parts passed:\n%s", err, passed, out)
	}
	return out
}

// A host whose cgroups are of version 2, as this one has them: controllers that version 1 has taken are not in them, and what needs
// those is refused there.
func TestSuiteWithCgroupsOfVersion2(t *testing.T) {
	if cgroups.IsCgroup2UnifiedMode() || os.Geteuid() != 0 {
		suite(t, "")
		return
	}
	t.Logf("%s", elsewhere(t, "TestSuite/(ExitCodesAreReported|SignalsReachTheTask|KillEndsWhatDoesNotListen|LogsAreFollowed|ExecStreamsAndExitCode|ExecEndsWithItsCaller|"+
		"AttachSeesTheEnd|PausedTasksWait|ANewDriverFindsEverything|RemoveLeavesNothing|ManyAtOnce)", "umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup"))
}

func foreignTask(name string, change func(*driver.Task)) func(*driver.Task) {
	return func(t *driver.Task) {
		t.Runtime = name
		if change != nil {
			change(t)
		}
	}
}

func TestARuntimeIsFoundByNameOrRefused(t *testing.T) {
	e := setUp(t)
	for name, kind := range map[string]fault.Kind{"nonesuch": fault.Unsupported, "sh": fault.Unsupported, "../../bin/sh": fault.Unsupported} {
		task := e.task()
		task.ID, task.Args, task.Runtime = "i.none.1", []string{"/prog", "exit", "0"}, name
		if err := e.d.Start(e.ctx, task); !fault.Is(err, kind) || !strings.Contains(err.Error(), strconv.Quote(name)) || !strings.Contains(err.Error(), "runc") {
			t.Errorf("runtime %q: error is %v, want it refused by name, with those that there are", name, err)
		}
	}
	path, err := Runtimes{}.Find("runc")
	if err != nil {
		t.Fatal(err)
	}
	if v := VersionOf(path); !strings.HasPrefix(v, "1.") {
		t.Errorf("runc's version is %q", v)
	}
	own := Runtimes{"mine": path, "gone": "/nothing-here"}
	if all := own.All(); all["mine"] != path || all["gone"] != "" || all["runc"] == "" {
		t.Errorf("there are %v", all)
	}
	if _, err := own.Find("gone"); !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "/nothing-here") {
		t.Errorf("error is %v, want the path that is no program", err)
	}
}

func TestAForeignContainerIsConfinedLikeOurs(t *testing.T) {
	e := setUp(t)
	e.start("i.id.1", foreignTask("runc", func(task *driver.Task) {
		task.User = "app"
		task.Limit = model.Resources{MemoryBytes: 64 << 20, NanoCPUs: 5e8, Pids: 50}
		task.Ulimits = []model.Ulimit{{Name: "nofile", Soft: 77, Hard: 99}}
	}), "identity")
	if st := e.wait("i.id.1"); st.ExitCode != 0 {
		t.Fatalf("ended as %+v: %s", st, e.logs("i.id.1", all))
	}
	out := e.logs("i.id.1", all)
	for _, want := range []string{"pid 1", "uid 1000", "hostname box", "seccomp 2", "ignores 0000000000000000"} {
		if !strings.Contains(out, want) {
			t.Errorf("the container says %q, want %q in it", out, want)
		}
	}
	e.start("i.hog.1", foreignTask("runc", func(task *driver.Task) { task.Limit.MemoryBytes = 32 << 20 }), "hog")
	if st := e.wait("i.hog.1"); st.ExitCode != 137 || !st.OOM {
		t.Errorf("ended as %+v, want exit code 137 for want of memory", st)
	}
	e.start("i.tree.1", foreignTask("runc", nil), "tree")
	e.waitFor("i.tree.1", "ready")
	if st, err := e.d.Stats(e.ctx, "i.tree.1"); err != nil || st.Pids < 4 {
		t.Errorf("usage is %+v, %v; want four processes at least", st, err)
	}
	if list, err := e.d.Processes(e.ctx, "i.tree.1"); err != nil || len(list) < 4 {
		t.Errorf("processes are %+v, %v; want four at least", list, err)
	}
	if err := e.d.Kill(e.ctx, "i.tree.1"); err != nil {
		t.Fatal(err)
	}
	if st := e.wait("i.tree.1"); st.ExitCode != 137 {
		t.Errorf("ended as %+v, want 137", st)
	}
}

func TestForeignTerminals(t *testing.T) {
	e := setUp(t)
	e.start("i.main.1", foreignTask("runc", nil), "sleep")
	var out bytes.Buffer
	code, err := e.d.Exec(e.ctx, "i.main.1", driver.ExecSpec{Args: []string{"/prog", "tty"}, TTY: true, Rows: 33, Cols: 99}, driver.Streams{Stdout: &out})
	if err != nil || code != 0 || !strings.Contains(out.String(), "33 99") {
		t.Fatalf("a terminal gave %d, %q, %v", code, out.String(), err)
	}
	_, err = e.d.Exec(e.ctx, "i.main.1", driver.ExecSpec{Args: []string{"/nothing"}, TTY: true}, driver.Streams{Stdout: &out})
	if !fault.Is(err, fault.NotFound) {
		t.Errorf("error is %v, want that there is no such program", err)
	}
	e.start("i.tty.1", foreignTask("runc", func(task *driver.Task) { task.TTY = true }), "tty")
	if st := e.wait("i.tty.1"); st.ExitCode != 0 {
		t.Fatalf("ended as %+v", st)
	}
	if got := e.logs("i.tty.1", all); !strings.HasSuffix(got, "\r\n") {
		t.Fatalf("the log of a terminal holds %q, want it as it was shown", got)
	}
}

// What a container of another runtime leaves is taken away by whoever finds that its supervisor is gone.
func TestAForeignContainerIsBuried(t *testing.T) {
	e := setUp(t)
	e.start("i.main.1", foreignTask("runc", nil), "sleep")
	st, err := e.d.Status(e.ctx, "i.main.1")
	if err != nil {
		t.Fatal(err)
	}
	if err := exec.Command("kill", "-9", parentOf(t, st.PID)).Run(); err != nil {
		t.Fatal(err)
	}
	if end := e.wait("i.main.1"); end.State != driver.Exited || end.Error == "" {
		t.Fatalf("ended as %+v, want an end that says why", end)
	}
	for {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(st.PID) + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			break // gone, or dead and left to the machine's init process
		}
		if e.ctx.Err() != nil {
			t.Fatal("the container outlived its supervisor")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if left, err := filepath.Glob(filepath.Join(e.cfg.RunDir, "*"+".body")); err != nil || len(left) > 0 {
		t.Errorf("%v, %v: the runtime's state is left", left, err)
	}
}

// A task can enter the namespaces of another one, and see the host's instead of its own.
func TestNamespacesAreShared(t *testing.T) {
	for _, runtime := range []string{"", "runc"} {
		t.Run("by "+runtime, func(t *testing.T) {
			e := setUp(t)
			e.start("i.main.1", func(task *driver.Task) { task.Runtime = runtime }, "sleep")
			main, err := e.d.Status(e.ctx, "i.main.1")
			if err != nil {
				t.Fatal(err)
			}
			ns := func(pid, kind string) string {
				to, err := os.Readlink("/proc/" + pid + "/ns/" + kind)
				if err != nil {
					t.Fatal(err)
				}
				return to
			}
			pid := strconv.Itoa(main.PID)
			e.start("i.join.1", func(task *driver.Task) {
				task.Runtime, task.PIDNS, task.IPCNS = runtime, "/proc/"+pid+"/ns/pid", "/proc/"+pid+"/ns/ipc"
			}, "sleep")
			e.start("i.host.1", func(task *driver.Task) {
				task.Runtime, task.HostPIDs, task.HostIPC, task.HostNames, task.HostCgroups = runtime, true, true, true, true
			}, "tree")
			e.waitFor("i.host.1", "ready")
			for _, x := range []struct{ id, kind, as string }{
				{"i.join.1", "pid", pid}, {"i.join.1", "ipc", pid}, {"i.host.1", "pid", "self"}, {"i.host.1", "ipc", "self"}, {"i.host.1", "uts", "self"}, {"i.host.1", "cgroup", "self"},
			} {
				st, err := e.d.Status(e.ctx, x.id)
				if err != nil {
					t.Fatal(err)
				}
				if got, want := ns(strconv.Itoa(st.PID), x.kind), ns(x.as, x.kind); got != want {
					t.Errorf("%s has %s, want %s", x.id, got, want)
				}
				if own := ns(strconv.Itoa(main.PID), x.kind); own == ns("self", x.kind) {
					t.Errorf("a task that shares nothing has the host's %s", own)
				}
			}
			// Without a first process of its own the whole tree has to be found otherwise.
			list, err := e.d.Processes(e.ctx, "i.host.1")
			if err != nil || len(list) < 4 {
				t.Fatalf("processes are %+v, %v; want four at least", list, err)
			}
			if err := e.d.Kill(e.ctx, "i.host.1"); err != nil {
				t.Fatal(err)
			}
			for _, p := range list {
				stat, err := os.ReadFile("/proc/" + strconv.Itoa(p.PID) + "/stat")
				for err == nil && !strings.Contains(string(stat), ") Z ") && e.ctx.Err() == nil {
					time.Sleep(5 * time.Millisecond)
					stat, err = os.ReadFile("/proc/" + strconv.Itoa(p.PID) + "/stat")
				}
			}
			if e.ctx.Err() != nil {
				t.Error("a process outlived its task")
			}
			if err := e.d.Kill(e.ctx, "i.join.1"); err != nil {
				t.Fatal(err)
			}
			if st, err := e.d.Status(e.ctx, "i.main.1"); err != nil || st.State != driver.Running {
				t.Errorf("the task that was joined is %+v, %v; want it to go on", st, err)
			}
		})
	}
}

func TestTheKernelIsAskedForMore(t *testing.T) {
	e := setUp(t)
	swappiness := uint64(7)
	for _, runtime := range []string{"", "runc"} {
		id := "i.tuned" + runtime + ".1"
		e.start(id, func(task *driver.Task) {
			task.Runtime = runtime
			task.Limit.MemoryBytes = 64 << 20
			task.Tuning = &model.Tuning{CPUs: "0", MemoryNodes: "0", CPUShares: 333, SwapBytes: 96 << 20, DeviceRules: []string{"c 13:* rw"}, Paths: &model.SystemPaths{}}
			if !cgroups.IsCgroup2UnifiedMode() {
				task.Tuning.Swappiness = &swappiness
			}
		}, "sleep")
		found := map[string]string{}
		for _, dir := range e.cgroups() {
			for _, name := range []string{"cpuset.cpus", "cpu.shares", "memory.memsw.limit_in_bytes", "memory.swappiness", "devices.list"} {
				if data, err := os.ReadFile(filepath.Join(dir, id, name)); err == nil {
					found[name] = strings.TrimSpace(string(data))
				}
			}
		}
		if found["cpuset.cpus"] != "0" {
			t.Errorf("%s: cgroups say %v", runtime, found)
		}
		if cgroups.IsCgroup2UnifiedMode() {
			continue
		}
		if found["cpu.shares"] != "333" || found["memory.memsw.limit_in_bytes"] != strconv.Itoa(96<<20) || found["memory.swappiness"] != "7" ||
			!slices.Contains(strings.Split(found["devices.list"], "\n"), "c 13:* rw") {
			t.Errorf("%s: cgroups say %v", runtime, found)
		}
	}
	for _, bad := range []model.Tuning{{CPUs: "4000"}, {DeviceRules: []string{"x"}}, {IO: []model.IO{{Device: "/dev/null", ReadBytes: 1}}}} {
		task := e.task()
		task.ID, task.Args, task.Tuning = "i.bad.1", []string{"/prog", "exit", "0"}, &bad
		if err := e.d.Start(e.ctx, task); err == nil {
			t.Errorf("%+v was started", bad)
		}
		if err := e.d.Remove(e.ctx, "i.bad.1"); err != nil {
			t.Error(err)
		}
	}
}

func TestProfilesOfOnesOwn(t *testing.T) {
	e := setUp(t)
	for profile, code := range map[string]int{
		`{"defaultAction":"SCMP_ACT_ALLOW"}`: 0,
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["exit_group"],"action":"SCMP_ACT_KILL_PROCESS"}]}`: 128 + int(syscall.SIGSYS),
	} {
		for _, runtime := range []string{"", "runc"} {
			id := "i.s" + strconv.Itoa(code) + runtime + ".1"
			e.start(id, func(task *driver.Task) { task.Runtime, task.SecurityOpts = runtime, []string{"seccomp=" + profile} }, "exit", "0")
			if st := e.wait(id); st.ExitCode != code {
				t.Errorf("%s under %s ended as %+v, want %d", runtime, profile, st, code)
			}
		}
	}
	for opt, kind := range map[string]fault.Kind{"seccomp={": fault.Invalid, "apparmor=nonesuch": fault.Unsupported, "label=x": fault.Unsupported} {
		task := e.task()
		task.ID, task.Args, task.SecurityOpts = "i.bad.1", []string{"/prog", "exit", "0"}, []string{opt}
		if err := e.d.Start(e.ctx, task); err == nil {
			t.Errorf("%s was started", opt)
		} else if opt != "apparmor=nonesuch" && !fault.Is(err, kind) {
			t.Errorf("%s: error is %v, want one of the kind %s", opt, err, kind)
		}
		if err := e.d.Remove(e.ctx, "i.bad.1"); err != nil {
			t.Error(err)
		}
	}
}
