//go:build e2e

package e2e

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// killer kills nodes' processes and supervisors at random.
type killer struct {
	mu          sync.Mutex
	nodes       int
	supervisors map[string]bool // the runs of those that were killed
}

func (k *killer) run(t *testing.T, stop <-chan struct{}) {
	for n := 0; ; n++ {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(100+rand.IntN(600)) * time.Millisecond):
		}
		hosts, err := tryQuery[[]hostState]("host", "ls")
		if err != nil || len(hosts) == 0 {
			t.Errorf("list hosts: %v", err)
			return
		}
		host := hosts[rand.IntN(len(hosts))]
		if n%8 == 0 {
			if pid, err := findNodeProcess(host.PID); err == nil && syscall.Kill(pid, syscall.SIGKILL) == nil {
				k.mu.Lock()
				k.nodes++
				k.mu.Unlock()
			}
			continue
		}
		for run, pid := range supervisorsIn(host.PID) {
			if syscall.Kill(pid, syscall.SIGKILL) == nil {
				k.mu.Lock()
				k.supervisors[run] = true
				k.mu.Unlock()
			}
			break // a map begins anywhere
		}
	}
}

// supervisorsIn returns a host's supervisors, by the run of each.
func supervisorsIn(hostPID int) map[string]int {
	out := map[string]int{}
	_ = inHost(hostPID, func(pid int, args []string) { // what it cannot list has ended
		if len(args) > 2 && strings.HasSuffix(args[1], "-supervise") {
			run := filepath.Base(args[2])
			// What is born of it is called the same until it executes what it is for.
			if other := out[run]; other == 0 || descends(other, pid) {
				out[run] = pid
			}
		}
	})
	return out
}

// talks are containers that say some lines and exit with a code, both as their number says.
func talks(app string, first, count int, told string) string {
	var b strings.Builder
	b.WriteString("services:\n")
	for k := first; k < first+count; k++ {
		fmt.Fprintf(&b, "  t%d:\n    image: abuse:v1\n    command: [talk, %q, %q]\n    volumes: [%q]\n    deploy: {mode: replicated-job, restart_policy: {condition: none}}\n",
			k, strconv.Itoa(k), app+"-"+strconv.Itoa(k), told+":/told")
	}
	return b.String()
}

func linesOf(k int) int { return 40 + k*37%200 }
func codeOf(k int) int  { return k * 13 % 97 }

// found counts how the containers of a test of kills ended.
type found struct {
	ended, unknown, replaced int // containers
	lines, kept, lost        int // of those that ended, and of those whose end is unknown
}

const talkers = 12 // at a time

// TestKillsOfNodesAndSupervisors kills the nodes' processes and supervisors at random, while containers start, talk and
// exit. E2E_KILLS says for how long. No exit code is wrong, no line is lost or doubled, and nothing is left running;
// of a container that lost its supervisor it is said that it did, and what it printed until then is kept.
func TestKillsOfNodesAndSupervisors(t *testing.T) {
	long, err := time.ParseDuration(cmp.Or(os.Getenv("E2E_KILLS"), "20s"))
	if err != nil {
		t.Fatalf("E2E_KILLS: %v", err)
	}
	abuseImage(t)
	told := filepath.Join(dataDir, "told")
	if err := os.MkdirAll(told, 0o777); err != nil {
		t.Fatal(err)
	}
	k := &killer{supervisors: map[string]bool{}}
	stop := make(chan struct{})
	var killing sync.WaitGroup
	killing.Go(func() { k.run(t, stop) })
	end := sync.OnceFunc(func() { close(stop); killing.Wait() })
	t.Cleanup(end)
	var all found
	for first, until := 0, time.Now().Add(long); first == 0 || time.Now().Before(until) && !t.Failed(); first += talkers {
		app := fmt.Sprintf("talk-%d", first)
		file := filepath.Join(dataDir, "talk.yaml")
		if err := os.WriteFile(file, []byte(talks(app, first, talkers, told)), 0o644); err != nil {
			t.Fatal(err)
		}
		removeIfFailed(t, app)
		insist(t, "deploy", "-d", "-f", file, app)
		k.verify(t, app, first, told, &all)
		insist(t, "rm", app)
	}
	end()
	eventually(t, time.Minute, "nothing is left running", func() error {
		for _, h := range query[[]hostState](t, "host", "ls") {
			if s := supervisorsIn(h.PID); len(s) > 0 {
				return fmt.Errorf("supervisors %v of %s are left", s, h.Name)
			}
			if p := containerPIDs(t, h.PID); len(p) > 0 {
				return fmt.Errorf("processes %v in containers of %s are left", p, h.Name)
			}
			if left, _ := filepath.Glob(filepath.Join(hostData(h.Name), "tasks", "*")); len(left) > 0 {
				return fmt.Errorf("runs %v of %s are left", left, h.Name)
			}
		}
		return nil
	})
	allWell(t, time.Minute)
	t.Logf("killed: %d processes of nodes, %d supervisors; containers that ended with their own code and all lines: %d, with %d lines; "+
		"that lost their supervisor, which is said of them: %d, with %d lines, %d of what they had printed lost; begun again elsewhere, as their node was silent: %d",
		k.nodes, len(k.supervisors), all.ended, all.lines, all.unknown, all.kept, all.lost, all.replaced)
}

// insist repeats a command until the servers are there for it.
func insist(t *testing.T, args ...string) {
	t.Helper()
	eventually(t, 2*time.Minute, "tutti "+strings.Join(args, " "), func() error {
		if out, err := run(args...); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// verify waits until all talks have ended, and looks at how.
func (k *killer) verify(t *testing.T, app string, first int, told string, all *found) {
	t.Helper()
	var list []instance
	last := map[string]instance{}
	eventually(t, 3*time.Minute, "all of "+app+" have ended", func() (err error) {
		if list, err = tryQuery[[]instance]("ps", "--all", app); err != nil {
			return err
		}
		clear(last)
		for _, i := range list {
			if i.Desired == "run" || i.Status.State == "completed" || i.Status.State == "failed" {
				if have, ok := last[i.Workload]; !ok || !final(&have) || i.Current {
					last[i.Workload] = i
				}
			}
		}
		for n := first; n < first+talkers; n++ {
			if i, ok := last[fmt.Sprintf("%s/t%d", app, n)]; !ok || !final(&i) {
				return fmt.Errorf("t%d is %+v", n, i)
			}
		}
		return nil
	})
	all.replaced += len(list) - len(last)
	for n := first; n < first+talkers; n++ {
		i := last[fmt.Sprintf("%s/t%d", app, n)]
		if len(i.Status.Tasks) != 1 {
			t.Errorf("t%d ended as %+v", n, i)
			continue
		}
		task := i.Status.Tasks[0]
		k.mu.Lock()
		killed := k.supervisors[fmt.Sprintf("%s.t%d.%d", i.ID, n, task.Run)]
		k.mu.Unlock()
		var said []byte
		eventually(t, 2*time.Minute, "the log of "+i.ID, func() (err error) {
			said, err = output("logs", i.ID)
			return err
		})
		lines, err := countLines(string(said), n)
		if err != nil {
			t.Errorf("t%d: %v", n, err)
			continue
		}
		switch {
		case task.ExitCode == codeOf(n) && lines == linesOf(n):
			all.ended++
			all.lines += lines
		case killed && task.ExitCode == 255 && lostSupervisor.MatchString(i.Status.Message):
			text, err := os.ReadFile(filepath.Join(told, fmt.Sprintf("%s-%d", app, n)))
			printed, aerr := strconv.Atoi(string(bytes.TrimSpace(text)))
			if err == nil && aerr == nil && printed > lines {
				all.lost += printed - lines
				t.Logf("t%d had printed %d lines when its supervisor was killed, of which %d are kept", n, printed, lines)
			}
			all.unknown++
			all.kept += lines
		default:
			t.Errorf("t%d (supervisor killed: %v) ended with code %d after %d lines, not with %d after %d: %+v", n, killed, task.ExitCode, lines, codeOf(n), linesOf(n), i)
		}
	}
}

// lostSupervisor is what is said of a container whose supervisor was killed: while it ran, or before it did.
var lostSupervisor = regexp.MustCompile(`its supervisor (was killed|ended early)$`)

func final(i *instance) bool { return i.Status.State == "completed" || i.Status.State == "failed" }

var talkLine = regexp.MustCompile(`(\d+) of (\d+) of talk (\d+)$`)

// countLines reads what talk k said: each line once, in order.
func countLines(said string, k int) (int, error) {
	n := 0
	for line := range strings.Lines(said) {
		m := talkLine.FindStringSubmatch(strings.TrimRight(line, "\n"))
		if m == nil {
			return n, fmt.Errorf("after %d lines it says %q", n, line)
		}
		if number, _ := strconv.Atoi(m[1]); number != n+1 || m[3] != strconv.Itoa(k) {
			return n, fmt.Errorf("after line %d comes %q", n, line)
		}
		n++
	}
	return n, nil
}

// TestANewerProgramTakesOver puts another program in the place of the one that runs, under running containers: none
// starts anew.
func TestANewerProgramTakesOver(t *testing.T) {
	abuseImage(t)
	file := filepath.Join(dataDir, "newer.yaml")
	if err := os.WriteFile(file, []byte("services:\n  stays: {image: \"abuse:v1\", command: [sleep], deploy: {replicas: 3, placement: {max_replicas_per_node: 1}}, x-tutti: {lost_after: 30s}}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	removeIfFailed(t, "newer")
	tutti(t, "deploy", "-f", file, "newer")
	pids := func() map[string]int {
		out := map[string]int{}
		list, _ := tryQuery[[]instance]("ps", "newer") // without an answer there are none
		for _, i := range list {
			if i.Workload == "newer/stays" && len(i.Status.Tasks) == 1 && i.Status.Ready && i.Status.Restarts == 0 {
				out[i.ID] = i.Status.Tasks[0].PID
			}
		}
		return out
	}
	var before map[string]int
	eventually(t, time.Minute, "one runs on each host", func() error {
		if before = pids(); len(before) != 3 {
			return fmt.Errorf("there are %v", before)
		}
		return nil
	})
	old, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	version := strings.Fields(tutti(t, "version"))[1]
	newer := bytes.ReplaceAll(old, []byte(version), bytes.Replace([]byte(version), []byte("0.1."), []byte("0.9."), 1))
	if bytes.Equal(old, newer) {
		t.Fatalf("the version %q is not in the program", version)
	}
	replace := func(text []byte) {
		t.Helper()
		if err := errors.Join(os.WriteFile(program+".new", text, 0o755), os.Rename(program+".new", program)); err != nil {
			t.Fatal(err)
		}
		for _, h := range query[[]hostState](t, "host", "ls") {
			nodeProcessRestarts(t, h.Name)
			eventually(t, time.Minute, h.Name+" is back", func() error {
				nodes, err := tryQuery[[]nodeState]("nodes") // there may be no leader just now
				for _, n := range nodes {
					if n.Name == h.Name && n.Status.State == "ready" {
						return nil
					}
				}
				return cmp.Or(err, errors.New("not yet"))
			})
		}
	}
	defer replace(old)
	replace(newer)
	eventually(t, time.Minute, "all nodes are of the newer version", func() error {
		nodes, err := tryQuery[[]struct {
			Name       string            `json:"name"`
			Attributes map[string]string `json:"attributes"`
		}]("nodes")
		if err != nil {
			return err
		}
		for _, n := range nodes {
			if !strings.HasPrefix(n.Attributes["version"], "0.9.") {
				return fmt.Errorf("%s is of %s", n.Name, n.Attributes["version"])
			}
		}
		return nil
	})
	eventually(t, time.Minute, "the containers are those from before", func() error {
		if now := pids(); fmt.Sprint(now) != fmt.Sprint(before) || len(now) != 3 {
			return fmt.Errorf("there were %v, and there are %v", before, now)
		}
		return nil
	})
	for _, i := range instances(t) {
		if i.Workload == "newer/stays" { // a supervisor of the old program is understood by the new one
			insist(t, "exec", i.ID, "/abuse", "limits")
		}
	}
	insist(t, "rm", "newer")
}
