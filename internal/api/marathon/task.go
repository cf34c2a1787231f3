package marathon

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// task is a task as clients get it.
type task struct {
	AppID              string         `json:"appId"`
	HealthCheckResults []healthResult `json:"healthCheckResults,omitempty"`
	Host               string         `json:"host"`
	ID                 string         `json:"id"`
	IPAddresses        []ipOf         `json:"ipAddresses"`
	Ports              []int          `json:"ports"`
	ServicePorts       []int          `json:"servicePorts,omitempty"`
	SlaveID            string         `json:"slaveId"`
	State              string         `json:"state"`
	StagedAt           string         `json:"stagedAt,omitempty"`
	StartedAt          string         `json:"startedAt,omitempty"`
	Version            string         `json:"version"`
	LocalVolumes       []localVolume  `json:"localVolumes,omitempty"`
	Region             string         `json:"region,omitempty"`
	Zone               string         `json:"zone,omitempty"`
	Role               string         `json:"role"`
}

type ipOf struct {
	IPAddress string `json:"ipAddress"`
	Protocol  string `json:"protocol"`
}

type localVolume struct {
	ContainerPath string `json:"containerPath"`
	PersistenceID string `json:"persistenceId"`
	RunSpecID     string `json:"runSpecId"`
	UUID          string `json:"uuid"`
}

type healthResult struct {
	Alive               bool   `json:"alive"`
	ConsecutiveFailures int    `json:"consecutiveFailures"`
	FirstSuccess        string `json:"firstSuccess,omitempty"`
	LastSuccess         string `json:"lastSuccess,omitempty"`
	LastFailure         string `json:"lastFailure,omitempty"`
	LastFailureCause    string `json:"lastFailureCause,omitempty"`
	InstanceID          string `json:"instanceId"`
}

// stateOf is the state of an instance in the words of Mesos; node may be nil.
func stateOf(i *model.Instance, node *model.Node) string {
	st := &i.Status
	switch {
	case st.State == model.InstanceLost, !st.State.Final() && node != nil && node.Status.State == model.NodeDown:
		return "TASK_UNREACHABLE"
	case st.State == model.InstanceFailed:
		return "TASK_FAILED"
	case st.State == model.InstanceCompleted:
		if i.Desired != model.DesiredRun {
			return "TASK_KILLED"
		}
		return "TASK_FINISHED"
	case i.Desired != model.DesiredRun || st.State == model.InstanceStopping:
		return "TASK_KILLING"
	case st.State == model.InstanceRunning:
		return "TASK_RUNNING"
	case st.State == model.InstanceStarting:
		return "TASK_STARTING"
	}
	return "TASK_STAGING"
}

// condition is the state of a task as instances have it: TASK_RUNNING is Running.
func condition(state string) string {
	word := strings.ToLower(strings.TrimPrefix(state, "TASK_"))
	return strings.ToUpper(word[:1]) + word[1:]
}

// runOf is the number of the run that an instance is in, from 1.
func runOf(i *model.Instance) string {
	if len(i.Status.Tasks) > 0 && i.Status.Tasks[0].Run > 0 {
		return strconv.Itoa(i.Status.Tasks[0].Run)
	}
	return "1"
}

// instanceOf finds out which instance a task or an instance ID means.
func instanceOf(id string) (instance string, ok bool) {
	_, rest, ok := strings.Cut(id, ".instance-")
	if !ok {
		return "", false
	}
	instance, _, _ = strings.Cut(rest, ".")
	return instance, instance != ""
}

// launched reports whether clients see a task of an instance: it has a node, and has not been given up.
func launched(i *model.Instance, node *model.Node) bool {
	return i.NodeID != "" && !i.Status.State.Final()
}

func timeText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return stamp(t)
}

// tasksOf are the tasks of an app.
func (a *API) tasksOf(snap *store.Snapshot, e *entry) []task {
	out := []task{}
	var spec *app
	if e.kept != nil && e.kept.App != nil {
		spec = e.kept.App
	}
	versions := map[string]string{}
	for i := range store.InstancesOf(snap, e.workload) {
		node, _ := store.Get[*model.Node](snap, i.NodeID)
		if launched(i, node) {
			out = append(out, taskView(snap, e, spec, i, node, versions))
		}
	}
	slices.SortFunc(out, func(x, y task) int { return cmp.Or(cmp.Compare(x.StagedAt, y.StagedAt), cmp.Compare(x.ID, y.ID)) })
	return out
}

// versionOf is the version of the configuration that an instance has.
func versionOf(snap *store.Snapshot, e *entry, i *model.Instance, known map[string]string) string {
	v, ok := known[i.RevisionID]
	if !ok {
		if r, found := store.Get[*model.Revision](snap, i.RevisionID); found {
			if v = configOf(&r.Template); v == "" {
				v = stamp(r.Created)
			}
		}
		known[i.RevisionID] = v
	}
	return v
}

func taskView(snap *store.Snapshot, e *entry, spec *app, i *model.Instance, node *model.Node, versions map[string]string) task {
	t := task{
		AppID: e.path, ID: taskID(e.path, i.ID, runOf(i)), IPAddresses: []ipOf{}, Ports: []int{}, SlaveID: i.NodeID, State: stateOf(i, node),
		StagedAt: timeText(i.Created), Version: versionOf(snap, e, i, versions), Role: "*",
	}
	if i.Status.State == model.InstanceRunning {
		t.StartedAt = timeText(i.Status.Started)
	}
	for _, at := range i.Addresses {
		t.IPAddresses = append(t.IPAddresses, ipOf{at.IP, "IPv4"})
	}
	if node != nil {
		t.Host, t.Region, t.Zone = node.HostAddress, node.Labels["region"], node.Labels["zone"]
		if len(i.Addresses) == 0 {
			t.IPAddresses = append(t.IPAddresses, ipOf{node.HostAddress, "IPv4"})
		}
	}
	for _, p := range i.HostPorts {
		t.Ports = append(t.Ports, p.Published)
	}
	if spec != nil {
		t.ServicePorts = *portNumbers(spec)
		for named, own := range i.Volumes {
			for n, v := range spec.volumes() {
				if vol, ok := store.Get[*model.Volume](snap, named); ok && v.Persistent != nil && vol.Name == volumeName(e.workload.Name, n) {
					t.LocalVolumes = append(t.LocalVolumes, localVolume{v.ContainerPath, safeID(e.path) + "#" + v.ContainerPath + "#" + own, e.path, own})
				}
			}
		}
	}
	if h := i.Status.Health; h == model.HealthHealthy || h == model.HealthUnhealthy {
		r := healthResult{Alive: h == model.HealthHealthy, InstanceID: instanceID(e.path, i.ID), FirstSuccess: timeText(i.Status.ReadySince)}
		if r.Alive {
			r.LastSuccess = r.FirstSuccess
		} else {
			r.ConsecutiveFailures, r.LastFailureCause = 1, i.Status.Message
		}
		t.HealthCheckResults = []healthResult{r}
	}
	return t
}

func (a *app) volumes() []volume {
	if a.Container == nil {
		return nil
	}
	return a.Container.Volumes
}
