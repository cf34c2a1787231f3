package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/systemd"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/model"
)

// inSystemd is set for a test that runs where systemd does.
const inSystemd = "TUTTI_TEST_IN_SYSTEMD"

// bootSystemd has systemd be the first process of namespaces of its own, with cgroups below those of the test. It takes their name.
const bootSystemd = `set -e
for dir in /sys/fs/cgroup/*/; do
	if [ -f "$dir/cgroup.procs" ]; then
		mkdir "$dir/$0"
		for file in cpuset.cpus cpuset.mems; do
			if [ -f "$dir/$file" ]; then cat "$dir/$file" >"$dir/$0/$file"; fi
		done
		echo $$ >"$dir/$0/cgroup.procs"
	fi
done
exec unshare --mount --pid --fork --uts --ipc --cgroup --kill-child bash -c '
	set -e
	mount --make-rprivate /
	mount -t proc proc /proc
	mount -t tmpfs tmpfs /run
	all=$(awk "\$3 == \"cgroup\" || \$3 == \"cgroup2\" { print \$2, \$3, \$4 }" /proc/mounts)
	umount --recursive /sys/fs/cgroup
	mount -t tmpfs tmpfs /sys/fs/cgroup
	while read -r at kind options; do
		mkdir -p "$at"
		if [ "$kind" = cgroup2 ]; then
			mount -t cgroup2 cgroup2 "$at"
		else
			options=$(tr , "\n" <<<"$options" | grep -vE "^(rw|relatime|nosuid|nodev|noexec)$" | sed "s/^name=/none,name=/" | paste -sd,)
			mount -t cgroup -o "$options" cgroup "$at"
		fi
	done <<<"$all"
	mkdir -p /run/systemd/system
	printf "[Unit]\nDefaultDependencies=no\n" >/run/systemd/system/quiet.target
	container=tutti exec /lib/systemd/systemd --system --unit=quiet.target --log-target=null --show-status=0'`

// withSystemd reports whether systemd runs here. Where it does not, it has the test run again where it does.
func withSystemd(t *testing.T) (there bool) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("systemd and cgroups need root")
	}
	if os.Getenv(inSystemd) != "" || systemd.IsRunningSystemd() {
		return true
	}
	if cgroups.IsCgroup2UnifiedMode() {
		t.Skip("a host that has cgroups of version 2 alone, and not systemd, is not known here")
	}
	group := "tutti-test-systemd-" + strconv.Itoa(os.Getpid())
	boot := exec.Command("bash", "-c", bootSystemd, group)
	if err := boot.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		boot.Process.Kill()
		boot.Wait()
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			left, _ := filepath.Glob("/sys/fs/cgroup/*/" + group)
			for _, dir := range left {
				exec.Command("find", dir, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";").Run()
			}
			if len(left) == 0 {
				return
			}
			if time.Now().After(end) {
				t.Errorf("cgroups %v are left", left)
				return
			}
		}
	})
	first := 0
	for end := time.Now().Add(20 * time.Second); first == 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("systemd does not run")
		}
		list, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", boot.Process.Pid, boot.Process.Pid))
		for _, child := range strings.Fields(string(list)) {
			if _, err := os.Stat("/proc/" + child + "/root/run/systemd/private"); err == nil {
				first, _ = strconv.Atoi(child)
			}
		}
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	again := exec.Command("nsenter", "--target", strconv.Itoa(first), "--mount", "--pid", "--cgroup", "--ipc", "--uts", "--", "sh", "-c", `cd "$0" && exec "$@"`, dir,
		os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	again.Env = append(os.Environ(), inSystemd+"=1")
	out, err := again.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("where systemd runs: %v\n%s", err, out)
	}
	return false
}

func asUnit(task *driver.Task) { task.Runtime = model.UnitRuntime }

// ask asks systemd for a property of a task's unit.
func ask(t *testing.T, id, property string) string {
	t.Helper()
	out, err := exec.Command("systemctl", "show", "--value", "--property="+property, "tutti-"+id+".scope").CombinedOutput()
	if err != nil {
		t.Fatalf("systemctl: %v: %s", err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestTasksAsUnits(t *testing.T) {
	if !withSystemd(t) {
		return
	}
	e := setUp(t)
	e.start("i.unit.1", func(task *driver.Task) {
		asUnit(task)
		task.Limit.MemoryBytes = 64 << 20
		task.Args = []string{"/bin/sh", "-c", "echo begun; trap 'exit 7' TERM; while :; do sleep 0.02; done"}
	})
	e.waitFor("i.unit.1", "begun")
	limit := "MemoryLimit"
	if cgroups.IsCgroup2UnifiedMode() {
		limit = "MemoryMax"
	}
	for property, want := range map[string]string{
		"ActiveState": "active", "ControlGroup": "/tutti.slice/tutti-i.unit.1.scope", limit: strconv.Itoa(64 << 20), "Description": "Tutti task i.unit.1",
	} {
		if got := ask(t, "i.unit.1", property); got != want {
			t.Errorf("%s is %q, want %q", property, got, want)
		}
	}
	if st, err := e.d.Stats(e.ctx, "i.unit.1"); err != nil || st.MemoryBytes == 0 {
		t.Errorf("it uses %+v, %v", st, err)
	}
	// What systemd ends has ended.
	if out, err := exec.Command("systemctl", "stop", "tutti-i.unit.1.scope").CombinedOutput(); err != nil {
		t.Fatalf("systemctl: %v: %s", err, out)
	}
	if st := e.wait("i.unit.1"); st.ExitCode != 7 {
		t.Errorf("ended as %+v, want exit code 7", st)
	}
	e.start("i.lost.1", asUnit, "/bin/sleep", "1000")
	st, err := e.d.Status(e.ctx, "i.lost.1")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(parentOf(t, st.PID), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if st := e.wait("i.lost.1"); st.Error == "" {
		t.Errorf("ended as %+v, want an end that says why", st)
	}
	for _, id := range []string{"i.unit.1", "i.lost.1"} {
		if state := ask(t, id, "ActiveState"); state != "inactive" {
			t.Errorf("the unit of %s, which has ended, is %s", id, state)
		}
	}
}

// TestSuiteAsUnits: what every driver does, this one does with units, too.
func TestSuiteAsUnits(t *testing.T) {
	if !withSystemd(t) {
		return
	}
	runSuite(t, asUnit)
	left, err := exec.Command("systemctl", "list-units", "--plain", "--no-legend", "tutti-*.scope").Output()
	if err != nil || len(strings.TrimSpace(string(left))) > 0 {
		t.Errorf("units are left: %v: %s", err, left)
	}
}
