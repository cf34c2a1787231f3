package oci

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/supervisor"
	"github.com/tutti-run/tutti/internal/model"
)

// likeRunc are tasks whose containers are made by steps, and are to be what the reference makes of them.
var likeRunc = map[string]func(e *env, t *driver.Task){
	"as it comes": func(e *env, t *driver.Task) {},
	"a user": func(e *env, t *driver.Task) {
		t.User, t.Groups, t.WorkingDir = "app", []string{"20", "30"}, "/home/app/made"
		t.Ulimits = []model.Ulimit{{Name: "nofile", Soft: 77, Hard: 99}, {Name: "core", Soft: 0, Hard: 0}}
		t.SecurityOpts = []string{"no-new-privileges"}
		t.Env = append(t.Env, "A=1", "HOME=", "A=2")
		t.OOMScoreAdjust = 300
	},
	"all privileges": func(e *env, t *driver.Task) {
		t.Privileged = true
		t.CapDrop = []string{"SYS_RESOURCE"} // which the host of these tests may lack itself, where runc gives up
	},
	"few privileges": func(e *env, t *driver.Task) {
		t.CapDrop, t.CapAdd, t.ReadOnlyRoot = []string{"ALL"}, []string{"NET_BIND_SERVICE", "sys_time"}, true
		t.SecurityOpts = []string{"seccomp=unconfined"}
		t.Sysctls = map[string]string{"kernel.shmmax": "1048576"}
		t.Limit = model.Resources{MemoryBytes: 64 << 20, NanoCPUs: 5e8, Pids: 50}
	},
	"mounts": func(e *env, t *driver.Task) {
		dir := filepath.Join(e.t.TempDir(), "shown")
		for _, d := range []string{dir, filepath.Join(dir, "sub")} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				e.t.Fatal(err)
			}
		}
		writeFile(e.t, filepath.Join(dir, "file"), "x", 0o640)
		if err := os.Symlink("/tmp", filepath.Join(e.root, "link")); err != nil && !os.IsExist(err) {
			e.t.Fatal(err)
		}
		t.Mounts = []driver.Mount{
			{Type: "bind", Source: dir, Target: "/data"},
			{Type: "bind", Source: dir, Target: "/some/where/else", ReadOnly: true, Propagation: "rslave"},
			{Type: "bind", Source: dir, Target: "/alone", ReadOnly: true, Recursion: model.BindAlone},
			{Type: "bind", Source: dir, Target: "/wholly", ReadOnly: true, Recursion: model.BindTreeReadOnly},
			{Type: "bind", Source: filepath.Join(dir, "file"), Target: "/etc/one.conf", ReadOnly: true},
			{Type: "bind", Source: dir, Target: "/link/by"},
			{Type: "bind", Source: filepath.Join(dir, "file"), Target: "/some/new/place/one.conf"},
			{Type: "tmpfs", Target: "/scratch", SizeBytes: 1 << 20, Mode: 0o711},
			{Type: "tmpfs", Target: "/scratch/ro", ReadOnly: true},
			{Type: "tmpfs", Target: "/run", Options: "exec,uid=5"},
		}
		t.ShmBytes = 1 << 20
		t.Devices = []model.Device{{Host: "/dev/zero", Container: "/dev/more/nothing", Permissions: "r"}}
	},
	"the host's": func(e *env, t *driver.Task) { t.HostIPC, t.HostNames, t.HostCgroups = true, true, true },
}

// ways are by whom the first process of a container is begun.
const (
	bySupervisor = "the supervisor"
	before       = "what is before the supervisor"
	byRunc       = "runc"
)

func TestWhatStepsMakeIsWhatRuncMakes(t *testing.T) {
	for name, change := range likeRunc {
		t.Run(name, func(t *testing.T) {
			said := map[string][]string{}
			for _, way := range []string{bySupervisor, before, byRunc} {
				e := setUp(t)
				const id = "i.one.1"
				runtime := ""
				if way == byRunc {
					runtime = "runc"
				}
				what := []string{"describe", "/etc", "/tmp", "/data", "/some", "/home", "/run", "/scratch"}
				describe := func(id string) {
					e.start(id, foreignTask(runtime, func(task *driver.Task) { change(e, task) }), what...)
					if st := e.wait(id); st.ExitCode != 0 {
						t.Fatalf("by %s it ended as %+v: %s", way, st, e.logs(id, all))
					}
				}
				begun := false
				switch first := e.d.First; way {
				case bySupervisor:
					e.d.First = nil
				case before:
					describe("i.two.1") // the first has its filter compiled, which supervisors do
					e.d.First = func(t *driver.Task, dir, reaper string, files [3]int) *supervisor.First {
						f := first(t, dir, reaper, files)
						begun = f != nil
						return f
					}
				}
				describe(id)
				lines := strings.Split(e.logs(id, all), "\n")
				// What is executed later is to be the same, too, where steps do it.
				if later := setUp(t); name != "all privileges" {
					later.start(id, foreignTask(runtime, func(task *driver.Task) { change(later, task) }), "sleep")
					var out bytes.Buffer
					spec := driver.ExecSpec{Args: append([]string{"/prog"}, what...), Env: []string{"A=3"}, WorkingDir: "/tmp"}
					if code, err := later.d.Exec(later.ctx, id, spec, driver.Streams{Stdout: &out, Stderr: &out}); code != 0 || err != nil {
						t.Fatalf("by %s one executed later ended with %d, %v: %s", way, code, err, &out)
					}
					for line := range strings.SplitSeq(out.String(), "\n") {
						// By numbers one sees what else was begun before, and of the files that it may open runc raises how many.
						if !strings.HasPrefix(line, "NS") && !strings.HasPrefix(line, "Max open files ") {
							lines = append(lines, "later: "+line)
						}
					}
				}
				said[way] = slices.DeleteFunc(lines, func(line string) bool { return strings.Contains(line, "interface ") }) // the host's come and go
				if begun != (way == before) {
					t.Errorf("by %s: begun beforehand: %v", way, begun)
				}
				e.madeBySteps(change)
			}
			if len(said[byRunc]) < 60 {
				t.Fatalf("it says little: %q", said[byRunc])
			}
			for _, way := range []string{bySupervisor, before} {
				for _, line := range said[way] {
					if !slices.Contains(said[byRunc], line) {
						t.Errorf("only by %s: %s", way, line)
					}
				}
				for _, line := range said[byRunc] {
					if !slices.Contains(said[way], line) {
						t.Errorf("not by %s: %s", way, line)
					}
				}
			}
		})
	}
}

// madeBySteps checks that a supervisor would have no need of libcontainer.
func (e *env) madeBySteps(change func(e *env, t *driver.Task)) {
	e.t.Helper()
	task := e.task()
	task.ID, task.Args = "i.way.1", []string{"/prog"}
	change(e, &task)
	task.Filters = e.cfg.FilterDir
	task.Cgroups, _ = hostCgroups()
	if b, err := newBody(&task, filepath.Join(e.cfg.RunDir, "body"), ""); err != nil {
		e.t.Error(err)
	} else if _, ok := b.(*direct); !ok {
		e.t.Errorf("it is made by %T", b)
	}
}

// TestWhoTracesIsNotAmongTheSupervisorsOwn holds that a process that shares its supervisor's memory is begun only in containers of which nothing
// may look into it: for others libcontainer is let know of the container.
func TestWhoTracesIsNotAmongTheSupervisorsOwn(t *testing.T) {
	e := setUp(t)
	known := func() int {
		files, err := filepath.Glob(filepath.Join(e.cfg.RunDir, "*", containerID, "state.json"))
		if err != nil {
			t.Fatal(err)
		}
		return len(files)
	}
	execute := func(id string, privileged bool, want int) {
		t.Helper()
		code, err := e.d.Exec(e.ctx, id, driver.ExecSpec{Args: []string{"/prog", "exit", "3"}, Privileged: privileged}, driver.Streams{})
		if code != 3 || err != nil || known() != want {
			t.Errorf("what is executed in %s ended with %d, %v; libcontainer knows %d containers, want %d", id, code, err, known(), want)
		}
	}
	e.start("i.plain.1", nil, "sleep")
	e.start("i.tracer.1", func(task *driver.Task) { task.CapAdd = []string{"SYS_PTRACE"} }, "sleep")
	execute("i.plain.1", false, 0)
	execute("i.tracer.1", false, 1)
	execute("i.plain.1", true, 2)
	execute("i.plain.1", false, 2)
}
