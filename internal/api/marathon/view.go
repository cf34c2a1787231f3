package marathon

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// appInfo is an app with how it is.
type appInfo struct {
	app
	TasksStaged    int `json:"tasksStaged"`
	TasksRunning   int `json:"tasksRunning"`
	TasksHealthy   int `json:"tasksHealthy"`
	TasksUnhealthy int `json:"tasksUnhealthy"`

	Deployments           []identified   `json:"deployments,omitempty"`
	ReadinessCheckResults []readiness    `json:"readinessCheckResults,omitempty"`
	Tasks                 *[]task        `json:"tasks,omitempty"`
	LastTaskFailure       *taskFailure   `json:"lastTaskFailure,omitempty"`
	TaskStats             map[string]any `json:"taskStats,omitempty"`
}

type readiness struct {
	Name   string `json:"name"`
	TaskID string `json:"taskId"`
	Ready  bool   `json:"ready"`
}

type taskFailure struct {
	AppID     string `json:"appId"`
	Host      string `json:"host"`
	Message   string `json:"message"`
	State     string `json:"state"`
	TaskID    string `json:"taskId"`
	Timestamp string `json:"timestamp"`
	Version   string `json:"version"`
	SlaveID   string `json:"slaveId,omitempty"`
}

// embeds are the parts that a client asked for, as "apps.tasks" or "app.tasks".
type embeds map[string]bool

func embedsOf(r *request) embeds {
	out := embeds{}
	for _, e := range r.query["embed"] {
		for _, name := range strings.Split(e, ",") {
			for _, prefix := range []string{"apps.", "app.", "group.apps.", "group."} {
				if rest, ok := strings.CutPrefix(name, prefix); ok {
					out[rest] = true
				}
			}
			out[name] = true
		}
	}
	if out["failures"] {
		out["lastTaskFailure"] = true
	}
	return out
}

// spec is an app as it is, made by whichever API.
func (a *API) spec(snap *store.Snapshot, e *entry) *app {
	var s *app
	if e.kept == nil {
		s = foreignApp(snap, e)
	} else {
		s = a.present(snap, e)
		s.Version = e.kept.Version
		s.VersionInfo = &versionInfo{LastScalingAt: e.kept.Scaled, LastConfigChangeAt: e.kept.Config}
	}
	s.ID = e.path
	return s
}

// foreignApp says in Marathon's words what another API made.
func foreignApp(snap *store.Snapshot, e *entry) *app {
	w := e.workload
	a := &app{Labels: map[string]string{}}
	for k, v := range w.Labels {
		a.Labels[k] = v
	}
	count := w.Count
	if w.Suspended {
		count = 0
	}
	a.Instances = &count
	if len(w.Template.Tasks) > 0 {
		t := &w.Template.Tasks[0]
		cpus, mem := float64(t.Reserve.NanoCPUs)/1e9, float64(t.Reserve.MemoryBytes)/mebibyte
		a.Cpus, a.Mem = &cpus, &mem
		if t.Image != "" {
			a.Container = &container{Type: "DOCKER", Volumes: []volume{}, Docker: &dockerImage{Image: t.Image, Parameters: []dockerParameter{}}}
		}
		a.Args = slices.Concat(t.Entrypoint, t.Args)
		a.Env = map[string]envValue{}
		for _, env := range t.Env {
			k, v, _ := strings.Cut(env, "=")
			a.Env[k] = envValue{Value: v}
		}
	}
	for _, at := range w.Template.Networks {
		if n, ok := store.Get[*model.Network](snap, at.Network); ok {
			a.Networks = append(a.Networks, network{Mode: "container", Name: n.Name})
		}
	}
	a.fillIn()
	version := w.Created
	if r, ok := store.Get[*model.Revision](snap, w.RevisionID); ok {
		version = r.Created
	}
	a.Version = stamp(version)
	a.VersionInfo = &versionInfo{a.Version, a.Version}
	return a
}

// info is an app with what a client asked for of how it is.
func (a *API) info(r *request, e *entry, with embeds) *appInfo {
	snap := r.snap
	out := &appInfo{app: *a.spec(snap, e)}
	var failure *model.Instance
	versions := map[string]string{}
	for i := range store.InstancesOf(snap, e.workload) {
		st := &i.Status
		node, _ := store.Get[*model.Node](snap, i.NodeID)
		if st.State == model.InstanceFailed || st.State == model.InstanceLost || st.Restarts > 0 {
			if failure == nil || st.Finished.After(failure.Status.Finished) {
				failure = i
			}
		}
		if !launched(i, node) {
			continue
		}
		switch stateOf(i, node) {
		case "TASK_RUNNING":
			out.TasksRunning++
		case "TASK_STAGING", "TASK_STARTING":
			out.TasksStaged++
		}
		switch st.Health {
		case model.HealthHealthy:
			out.TasksHealthy++
		case model.HealthUnhealthy:
			out.TasksUnhealthy++
		}
		if with["readiness"] && len(out.app.ReadinessChecks) > 0 {
			for _, c := range out.app.ReadinessChecks {
				out.ReadinessCheckResults = append(out.ReadinessCheckResults, readiness{c.Name, taskID(e.path, i.ID, runOf(i)), st.Ready})
			}
		}
	}
	if with["deployments"] {
		if rec := under(snap, r.ns, e.path); rec != nil {
			out.Deployments = []identified{{rec.ID}}
		}
	}
	if with["tasks"] {
		tasks := a.tasksOf(snap, e)
		out.Tasks = &tasks
	}
	if with["lastTaskFailure"] && failure != nil {
		out.LastTaskFailure = a.failure(snap, e, failure, versions)
	}
	if with["taskStats"] {
		out.TaskStats = a.stats(snap, e)
	}
	return out
}

func (a *API) failure(snap *store.Snapshot, e *entry, i *model.Instance, versions map[string]string) *taskFailure {
	f := &taskFailure{
		AppID: e.path, Message: i.Status.Message, State: "TASK_FAILED", TaskID: taskID(e.path, i.ID, runOf(i)),
		Timestamp: timeText(i.Status.Finished), Version: versionOf(snap, e, i, versions), SlaveID: i.NodeID,
	}
	if i.Status.State == model.InstanceLost {
		f.State = "TASK_UNREACHABLE"
	}
	if n, ok := store.Get[*model.Node](snap, i.NodeID); ok {
		f.Host = n.HostAddress
	}
	if f.Timestamp == "" {
		f.Timestamp = timeText(i.Created)
	}
	return f
}

// stats tells how many tasks there are, and how old they are, by what version they have.
func (a *API) stats(snap *store.Snapshot, e *entry) map[string]any {
	type group struct {
		staged, running, healthy, unhealthy int
		ages                                []float64
	}
	groups := map[string]*group{}
	now := time.Now()
	versions := map[string]string{}
	add := func(name string, i *model.Instance, node *model.Node) {
		g := groups[name]
		if g == nil {
			g = &group{}
			groups[name] = g
		}
		if stateOf(i, node) == "TASK_RUNNING" {
			g.running++
		} else {
			g.staged++
		}
		switch i.Status.Health {
		case model.HealthHealthy:
			g.healthy++
		case model.HealthUnhealthy:
			g.unhealthy++
		}
		g.ages = append(g.ages, now.Sub(i.Created).Seconds())
	}
	for i := range store.InstancesOf(snap, e.workload) {
		node, _ := store.Get[*model.Node](snap, i.NodeID)
		if !launched(i, node) {
			continue
		}
		add("totalSummary", i, node)
		if i.RevisionID == e.workload.RevisionID {
			add("withLatestConfig", i, node)
		} else {
			add("withOutdatedConfig", i, node)
		}
		if e.kept != nil && stamp(i.Created) >= e.kept.Scaled && versionOf(snap, e, i, versions) != "" {
			add("startedAfterLastScaling", i, node)
		}
	}
	out := map[string]any{}
	for name, g := range groups {
		slices.Sort(g.ages)
		sum := 0.0
		for _, age := range g.ages {
			sum += age
		}
		out[name] = map[string]any{"stats": map[string]any{
			"counts":   map[string]int{"staged": g.staged, "running": g.running, "healthy": g.healthy, "unhealthy": g.unhealthy},
			"lifeTime": map[string]float64{"averageSeconds": sum / float64(len(g.ages)), "medianSeconds": g.ages[len(g.ages)/2]},
		}}
	}
	return out
}

func (a *API) notFound(what, path string) error {
	return &invalid{message: what + " '" + path + "' does not exist", status: http.StatusNotFound}
}
