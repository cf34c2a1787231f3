//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// writers is an application of slots that must have one writer each: those of db may run anywhere,
// that of keep has a volume, which lives on host-3.
const writers = `
services:
  db:
    image: writer:v1
    scale: 2
    volumes: ["%[1]s:/witness"]
    stop_grace_period: 1s
    x-tutti: {kind: stateful}
  keep:
    image: writer:v1
    volumes: ["data:/data", "%[1]s:/witness"]
    stop_grace_period: 1s
    deploy: {placement: {constraints: [node.hostname==host-3]}}
    x-tutti: {kind: stateful}
volumes:
  data:
`

// witness is a directory of this machine that every writer writes to, cut off or not.
type witness string

// runsOf returns the runs of a slot in the order of their first lines, and fails when two of them
// wrote at the same time.
func (w witness) runsOf(t *testing.T, slot string) []string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(string(w), slot))
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	first, last := map[string]int64{}, map[string]int64{}
	for line := range strings.Lines(string(data)) {
		var run string
		var at int64
		if _, err := fmt.Sscan(line, &run, &at); err != nil {
			continue // cut short by a kill
		}
		if first[run] == 0 {
			first[run] = at
			order = append(order, run)
		}
		last[run] = max(last[run], at)
	}
	for k := 1; k < len(order); k++ {
		for _, before := range order[:k] {
			if last[before] >= first[order[k]] {
				t.Errorf("slot %s had two writers for %s", slot, time.Duration(last[before]-first[order[k]]))
			}
		}
	}
	return order
}

func deployWriters(t *testing.T) witness {
	t.Helper()
	if _, err := run("nodes"); err != nil { // an earlier test may have taken everything down
		tutti(t, "up", "-d", "--hosts", "3")
	}
	dir := filepath.Join(dataDir, "writer")
	out := filepath.Join(dataDir, "witness")
	for _, d := range []string{filepath.Join(dir, "root", "witness"), filepath.Join(dir, "root", "data"), out} {
		if err := os.MkdirAll(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "root", "writer"), "./testdata/writer")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	image, file := filepath.Join(dir, "image.tar"), filepath.Join(dataDir, "writers.yaml")
	tutti(t, "image", "pack", "--name", "writer:v1", "--dir", filepath.Join(dir, "root"), "--entrypoint", "/writer", "-o", image)
	tutti(t, "image", "import", image)
	if err := os.WriteFile(file, fmt.Appendf(nil, writers, out), 0o644); err != nil {
		t.Fatal(err)
	}
	removeIfFailed(t, "writers")
	tutti(t, "deploy", "-d", "-f", file, "writers")
	allWell(t, 60*time.Second)
	return witness(out)
}

func slot(t *testing.T, name string) instance {
	t.Helper()
	for _, i := range instances(t) {
		if i.Name == name && i.Status.Ready {
			return i
		}
	}
	t.Fatalf("nothing is ready in slot %s\n%s", name, diagnosis())
	return instance{}
}

// movable is a slot of db that does not run on host-1, which the tests talk to.
func movable(t *testing.T) instance {
	t.Helper()
	for _, name := range []string{"db-0", "db-1"} {
		if i := slot(t, name); i.Node != "host-1" {
			return i
		}
	}
	t.Fatal("both slots of db run on host-1")
	return instance{}
}

// elsewhere waits until a slot is filled on another host than the one it was on.
func elsewhere(t *testing.T, was instance) time.Duration {
	t.Helper()
	return eventually(t, 40*time.Second, was.Name+" is filled on another host than "+was.Node, func() error {
		list, err := tryQuery[[]instance]("ps")
		if err != nil {
			return err
		}
		for _, i := range list {
			if i.Name == was.Name && i.ID != was.ID && i.Status.Ready {
				return nil
			}
		}
		return errors.New("not yet")
	})
}

// TestOneWriter takes hosts away from stateful services in several ways; a witness outside sees one
// writer in each slot throughout.
func TestOneWriter(t *testing.T) {
	w := deployWriters(t)
	t.Run("HostKilled", func(t *testing.T) {
		was := movable(t)
		tutti(t, "host", "kill", was.Node)
		t.Logf("%s of a dead host was filled elsewhere after %s", was.Name, elsewhere(t, was).Round(10*time.Millisecond))
		tutti(t, "host", "start", was.Node)
		allWell(t, 60*time.Second)
	})
	t.Run("HostCutOff", func(t *testing.T) {
		was := movable(t)
		before := len(w.runsOf(t, was.Name))
		tutti(t, "host", "cut", was.Node)
		t.Logf("%s of a host that was cut off was filled elsewhere after %s", was.Name, elsewhere(t, was).Round(10*time.Millisecond))
		time.Sleep(2 * time.Second)
		tutti(t, "host", "heal", was.Node)
		allWell(t, 60*time.Second)
		if now := len(w.runsOf(t, was.Name)); now != before+1 {
			t.Errorf("%s had %d runs more, want one", was.Name, now-before)
		}
	})
	t.Run("ItsVolumeIsAway", func(t *testing.T) {
		was, before := slot(t, "keep-0"), w.runsOf(t, "keep-0")
		tutti(t, "host", "cut", "host-3")
		eventually(t, 20*time.Second, "explain says that the slot waits", func() error {
			out, err := run("explain", "writers/keep-0")
			if err == nil && !strings.Contains(out, "volume lives there") {
				err = errors.New(out)
			}
			return err
		})
		time.Sleep(8 * time.Second) // longer than any lease
		tutti(t, "host", "heal", "host-3")
		allWell(t, 60*time.Second)
		if now := slot(t, "keep-0"); now.ID != was.ID || !slices.Equal(w.runsOf(t, "keep-0"), before) {
			t.Errorf("keep-0 did not go on running: it was %s with %d runs, and is %s with %d", was.ID, len(before), now.ID, len(w.runsOf(t, "keep-0")))
		}
	})
	t.Run("ProcessesStopped", func(t *testing.T) { processesStopped(t, w) })
	tutti(t, "rm", "--volumes", "writers")
	allWell(t, 20*time.Second)
}

// processesStopped stops nodes' processes, as a busy machine may, and lets them go on: no node is taken
// for dead. What runs under a lease goes on through a stop that is short, and is suspended in a longer one; when its
// process stays away it is elsewhere.
func processesStopped(t *testing.T, w witness) {
	downs := func() int {
		out := tutti(t, "events")
		return strings.Count(out, "node down")
	}
	before := downs()
	stop := func(host string, meanwhile func()) {
		t.Helper()
		pid := nodeProcess(t, pidOf(t, host))
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		meanwhile()
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		allWell(t, 40*time.Second)
	}
	runs := func() int { return len(w.runsOf(t, "db-0")) + len(w.runsOf(t, "db-1")) + len(w.runsOf(t, "keep-0")) }
	had := runs()
	for _, n := range query[[]nodeState](t, "nodes") {
		stop(n.Name, func() { time.Sleep(2 * time.Second) })
		t.Logf("%s was stopped for 2 s (leader: %v)", n.Name, n.Leader)
	}
	if now := runs(); now != had {
		t.Errorf("while processes were stopped for a short while, %d writers were started anew", now-had)
	}
	was := movable(t)
	stop(was.Node, func() { time.Sleep(8 * time.Second) })
	if now := runs(); now != had {
		t.Errorf("while a process was stopped for longer than a lease, %d writers were started anew instead of being suspended", now-had)
	}
	if now := downs(); now != before {
		t.Errorf("nodes were taken for dead %d times, though only their processes had been stopped", now-before)
	}
	count := len(w.runsOf(t, was.Name))
	stop(was.Node, func() {
		t.Logf("%s of a process that stayed stopped was filled elsewhere after %s", was.Name, elsewhere(t, was).Round(10*time.Millisecond))
	})
	if more := len(w.runsOf(t, was.Name)) - count; more != 1 {
		t.Errorf("%s has %d runs more, want one", was.Name, more)
	}
}
