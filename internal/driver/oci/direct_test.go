package oci

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tutti-run/tutti/internal/driver"
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

func TestWhatStepsMakeIsWhatRuncMakes(t *testing.T) {
	for name, change := range likeRunc {
		t.Run(name, func(t *testing.T) {
			said := map[string][]string{}
			for _, runtime := range []string{"", "runc"} {
				e := setUp(t)
				const id = "i.one.1"
				e.start(id, foreignTask(runtime, func(task *driver.Task) { change(e, task) }), "describe", "/etc", "/tmp", "/data", "/some", "/home", "/run", "/scratch")
				if st := e.wait(id); st.ExitCode != 0 {
					t.Fatalf("by %q it ended as %+v: %s", runtime, st, e.logs(id, all))
				}
				said[runtime] = slices.Collect(strings.SplitSeq(e.logs(id, all), "\n"))
			}
			e := setUp(t)
			task := e.task()
			task.ID, task.Args = "i.way.1", []string{"/prog"}
			change(e, &task)
			task.Cgroups, _ = hostCgroups()
			if b, err := newBody(&task, e.cfg.RunDir, ""); err != nil {
				t.Error(err)
			} else if _, ok := b.(*direct); !ok {
				t.Errorf("it is made by %T", b)
			}
			if len(said[""]) < 60 {
				t.Fatalf("it says little: %q", said[""])
			}
			for _, line := range said[""] {
				if !slices.Contains(said["runc"], line) {
					t.Errorf("only by steps: %s", line)
				}
			}
			for _, line := range said["runc"] {
				if !slices.Contains(said[""], line) {
					t.Errorf("only by runc:  %s", line)
				}
			}
		})
	}
}
