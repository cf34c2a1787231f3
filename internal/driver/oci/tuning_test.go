package oci

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/cgroup"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

func readClock(t *testing.T, id int32) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// TestClocksOfOnesOwn holds that the clocks of a task, and of what is executed in it, are ahead or behind as it says.
func TestClocksOfOnesOwn(t *testing.T) {
	if _, err := os.Stat("/proc/self/ns/time"); err != nil {
		t.Skip("the kernel has no time namespaces")
	}
	for _, own := range []bool{false, true} {
		t.Run(fmt.Sprintf("users of its own %v", own), func(t *testing.T) {
			e := setUp(t)
			ahead := model.Clocks{Monotonic: 100*time.Hour + 300*time.Millisecond, Boot: 20*time.Hour - 700*time.Millisecond}
			change := func(task *driver.Task) { task.Tuning = &model.Tuning{Clocks: &ahead} }
			if own {
				users, netNS, _ := e.withUsers()
				plain := change
				change = func(task *driver.Task) { plain(task); task.Users, task.NetNS = users, netNS }
			}
			begun := [2]time.Duration{readClock(t, unix.CLOCK_MONOTONIC), readClock(t, unix.CLOCK_BOOTTIME)}
			check := func(what, said string) {
				t.Helper()
				var inside [2]time.Duration
				if _, err := fmt.Sscan(said, &inside[0], &inside[1]); err != nil {
					t.Fatalf("%s says %q: %v", what, said, err)
				}
				now := [2]time.Duration{readClock(t, unix.CLOCK_MONOTONIC), readClock(t, unix.CLOCK_BOOTTIME)}
				for k, offset := range []time.Duration{ahead.Monotonic, ahead.Boot} {
					if inside[k] < begun[k]+offset || inside[k] > now[k]+offset {
						t.Errorf("%s: clock %d says %s; the node's went from %s to %s, and it is to be %s ahead", what, k, inside[k], begun[k], now[k], offset)
					}
				}
			}
			e.start("i.clocks.1", change, "clocks")
			if st := e.wait("i.clocks.1"); st.ExitCode != 0 {
				t.Fatalf("ended as %+v", st)
			}
			check("the task", e.logs("i.clocks.1", driver.LogOptions{Tail: -1}))

			e.start("i.joined.1", change, "sleep")
			var out, errOut bytes.Buffer
			code, err := e.d.Exec(e.ctx, "i.joined.1", driver.ExecSpec{Args: []string{"/prog", "clocks"}}, driver.Streams{Stdout: &out, Stderr: &errOut})
			if err != nil || code != 0 {
				t.Fatalf("exec ended with %d, %v: %s", code, err, errOut.String())
			}
			check("what is executed in it", out.String())
		})
	}
}

func TestHugePagesAreBounded(t *testing.T) {
	e := setUp(t)
	sizes := cgroups.HugePageSizes()
	refused := map[string]string{"3MB": "has no huge pages of 3MB"}
	if len(sizes) > 0 && !cgroup.Has("hugetlb") {
		refused[sizes[0]] = "no cgroups of the controller hugetlb"
	}
	for size, want := range refused {
		task := e.task()
		task.ID, task.Args, task.Tuning = "i.huge.1", []string{"/prog", "exit", "0"}, &model.Tuning{HugePages: map[string]uint64{size: 4 << 20}}
		if err := e.d.Start(e.ctx, task); !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), want) {
			t.Errorf("huge pages of %s: %v, want %q", size, err, want)
		}
		if err := e.d.Remove(e.ctx, task.ID); err != nil {
			t.Error(err)
		}
	}
	if len(sizes) == 0 || !cgroup.Has("hugetlb") {
		t.Skip("there are no huge pages here, or no cgroups that bound them")
	}
	e.start("i.pages.1", func(task *driver.Task) { task.Tuning = &model.Tuning{HugePages: map[string]uint64{sizes[0]: 4 << 20}} }, "sleep")
	for _, dir := range e.cgroups() {
		for _, name := range []string{"hugetlb." + sizes[0] + ".limit_in_bytes", "hugetlb." + sizes[0] + ".max"} {
			if text, err := os.ReadFile(filepath.Join(dir, "i.pages.1", name)); err == nil {
				if got := strings.TrimSpace(string(text)); got != "4194304" && sizes[0] == "2MB" {
					t.Errorf("%s says %s", name, got)
				}
				return
			}
		}
	}
	t.Error("no cgroup of the task bounds huge pages")
}
