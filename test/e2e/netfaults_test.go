//go:build e2e && netfaults

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// faulty is a service that is asked on every way there is, and who asks it from within the cluster. What asks, and
// is asked, from outside is on hosts that nothing happens to.
const faulty = `
x-probe: &probe {image: "probe:v1", stop_grace_period: 15s}
services:
  web:
    <<: *probe
    environment: {ROUND: "%d"}
    ports: ["18080:8080"]
    expose: ["8080"]
    healthcheck: {test: [CMD, /probe, tcp, "127.0.0.1:8080"], interval: 1s, timeout: 2s, retries: 3}
    deploy: {replicas: %d, update_config: {parallelism: 1, order: start-first, monitor: 1s}}
    x-tutti: {routes: [faults.test]}
  client:
    <<: *probe
    ports: [{target: 8080, published: 18081, mode: host}]
    deploy: {placement: {constraints: [node.hostname == host-2]}}
`

// ways are three loads on one service at the same time.
type ways struct {
	t               *testing.T
	client          string // what asks by the virtual IP, from within
	meshed, ingress *load
}

func startWays(t *testing.T) *ways {
	t.Helper()
	w := &ways{t: t, client: "http://" + addressOf(t, "host-2") + ":18081"}
	if _, err := get(w.client + "/load/start?url=http://web:8080/who"); err != nil {
		t.Fatal(err)
	}
	first := addressOf(t, "host-1")
	w.meshed = startLoad(t, "http://"+first+":18080/who")
	w.ingress = startLoadOf(t, "http://"+first+"/who", "faults.test")
	time.Sleep(2 * time.Second)
	return w
}

// stop returns what became of each load: by virtual IP, by published port, through the ingress.
func (w *ways) stop() [3]outcome {
	w.t.Helper()
	time.Sleep(2 * time.Second)
	resp, err := http.Get(w.client + "/load/stop")
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	var told []struct {
		Asked, At time.Time
		Status    int
		Error     string
	}
	if err := json.NewDecoder(resp.Body).Decode(&told); err != nil {
		w.t.Fatal(err)
	}
	var answers []answer
	for _, a := range told {
		one := answer{asked: a.Asked, at: a.At, status: a.Status}
		if a.Error != "" {
			one.err = errors.New(a.Error)
		}
		answers = append(answers, one)
	}
	return [3]outcome{sumUp(answers), w.meshed.stop(), w.ingress.stop()}
}

// TestNetworkFaults shows what becomes of requests on every way to a service when something happens to it, to hosts
// and to Tutti: while nothing is lost, none fails.
func TestNetworkFaults(t *testing.T) {
	deployText(t, "faults", fmt.Sprintf(faulty, 1, 4))
	url := "http://" + addressOf(t, "host-1") + "/who"
	eventually(t, time.Minute, "the ingress leads", func() error {
		r, err := http.NewRequest("GET", url, nil)
		if err != nil {
			return err
		}
		r.Host = "faults.test"
		resp, err := http.DefaultClient.Do(r)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode != 200 {
				err = errors.New(resp.Status)
			}
		}
		return err
	})
	again := func(round, count int) {
		path := filepath.Join(dataDir, "faults.yaml")
		if err := os.WriteFile(path, fmt.Appendf(nil, faulty, round, count), 0o644); err != nil {
			t.Fatal(err)
		}
		tutti(t, "deploy", "-d", "-f", path, "faults")
		allWell(t, 2*time.Minute)
	}
	missed := func(host string) {
		eventually(t, time.Minute, host+" is missed, and what ran there runs elsewhere", func() error {
			ready := 0
			for _, i := range instances(t) {
				if i.Workload == "faults/web" && i.Status.Ready && i.Node != host {
					ready++
				}
			}
			if ready < 4 {
				return fmt.Errorf("%d instances elsewhere", ready)
			}
			return nil
		})
	}
	back := func(host string) {
		eventually(t, time.Minute, host+" is back", func() error {
			list, err := tryQuery[[]nodeState]("nodes")
			for _, n := range list {
				if n.Name == host && n.Status.State == "ready" {
					return nil
				}
			}
			return fmt.Errorf("%v: %+v", err, list)
		})
		allWell(t, time.Minute)
	}
	var rows []string
	for _, fault := range []struct {
		name string
		lost bool // something is lost before anybody can know
		do   func()
	}{
		{"scaled from 4 to 8", false, func() { tutti(t, "scale", "faults/web=8"); allWell(t, time.Minute) }},
		{"scaled from 8 to 4", false, func() { tutti(t, "scale", "faults/web=4"); allWell(t, time.Minute) }},
		{"rolled to a new revision", false, func() { again(2, 4) }},
		{"a host drained", false, func() {
			tutti(t, "node", "drain", "host-3")
			allWell(t, time.Minute)
			tutti(t, "node", "activate", "host-3")
		}},
		{"Tutti's processes killed on every host, one after the other", false, func() {
			for _, h := range query[[]hostState](t, "host", "ls") {
				nodeProcessRestarts(t, h.Name)
			}
			allWell(t, time.Minute)
		}},
		{"a host loses its power", true, func() { tutti(t, "host", "kill", "host-4"); missed("host-4") }},
		{"it returns", false, func() { tutti(t, "host", "start", "host-4"); back("host-4") }},
		{"a host is cut off", true, func() { tutti(t, "host", "cut", "host-5"); missed("host-5") }},
		{"it is healed", false, func() { tutti(t, "host", "heal", "host-5"); back("host-5") }},
	} {
		w := startWays(t)
		began := time.Now()
		fault.do()
		took := time.Since(began)
		row := fmt.Sprintf("| %s | %.1f s |", fault.name, took.Seconds())
		for k, o := range w.stop() {
			row += fmt.Sprintf(" %d of %d, %.2f s |", o.failed, o.asked, o.longestGap.Seconds())
			if o.failed > 0 && !fault.lost || o.asked < 20 {
				t.Errorf("%s, by %s: %s", fault.name, []string{"virtual IP", "published port", "ingress"}[k], o)
			}
		}
		rows = append(rows, row)
		t.Log(row)
	}
	fmt.Printf("\n| failed of requests, longest gap between answers | took | by virtual IP | by published port | by the ingress |\n| --- | --- | --- | --- | --- |\n%s\n\n", strings.Join(rows, "\n"))
}
