//go:build e2e && rollouts

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// show is the table of what was seen, printed at the end.
type show struct {
	rows []string
	url  string
}

func (s *show) add(t *testing.T, what, image string, took time.Duration, o *outcome, end string) {
	requests, failed, gap := "", "", ""
	if o != nil {
		requests, failed, gap = fmt.Sprint(o.asked), fmt.Sprint(o.failed), fmt.Sprintf("%.2f s", o.longestGap.Seconds())
	}
	row := fmt.Sprintf("| %s | %s | %.1f s | %s | %s | %s | %s |", what, image, took.Seconds(), requests, failed, gap, end)
	s.rows = append(s.rows, row)
	t.Log(row)
}

// TestRollouts shows, on five hosts and under load, what becomes of requests during every kind of update,
// with good and bad images, and when hosts are drained, lost and return; and how services follow their load,
// jobs, gangs, priorities and slots do.
func TestRollouts(t *testing.T) {
	s := &show{url: "http://10.209.0.11:8090/"}
	packAnswers(t)
	for n := 1; n <= 5; n++ {
		tutti(t, "node", "label", fmt.Sprint("host-", n), fmt.Sprint("ud=", n%3))
	}
	deployFile(t, "ticks", `
services:
  tick: {image: "answer:v1", command: [once], restart: "no", x-tutti: {schedule: "* * * * *"}}
`)
	for _, step := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"Kinds", s.kinds}, {"Drain", s.drain}, {"HostsReturn", s.hostsReturn}, {"Load", s.autoscale},
		{"Gang", s.gang}, {"Preemption", s.preemption}, {"Slots", s.slots}, {"Cron", s.cron},
	} {
		t.Run(step.name, step.run)
	}
	fmt.Printf("\n| what | image | time | requests | failed | longest gap | in the end |\n| --- | --- | --- | --- | --- | --- | --- |\n%s\n\n", strings.Join(s.rows, "\n"))
}

// packAnswers makes and imports the images that differ in nothing but what they say.
func packAnswers(t *testing.T) {
	t.Helper()
	dir := filepath.Join(dataDir, "answer")
	root := filepath.Join(dir, "root")
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", filepath.Join(root, "answer"), "./testdata/answer")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	for _, version := range []string{"v1", "v2", "bad"} {
		if err := os.WriteFile(filepath.Join(root, "version"), []byte(version), 0o644); err != nil {
			t.Fatal(err)
		}
		image := filepath.Join(dir, version+".tar")
		tutti(t, "image", "pack", "--name", "answer:"+version, "--dir", root, "--entrypoint", "/answer", "-o", image)
		tutti(t, "image", "import", image)
	}
}

// tryDeploy deploys a Compose file given as text, and waits as the command does.
func tryDeploy(t *testing.T, app, text string, args ...string) (string, error) {
	t.Helper()
	file := filepath.Join(dataDir, app+".yaml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return run(append(append([]string{"deploy"}, args...), "-f", file, app)...)
}

func deployFile(t *testing.T, app, text string, args ...string) {
	t.Helper()
	if out, err := tryDeploy(t, app, text, args...); err != nil {
		t.Fatalf("deploy %s: %v\n%s", app, err, out)
	}
}

const kindOf = `
services:
  web:
    image: answer:%s
    ports: ["8090:8080"]
    stop_grace_period: 3s
    healthcheck: {test: [CMD, /answer, check], interval: 1s, timeout: 2s, retries: 3}
    deploy:
      replicas: 4
      update_config: {monitor: 2s, failure_action: rollback, %s}
    x-tutti: {rollout: {%s}}
`

func (s *show) kinds(t *testing.T) {
	for _, kind := range []struct{ name, update, plan string }{
		{"rolling, 1 more and 1 less", "order: start-first", "max_surge: 1, max_unavailable: 1"},
		{"start first", "parallelism: 1, order: start-first", ""},
		{"stop first", "parallelism: 1, order: stop-first", ""},
		{"canary, 25 and 50 %", "parallelism: 2, order: start-first", "canary: [{percent: 25, hold: 2s}, {percent: 50, hold: 2s}]"},
		{"blue/green", "parallelism: 0, order: start-first", "blue_green: true"},
		{"three upgrade domains", "parallelism: 2, order: stop-first", "domains: node.labels.ud"},
	} {
		t.Run(kind.name, func(t *testing.T) {
			removeIfFailed(t, "show")
			deployFile(t, "show", fmt.Sprintf(kindOf, "v1", kind.update, kind.plan))
			for _, image := range []string{"v2", "bad"} {
				l := startLoad(t, s.url)
				time.Sleep(time.Second)
				began := time.Now()
				out, err := tryDeploy(t, "show", fmt.Sprintf(kindOf, image, kind.update, kind.plan))
				state := ""
				eventually(t, 60*time.Second, "the update ends", func() error {
					r, err := tryQuery[struct {
						Status struct{ State string } `json:"status"`
					}]("rollout", "status", "show/web")
					if state = r.Status.State; err == nil && state != "completed" && state != "rolledBack" {
						err = errors.New(state)
					}
					return err
				})
				took := time.Since(began)
				awaitReady(t, "show/web", 4)
				time.Sleep(time.Second)
				o := l.stop()
				s.add(t, kind.name, image, took, &o, state)
				if o.failed > 0 {
					t.Errorf("%s: %s", image, o)
				}
				if (err == nil) != (image == "v2") || (state == "completed") != (image == "v2") || o.versions["bad"] > 0 {
					t.Errorf("%s ended %s, answers %v, %v:\n%s", image, state, o.versions, err, out)
				}
				if resp, err := http.Get(s.url); err != nil || resp.Header.Get("X-Shop-Version") != "v2" {
					t.Errorf("after %s: %v, %v", image, resp, err)
				}
			}
			tutti(t, "rm", "show")
		})
	}
}

// readyOf are the ready instances of a workload.
func readyOf(workload string) ([]instance, error) {
	list, err := tryQuery[[]instance]("ps")
	var out []instance
	for _, i := range list {
		if i.Workload == workload && i.Status.Ready && i.Desired == "run" {
			out = append(out, i)
		}
	}
	return out, err
}

// awaitReady waits until so many instances of a workload are ready, no fewer and no more.
func awaitReady(t *testing.T, workload string, count int) time.Duration {
	t.Helper()
	return eventually(t, 90*time.Second, fmt.Sprintf("%d of %s are ready", count, workload), func() error {
		list, err := readyOf(workload)
		if err == nil && len(list) != count {
			err = fmt.Errorf("%d are", len(list))
		}
		return err
	})
}

// on counts the ready instances of a workload on a host.
func on(t *testing.T, workload, host string) int {
	t.Helper()
	list, err := readyOf(workload)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, i := range list {
		if i.Node == host {
			n++
		}
	}
	return n
}

const spread = `
services:
  web:
    image: answer:v1
    ports: ["8090:8080"]
    healthcheck: {test: [CMD, /answer, check], interval: 1s}
    deploy: {replicas: 5}
    x-tutti: {min_available: 5}
  even:
    image: answer:v1
    deploy: {replicas: 5}
    x-tutti: {rebalance: true}
  calm:
    image: answer:v1
    deploy: {replicas: 5}
    x-tutti: {lost_after: 40s}
`

func (s *show) drain(t *testing.T) {
	deployFile(t, "show", spread)
	awaitReady(t, "show/web", 5)
	l := startLoad(t, s.url)
	time.Sleep(time.Second)
	began := time.Now()
	tutti(t, "node", "drain", "host-5")
	took := time.Since(began)
	time.Sleep(time.Second)
	o := l.stop()
	left := on(t, "show/web", "host-5")
	s.add(t, "drain of a host, three services", "", took, &o, fmt.Sprintf("%d on it", left))
	if o.failed > 0 || left > 0 {
		t.Errorf("%d instances are left, %s", left, o)
	}
	tutti(t, "node", "activate", "host-5")
}

func (s *show) hostsReturn(t *testing.T) {
	const host = "host-4"
	before := map[string]bool{}
	list, err := readyOf("show/calm")
	if err != nil || len(list) != 5 {
		t.Fatal(list, err)
	}
	for _, i := range list {
		before[i.ID] = true
	}
	l := startLoad(t, s.url)
	time.Sleep(time.Second)
	tutti(t, "host", "cut", host)
	eventually(t, 20*time.Second, "the host is missed", func() error {
		if on(t, "show/calm", host) > 0 {
			return errors.New("its instances are ready")
		}
		return nil
	})
	tutti(t, "host", "heal", host)
	back := awaitReady(t, "show/calm", 5)
	if list, err = readyOf("show/calm"); err != nil {
		t.Fatal(err)
	}
	for _, i := range list {
		if !before[i.ID] {
			t.Errorf("%s of calm, which waits for its host, is another one", i.Name)
		}
	}
	awaitReady(t, "show/web", 5)
	o := l.stop()
	s.add(t, "a host is cut off and returns; a service waits for it", "", back, &o, "the same instances")

	l = startLoad(t, s.url)
	time.Sleep(time.Second)
	tutti(t, "host", "kill", host)
	began := time.Now()
	eventually(t, 60*time.Second, "what ran there runs elsewhere", func() error {
		for _, w := range []string{"show/web", "show/even"} {
			if list, err := readyOf(w); err != nil || len(list) != 5 || on(t, w, host) > 0 {
				return fmt.Errorf("%d of %s, %v", len(list), w, err)
			}
		}
		return nil
	})
	took := time.Since(began)
	o = l.stop()
	s.add(t, "a host loses its power", "", took, &o, "5 of 5 elsewhere")

	l = startLoad(t, s.url)
	tutti(t, "host", "start", host)
	began = time.Now()
	eventually(t, 150*time.Second, "work returns to it", func() error {
		if on(t, "show/even", host) == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	took = time.Since(began)
	awaitReady(t, "show/even", 5)
	o = l.stop()
	kept := on(t, "show/web", host)
	s.add(t, "it returns: with and without rebalancing", "", took, &o, fmt.Sprintf("%d and %d on it", on(t, "show/even", host), kept))
	if kept > 0 || o.failed > 0 {
		t.Errorf("%d of web, which is not rebalanced, moved; %s", kept, o)
	}
	tutti(t, "rm", "show")
}

func (s *show) autoscale(t *testing.T) {
	deployFile(t, "scaled", `
services:
  web:
    image: answer:v1
    expose: ["8080"]
    healthcheck: {test: [CMD, /answer, check], interval: 1s}
    x-tutti:
      routes: [{host: scaled.example}, {path: /}]
      autoscale: {min: 0, max: 6, requests: 10, down_after: 10s}
`)
	url := "http://10.209.0.11/"
	began := time.Now()
	ready := 0
	count := func(least, most int) func() error {
		return func() error {
			list, err := readyOf("scaled/web")
			if ready = len(list); err == nil && (ready < least || ready > most) {
				err = fmt.Errorf("%d", ready)
			}
			return err
		}
	}
	l := startLoad(t, url) // fifty a second, if the machine can
	eventually(t, 60*time.Second, "several instances share the load", count(3, 6))
	took := time.Since(began)
	time.Sleep(8 * time.Second)
	if list, err := readyOf("scaled/web"); err == nil {
		ready = len(list)
	}
	asked := time.Since(began).Seconds()
	o := l.stop()
	s.add(t, fmt.Sprintf("%.0f requests a second come, 10 are for an instance: the third", float64(o.asked)/asked), "", took, &o, fmt.Sprintf("%d instances 8 s later", ready))
	if o.failed > 0 {
		t.Errorf("scaling up: %s", o)
	}
	took = eventually(t, 90*time.Second, "the service is scaled to zero", count(0, 0))
	s.add(t, "none come any more", "", took, nil, "none")
	began = time.Now()
	resp, err := http.Get(url)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("the request that wakes the service: %v, %v", resp, err)
	}
	s.add(t, "one comes, and waits", "", time.Since(began), nil, "answered")
	tutti(t, "rm", "scaled")
}

// roomy is 60 % of a host's memory, of which there is one to a host.
func roomy(t *testing.T) int64 {
	t.Helper()
	nodes := query[[]struct {
		Capacity struct {
			MemoryBytes int64 `json:"memoryBytes"`
		} `json:"capacity"`
	}](t, "nodes")
	return nodes[0].Capacity.MemoryBytes * 6 / 10
}

const large = `
services:
  web:
    image: answer:v1
    deploy: {replicas: %d, resources: {reservations: {memory: "%d"}}}
    x-tutti: {%s}
`

func (s *show) gang(t *testing.T) {
	memory := roomy(t)
	deployFile(t, "filler", fmt.Sprintf(large, 3, memory, "priority: 0"))
	deployFile(t, "gang", fmt.Sprintf(large, 3, memory, "gang: true"), "-d")
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		for _, i := range instances(t) {
			if i.Workload == "gang/web" && i.Node != "" {
				t.Fatalf("%s was placed alone, on %s", i.Name, i.Node)
			}
		}
	}
	tutti(t, "rm", "filler")
	took := awaitReady(t, "gang/web", 3)
	s.add(t, "a gang of 3 with room for 2, until something ends", "", took, nil, "none before, then 3 of 3")
	tutti(t, "rm", "gang")
}

func (s *show) preemption(t *testing.T) {
	memory := roomy(t)
	deployFile(t, "low", fmt.Sprintf(large, 5, memory, "priority: 1, min_available: 3"))
	began := time.Now()
	deployFile(t, "high", fmt.Sprintf(large, 3, memory, "priority: 10"), "-d")
	awaitReady(t, "high/web", 2)
	took := time.Since(began)
	time.Sleep(2 * time.Second)
	low, err := readyOf("low/web")
	if err != nil || len(low) != 3 {
		t.Errorf("%d of the lower priority are ready, %v; want the 3 that stay", len(low), err)
	}
	s.add(t, "3 of a higher priority come; of 5 lower ones 3 stay", "", took, nil, fmt.Sprintf("2 placed, %d stayed", len(low)))
	tutti(t, "rm", "high")
	awaitReady(t, "low/web", 5)
	tutti(t, "rm", "low")
}

// slots takes two hosts away from stateful services: one slot may be filled elsewhere, the other has its
// volume, and waits for it.
func (s *show) slots(t *testing.T) {
	w := deployWriters(t)
	was := movable(t)
	tutti(t, "host", "kill", was.Node)
	took := elsewhere(t, was)
	w.runsOf(t, was.Name)
	s.add(t, "the host of a slot loses its power", "", took, nil, "filled elsewhere, one writer throughout")
	tutti(t, "host", "start", was.Node)
	allWell(t, 60*time.Second)

	const host = "host-3"
	tutti(t, "host", "kill", host)
	time.Sleep(5 * time.Second)
	began := time.Now()
	tutti(t, "host", "start", host)
	allWell(t, 60*time.Second)
	took = time.Since(began)
	runs := w.runsOf(t, "keep-0")
	file := filepath.Join(dataDir, "kept")
	tutti(t, "cp", "writers/keep-0:/data/lines", file)
	kept, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	seen, lost := 0, 0
	have := map[string]bool{}
	for line := range strings.Lines(string(kept)) {
		have[line] = true
	}
	witnessed, err := os.ReadFile(filepath.Join(string(w), "keep-0"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(witnessed)) {
		if strings.HasPrefix(line, runs[0]) && strings.HasSuffix(line, "\n") {
			if seen++; !have[line] {
				lost++
			}
		}
	}
	s.add(t, "the host of a slot with a volume does, and returns", "", took, nil, fmt.Sprintf("one writer, %d of %d lines kept", seen-lost, seen))
	if lost > 0 || len(runs) < 2 {
		t.Errorf("%d of %d lines are lost; runs %v", lost, seen, runs)
	}
	tutti(t, "rm", "--volumes", "writers")
}

func (s *show) cron(t *testing.T) {
	completed := 0
	eventually(t, 80*time.Second, "a run of the schedule completes", func() error {
		completed = 0
		for _, i := range instances(t) {
			if strings.HasPrefix(i.Workload, "ticks/tick-") && i.Status.State == "completed" {
				completed++
			}
		}
		if completed == 0 {
			return errors.New("none yet")
		}
		return nil
	})
	out := tutti(t, "explain", "ticks/tick")
	s.add(t, "a job every minute", "", 0, nil, fmt.Sprintf("%d kept runs completed", completed))
	if !strings.Contains(out, "next run") {
		t.Errorf("explain does not say when the next run is due:\n%s", out)
	}
	tutti(t, "rm", "ticks")
}
