package marathon

import (
	"fmt"
	"net/http"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// apiVersion is the version of Marathon whose API is spoken.
const apiVersion = "1.11.24"

// counters are those of the API itself.
type counters struct {
	requests atomic.Int64
	events   atomic.Int64
}

// leader is the address of the leading server with the API's port, "" when nobody leads.
func (a *API) leader(snap *store.Snapshot) string {
	if n := nodeByID(snap, a.Core.Servers.Leader()); n != nil {
		return n.HostAddress + ":" + port
	}
	return ""
}

// port is where the API is by default, on every server.
const port = "8088"

func (a *API) infoGet(w http.ResponseWriter, r *request) error {
	answer(w, http.StatusOK, map[string]any{
		"name": "marathon", "version": apiVersion, "buildref": "tutti " + a.Version, "elected": a.Core.Servers.Leader() == a.NodeID, "leader": a.leader(r.snap),
		"frameworkId": "tutti",
		"marathon_config": map[string]any{
			"master": "", "hostname": a.Address, "framework_name": "marathon", "mesos_role": "*", "mesos_user": "root", "ha": true, "checkpoint": true, "executor": "//cmd",
			"features": []string{}, "local_port_min": firstServicePort, "local_port_max": lastServicePort, "webui_url": nil, "failover_timeout": 604800,
			"task_lost_expunge_initial_delay": 0, "task_lost_expunge_interval": 0, "access_control_allow_origin": []string{}, "mesos_bridge_name": bridgeName,
		},
		"http_config":      map[string]any{"http_port": 8088, "https_port": 0},
		"zookeeper_config": map[string]any{"zk": "", "zk_timeout": 0, "zk_session_timeout": 0, "zk_connection_timeout": 0, "zk_max_versions": keptVersions},
	})
	return nil
}

func (a *API) leaderGet(w http.ResponseWriter, r *request) error {
	leader := a.leader(r.snap)
	if leader == "" {
		return &invalid{message: "There is no leader", status: http.StatusNotFound}
	}
	answer(w, http.StatusOK, map[string]string{"leader": leader})
	return nil
}

func (a *API) ping(w http.ResponseWriter, _ *request) error {
	w.Header().Set("Content-Type", "text/plain;charset=utf-8")
	_, _ = w.Write([]byte("pong"))
	return nil
}

func (a *API) plugins(w http.ResponseWriter, _ *request) error {
	answer(w, http.StatusOK, map[string]any{"plugins": []any{}})
	return nil
}

// metrics are numbers of this server and of what it knows.
func (a *API) metrics(w http.ResponseWriter, r *request) error {
	apps, tasks, staged := 0, 0, 0
	for _, e := range a.entries(r.snap, r.ns) {
		apps++
		for i := range store.InstancesOf(r.snap, e.workload) {
			switch node := nodeByID(r.snap, i.NodeID); {
			case !launched(i, node):
			case stateOf(i, node) == "TASK_RUNNING":
				tasks++
			default:
				staged++
			}
		}
	}
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	gauge := func(n int) map[string]any {
		return map[string]any{"count": 1, "min": n, "max": n, "mean": n, "tags": map[string]string{}, "unit": map[string]any{"name": "none", "label": "none"}}
	}
	now := time.Now()
	answer(w, http.StatusOK, map[string]any{
		"start": stamp(now.Add(-time.Minute)), "end": stamp(now), "histograms": map[string]any{}, "min-max-counters": map[string]any{},
		"counters": map[string]any{
			"marathon.http.requests.rate": map[string]any{"count": a.counts.requests.Load(), "tags": map[string]string{}},
			"marathon.events.rate":        map[string]any{"count": a.counts.events.Load(), "tags": map[string]string{}},
		},
		"gauges": map[string]any{
			"marathon.apps.active.gauge": gauge(apps), "marathon.instances.running.gauge": gauge(tasks), "marathon.instances.staged.gauge": gauge(staged),
			"marathon.deployments.active.gauge": gauge(len(a.pending(r))), "marathon.jvm.memory.total.used.gauge.bytes": gauge(int(mem.Alloc)),
		},
	})
	return nil
}

func (a *API) prometheus(w http.ResponseWriter, r *request) error {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	fmt.Fprintf(w, "# TYPE marathon_http_requests_total counter\nmarathon_http_requests_total %d\n", a.counts.requests.Load())
	fmt.Fprintf(w, "# TYPE marathon_events_total counter\nmarathon_events_total %d\n", a.counts.events.Load())
	fmt.Fprintf(w, "# TYPE marathon_apps_active gauge\nmarathon_apps_active %d\n", len(a.entries(r.snap, r.ns)))
	fmt.Fprintf(w, "# TYPE marathon_deployments_active gauge\nmarathon_deployments_active %d\n", len(a.pending(r)))
	return nil
}

// taskListAll lists the tasks of all apps.
func (a *API) taskListAll(w http.ResponseWriter, r *request) error {
	out := []task{}
	states := r.query["status"]
	states = append(states, r.query["status[]"]...)
	for _, e := range a.entries(r.snap, r.ns) {
		if e.isPod() {
			continue
		}
		for _, t := range a.tasksOf(r.snap, e) {
			switch {
			case len(states) == 0,
				contains(states, "running") && t.State == "TASK_RUNNING",
				contains(states, "staging") && (t.State == "TASK_STAGING" || t.State == "TASK_STARTING"):
				out = append(out, t)
			}
		}
	}
	answer(w, http.StatusOK, map[string]any{"tasks": out})
	return nil
}

// taskKillMany ends the tasks that the body lists.
func (a *API) taskKillMany(w http.ResponseWriter, r *request) error {
	body, err := readBody(r.Request)
	if err != nil {
		return err
	}
	var given struct {
		IDs []string `json:"ids"`
	}
	p := &problems{}
	readInto(body, &given, "/", p)
	if len(p.details) > 0 {
		return &invalid{message: "Invalid JSON", details: p.details, status: http.StatusBadRequest}
	}
	killed := []task{}
	for n, id := range given.IDs {
		instance, ok := instanceOf(id)
		if !ok {
			return badJSON(fmt.Sprintf("/ids(%d)", n), fmt.Sprintf("%q is no task id", id))
		}
		i, ok := store.Get[*model.Instance](r.snap, instance)
		if !ok {
			continue // it has ended, and was forgotten
		}
		w, ok := store.Get[*model.Workload](r.snap, i.WorkloadID)
		if !ok || w.Namespace != r.ns {
			continue
		}
		e := a.entryOf(w)
		if e == nil {
			continue
		}
		for _, t := range a.tasksOf(r.snap, e) {
			if sameTask(t.ID, id) {
				killed = append(killed, t)
			}
		}
	}
	rec, err := a.kill(r, killed)
	if err != nil {
		return err
	}
	if rec != nil {
		answer(w, http.StatusOK, rec.result())
		return nil
	}
	answer(w, http.StatusOK, map[string]any{"tasks": killed})
	return nil
}
