//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/core"
)

// envKills is how often a server's process is killed; every third time the same one.
const envKills = "TUTTI_E2E_KILLS"

var servers = []string{"host-1", "host-2", "host-3"}

func hostData(host string) string   { return filepath.Join(dataDir, "hosts", host) }
func hostSocket(host string) string { return filepath.Join(runDir, "hosts", host, "tutti.sock") }

const keysBelow = "e2e/"

// writer puts keys through one server, one after the other. Those that were acknowledged are in acked.
type writer struct {
	server string
	number int

	mu     sync.Mutex
	acked  []string
	last   time.Time // when one was acknowledged last
	failed int
}

func (w *writer) run(ctx context.Context) {
	c := native.Dial(hostSocket(w.server))
	defer c.Close()
	for n := 1; ctx.Err() == nil; n++ {
		key := fmt.Sprintf("%s%s/%d/%06d", keysBelow, w.server, w.number, n)
		one, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err := c.ChangeKeys(one, core.KeyChanges{Put: []core.KeyPut{{Key: key, Value: []byte(key)}}})
		cancel()
		w.mu.Lock()
		if err == nil {
			w.acked, w.last = append(w.acked, key), time.Now()
		} else if ctx.Err() == nil {
			w.failed++
		}
		w.mu.Unlock()
		if err != nil {
			time.Sleep(5 * time.Millisecond)
		}
	}
}

func (w *writer) sofar() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.acked)
}

// wantKeys reads through a server and looks whether all that was acknowledged is there.
func wantKeys(t *testing.T, acked []string, through string) {
	t.Helper()
	c := native.Dial(hostSocket(through)).Linearizable()
	defer c.Close()
	list, err := c.Keys(t.Context(), core.KeyQuery{Prefix: keysBelow})
	if err != nil {
		t.Fatalf("read through %s: %v", through, err)
	}
	there := map[string]bool{}
	for _, k := range list.Keys {
		there[k.Key] = string(k.Value) == k.Key
	}
	for _, key := range acked {
		if !there[key] {
			t.Errorf("%s was acknowledged, and %s does not show it", key, through)
		}
	}
}

// nextAck waits until a write that was begun after a moment is acknowledged through one of the writers.
func nextAck(t *testing.T, after time.Time, through []*writer) time.Duration {
	t.Helper()
	var took time.Duration
	eventually(t, 20*time.Second, "a write is acknowledged", func() error {
		for _, w := range through {
			w.mu.Lock()
			last := w.last
			w.mu.Unlock()
			// What is acknowledged right after the kill was committed before.
			if last.After(after.Add(20 * time.Millisecond)) {
				took = last.Sub(after)
				return nil
			}
		}
		return errors.New("none was")
	})
	return took
}

// TestServersKilledUnderWrites kills each server's process in turn while writers write through all of them.
func TestServersKilledUnderWrites(t *testing.T) {
	kills := 9
	if s := os.Getenv(envKills); s != "" {
		var err error
		if kills, err = strconv.Atoi(s); err != nil {
			t.Fatalf("%s=%q is no number", envKills, s)
		}
	}
	tutti(t, "status")
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	var writers []*writer
	for _, s := range servers {
		for n := range 4 {
			w := &writer{server: s, number: n}
			writers = append(writers, w)
			running.Go(func() { w.run(ctx) })
		}
	}
	time.Sleep(300 * time.Millisecond)
	var leaderGaps, otherGaps []time.Duration
	for k := range kills {
		victim := servers[k%3]
		leads := slices.ContainsFunc(query[[]nodeState](t, "nodes"), func(n nodeState) bool { return n.Leader && n.Name == victim })
		var others []*writer
		for _, w := range writers {
			if w.server != victim {
				others = append(others, w)
			}
		}
		pid := nodeProcess(t, pidOf(t, victim))
		killed := time.Now()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		gap := nextAck(t, killed, others)
		if leads {
			leaderGaps = append(leaderGaps, gap)
		} else {
			otherGaps = append(otherGaps, gap)
		}
		wantKeys(t, acknowledged(writers), servers[(k+1)%3])
		eventually(t, 30*time.Second, victim+" is back", func() error {
			c := native.Dial(hostSocket(victim)).Linearizable()
			defer c.Close()
			_, err := c.Nodes(t.Context())
			return err
		})
	}
	stop()
	running.Wait()
	all, failed := acknowledged(writers), 0
	for _, w := range writers {
		failed += w.failed
	}
	for _, s := range servers {
		wantKeys(t, all, s)
	}
	slices.Sort(leaderGaps)
	slices.Sort(otherGaps)
	t.Logf("%d kills, %d writes acknowledged, %d not; leader killed (%d times): next write after %s in the median, %s at most; another server killed: %s, %s",
		kills, len(all), failed, len(leaderGaps), median(leaderGaps), most(leaderGaps), median(otherGaps), most(otherGaps))
	c := native.Dial(hostSocket(servers[0]))
	defer c.Close()
	if _, err := c.ChangeKeys(t.Context(), core.KeyChanges{DeletePrefixes: []string{keysBelow}}); err != nil {
		t.Error(err)
	}
	allWell(t, 20*time.Second)
}

func acknowledged(writers []*writer) (all []string) {
	for _, w := range writers {
		all = append(all, w.sofar()...)
	}
	return all
}

func median(d []time.Duration) time.Duration {
	if len(d) == 0 {
		return 0
	}
	return d[len(d)/2].Round(time.Millisecond)
}

func most(d []time.Duration) time.Duration {
	if len(d) == 0 {
		return 0
	}
	return d[len(d)-1].Round(time.Millisecond)
}

// hold ends a host's node process and keeps it from being started again, until the returned function
// is called. The host, and what runs on it, goes on.
func hold(t *testing.T, host string) (release func()) {
	t.Helper()
	file := filepath.Join(hostData(host), "node.json")
	if err := os.Rename(file, file+".held"); err != nil {
		t.Fatal(err)
	}
	pid := nodeProcess(t, pidOf(t, host))
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, host+"'s node ends", func() error {
		if alive := syscall.Kill(pid, 0); alive == nil {
			return errors.New("it runs")
		}
		return nil
	})
	once := sync.OnceFunc(func() {
		if err := os.Rename(file+".held", file); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(once)
	return once
}

// wipe removes what a server knows of the cluster's state.
func wipe(t *testing.T, host string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(hostData(host), "server")); err != nil {
		t.Fatal(err)
	}
}

func addressOf(t *testing.T, host string) string {
	t.Helper()
	for _, h := range query[[]hostState](t, "host", "ls") {
		if h.Name == host {
			return h.Address
		}
	}
	t.Fatalf("no host %s", host)
	return ""
}

// keep deploys something that is to be adopted, and returns the first processes of its containers.
func keep(t *testing.T) (pids func() []int) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "compose.yaml")
	text := "services:\n  cache:\n    image: redis:7\n    deploy:\n      replicas: 6\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(tutti(t, "image", "ls"), "redis") { // an earlier test took the cluster of before down
		if err := importImages(); err != nil {
			t.Fatal(err)
		}
	}
	tutti(t, "deploy", "-f", file, "kept")
	allWell(t, 20*time.Second)
	t.Cleanup(func() {
		if out, err := run("rm", "kept"); err != nil {
			t.Logf("remove what was kept: %v\n%s", err, out)
		}
	})
	return func() (out []int) {
		for _, h := range servers {
			out = append(out, firstPIDs(t, pidOf(t, h))...)
		}
		slices.Sort(out)
		return out
	}
}

// objects are the IDs of what people made.
func objects(t *testing.T) (out []string) {
	t.Helper()
	for _, kind := range [][]string{{"ls"}, {"ls", "kept"}, {"ps"}, {"nodes"}, {"networks"}, {"volumes"}, {"services"}} {
		for _, o := range query[[]struct {
			ID string `json:"id"`
		}](t, kind...) {
			out = append(out, kind[0]+" "+o.ID)
		}
	}
	slices.Sort(out)
	return out
}

func voters(t *testing.T) error {
	list, err := tryQuery[[]struct {
		Name  string `json:"name"`
		Voter bool   `json:"voter"`
		State string `json:"state"`
	}]("server", "ls")
	if err != nil {
		return err
	}
	n := 0
	for _, s := range list {
		if s.Voter && s.State == "ready" {
			n++
		}
	}
	if n != 3 {
		return fmt.Errorf("%d of %d servers vote", n, len(list))
	}
	return nil
}

// TestBackupWipeRestore is docs/operations.md, "All servers' state is lost".
func TestBackupWipeRestore(t *testing.T) {
	pids := keep(t)
	file := filepath.Join(t.TempDir(), "cluster.backup")
	if out := tutti(t, "backup", file); !strings.Contains(out, "keys") {
		t.Errorf("it does not say that the file holds keys:\n%s", out)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the backup has mode %v, %v", info.Mode(), err)
	}
	refused(t, []string{"exists already"}, "backup", file)
	wanted, running := objects(t), pids()
	if len(running) != 6 {
		t.Fatalf("%d containers run, want 6", len(running))
	}
	first := servers[0]
	restore := []string{"restore", file, "--data-dir", hostData(first), "--name", first, "--address", addressOf(t, first)}
	refused(t, []string{"runs already"}, restore...)
	var releases []func()
	releases = append(releases, hold(t, first))
	refused(t, []string{"--force"}, restore...)
	wipe(t, first)
	refused(t, []string{"the cluster runs"}, restore...)
	for _, s := range servers[1:] {
		releases = append(releases, hold(t, s))
		wipe(t, s)
	}
	broken := file + ".broken"
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(broken, data, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, []string{"damaged"}, "restore", broken, "--data-dir", hostData(first), "--name", first, "--address", addressOf(t, first))
	// This host has lost its identity as well: it is one of the backup's servers again, by its name.
	if err := os.RemoveAll(filepath.Join(hostData(first), "identity")); err != nil {
		t.Fatal(err)
	}
	t.Log(tutti(t, restore...))
	began := time.Now()
	for _, release := range releases {
		release()
	}
	eventually(t, 30*time.Second, "all three servers vote", func() error { return voters(t) })
	t.Logf("three voters %s after the restored server was let start", time.Since(began).Round(time.Millisecond))
	allWell(t, 30*time.Second)
	if now := objects(t); !slices.Equal(now, wanted) {
		t.Errorf("after the restore there is\n%s\nwant\n%s", strings.Join(now, "\n"), strings.Join(wanted, "\n"))
	}
	if now := pids(); !slices.Equal(now, running) {
		t.Errorf("the containers' processes are %v, want %v: they were to be adopted", now, running)
	}
}

// TestLostDisk is docs/operations.md, "A server's disk is lost".
func TestLostDisk(t *testing.T) {
	lost := servers[2]
	release := hold(t, lost)
	eventually(t, 10*time.Second, lost+" is missed", func() error {
		for _, n := range query[[]nodeState](t, "nodes") {
			if n.Name == lost && n.Status.State == "down" {
				return nil
			}
		}
		return errors.New("it is not")
	})
	wipe(t, lost)
	tutti(t, "server", "rm", lost)
	release()
	eventually(t, 30*time.Second, "all three servers vote", func() error { return voters(t) })
	allWell(t, 20*time.Second)
}

// TestLostQuorum is docs/operations.md, "Most servers are lost".
func TestLostQuorum(t *testing.T) {
	pids := keep(t)
	wanted, running := objects(t), pids()
	last := servers[0]
	var lost []func()
	for _, s := range servers[1:] {
		lost = append(lost, hold(t, s))
		wipe(t, s)
	}
	// Reads are answered and marked, also by a server that was started without a quorum.
	nodeProcessRestarts(t, last)
	eventually(t, 20*time.Second, "reads are answered and marked as stale", func() error {
		out, err := run("ps")
		if err != nil || !strings.Contains(out, "no server leads") || !strings.Contains(out, "cache") {
			return fmt.Errorf("%v:\n%s", err, out)
		}
		return nil
	})
	release := hold(t, last)
	refused(t, []string{"--yes"}, "recover", "--data-dir", hostData(last))
	t.Log(tutti(t, "recover", "--yes", "--data-dir", hostData(last), "--name", last, "--address", addressOf(t, last)))
	release()
	eventually(t, 20*time.Second, "the last server leads", func() error {
		nodes, err := tryQuery[[]nodeState]("nodes")
		for _, n := range nodes {
			if n.Leader {
				return nil
			}
		}
		return fmt.Errorf("none leads: %w", err)
	})
	for _, release := range lost {
		release()
	}
	eventually(t, 30*time.Second, "all three servers vote", func() error { return voters(t) })
	allWell(t, 30*time.Second)
	now := objects(t)
	for _, o := range wanted {
		if !slices.Contains(now, o) && !strings.HasPrefix(o, "ps ") { // those of hosts that were away were replaced
			t.Errorf("%s is gone", o)
		}
	}
	kept := 0
	for _, pid := range pids() {
		if slices.Contains(running, pid) {
			kept++
		}
	}
	t.Logf("%d of %d containers were kept, the others' hosts were missed", kept, len(running))
	if kept == 0 {
		t.Error("no container was adopted")
	}
}

func nodeProcessRestarts(t *testing.T, host string) {
	t.Helper()
	old := nodeProcess(t, pidOf(t, host))
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, host+"'s node is started again", func() error {
		if pid, err := findNodeProcess(pidOf(t, host)); err != nil || pid == old {
			return fmt.Errorf("not yet: %v", err)
		}
		return nil
	})
}
