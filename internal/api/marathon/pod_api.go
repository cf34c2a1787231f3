package marathon

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// podSpec is a pod as it is. What is in it is shared.
func podSpec(e *entry) *pod {
	c := *e.kept.Pod
	c.Version = e.kept.Version
	c.Scaling = &podScaling{Kind: c.Scaling.Kind, Instances: e.workload.Count}
	return &c
}

func (a *API) podOf(r *request) (*entry, error) {
	path, err := pathOf(r)
	if err != nil {
		return nil, err
	}
	if e := a.find(r.snap, r.ns, path); e != nil && e.isPod() {
		return e, nil
	}
	return nil, a.notFound("Pod", path)
}

func (a *API) pods(r *request) (out []*entry) {
	for _, e := range a.entries(r.snap, r.ns) {
		if e.isPod() {
			out = append(out, e)
		}
	}
	return out
}

func (a *API) podList(w http.ResponseWriter, r *request) error {
	out := []*pod{}
	for _, e := range a.pods(r) {
		out = append(out, podSpec(e))
	}
	answer(w, http.StatusOK, out)
	return nil
}

func (a *API) podGet(w http.ResponseWriter, r *request) error {
	e, err := a.podOf(r)
	if err != nil {
		return err
	}
	answer(w, http.StatusOK, podSpec(e))
	return nil
}

func (a *API) podHead(w http.ResponseWriter, _ *request) error {
	w.WriteHeader(http.StatusOK) // says that pods are spoken
	return nil
}

// podPut makes a pod (POST), or changes one (PUT).
func (a *API) podPut(w http.ResponseWriter, r *request) error {
	o, err := bodyObject(r.Request)
	if err != nil {
		return err
	}
	p := &problems{}
	id := o.text("id")
	if r.Method == http.MethodPut && id == "" {
		id = r.vars["id"]
	}
	path, ok := resolvePath("/", id)
	if !ok || path == "/" {
		p.add("/id", idSentence)
		return p.err()
	}
	if r.Method == http.MethodPut {
		if given, _ := resolvePath("/", r.vars["id"]); given != path {
			return badJSON("/id", "does not match the id in the path")
		}
	}
	spec := readPod(o, path, p)
	if err := p.err(); err != nil {
		return err
	}
	rec, err := a.decide(r, func() (*change, error) {
		c := &change{pods: map[string]*pod{path: spec}, force: r.flag("force")}
		if r.Method == http.MethodPost {
			return c, a.free(r, path)
		}
		if e := a.find(r.snap, r.ns, path); e == nil || !e.isPod() {
			return nil, a.notFound("Pod", path)
		}
		return c, nil
	})
	if err != nil {
		return err
	}
	spec.Version = rec.Version
	status, event := http.StatusOK, "pod_updated_event"
	if r.Method == http.MethodPost {
		status, event = http.StatusCreated, "pod_created_event"
		w.Header().Set("Location", "/v2/pods"+path)
	}
	w.Header().Set("Marathon-Deployment-Id", rec.ID)
	a.streams.send(event, map[string]any{"clientIp": r.RemoteAddr, "uri": "/v2/pods" + path})
	answer(w, status, spec)
	return nil
}

func (a *API) podDelete(w http.ResponseWriter, r *request) error {
	path, err := pathOf(r)
	if err != nil {
		return err
	}
	rec, err := a.decide(r, func() (*change, error) {
		if e := a.find(r.snap, r.ns, path); e == nil || !e.isPod() {
			return nil, a.notFound("Pod", path)
		}
		return &change{remove: []string{path}, force: r.flag("force")}, nil
	})
	if err != nil {
		return err
	}
	w.Header().Set("Marathon-Deployment-Id", rec.ID)
	a.streams.send("pod_deleted_event", map[string]any{"clientIp": r.RemoteAddr, "uri": "/v2/pods" + path})
	w.WriteHeader(http.StatusAccepted)
	return nil
}

// podStatus is a pod with its instances.
type podStatus struct {
	ID          string              `json:"id"`
	Spec        *pod                `json:"spec"`
	Status      string              `json:"status"`
	StatusSince string              `json:"statusSince"`
	Instances   []podInstanceStatus `json:"instances"`
	LastUpdated string              `json:"lastUpdated"`
	LastChanged string              `json:"lastChanged"`
}

type podInstanceStatus struct {
	ID            string            `json:"id"`
	Status        string            `json:"status"`
	StatusSince   string            `json:"statusSince"`
	Message       string            `json:"message,omitempty"`
	AgentHostname string            `json:"agentHostname,omitempty"`
	AgentID       string            `json:"agentId,omitempty"`
	Resources     resources         `json:"resources"`
	Networks      []podNetwork      `json:"networks,omitempty"`
	Containers    []containerStatus `json:"containers,omitempty"`
	SpecReference string            `json:"specReference,omitempty"`
	LastUpdated   string            `json:"lastUpdated"`
	LastChanged   string            `json:"lastChanged"`
	Role          string            `json:"role"`
}

type podNetwork struct {
	Name      string   `json:"name,omitempty"`
	Addresses []string `json:"addresses,omitempty"`
}

type containerStatus struct {
	Name        string           `json:"name"`
	Status      string           `json:"status"`
	StatusSince string           `json:"statusSince"`
	ContainerID string           `json:"containerId"`
	Endpoints   []endpointStatus `json:"endpoints,omitempty"`
	Resources   resources        `json:"resources"`
	Termination *termination     `json:"termination,omitempty"`
	LastUpdated string           `json:"lastUpdated"`
	LastChanged string           `json:"lastChanged"`
}

type endpointStatus struct {
	Name              string `json:"name"`
	AllocatedHostPort int    `json:"allocatedHostPort,omitempty"`
	Healthy           *bool  `json:"healthy,omitempty"`
}

type termination struct {
	ExitCode int    `json:"exitCode"`
	Message  string `json:"message,omitempty"`
}

func (a *API) podState(snap *store.Snapshot, e *entry) *podStatus {
	s := &podStatus{ID: e.path, Spec: podSpec(e), Status: "DEGRADED", Instances: []podInstanceStatus{}, LastUpdated: e.kept.Version, LastChanged: e.kept.Version, StatusSince: e.kept.Version}
	stable := 0
	versions := map[string]string{}
	for i := range store.InstancesOfWorkload(snap, e.workload.ID) {
		if i.Status.State.Final() {
			continue
		}
		v := podInstance(snap, e, i, versionOf(snap, e, i, versions))
		if v.Status == "STABLE" {
			stable++
		}
		s.StatusSince = max(s.StatusSince, v.StatusSince)
		s.Instances = append(s.Instances, v)
	}
	if stable >= e.workload.Count {
		s.Status = "STABLE"
	}
	slices.SortFunc(s.Instances, func(x, y podInstanceStatus) int { return strings.Compare(x.ID, y.ID) })
	return s
}

func podInstance(snap *store.Snapshot, e *entry, i *model.Instance, version string) podInstanceStatus {
	d := e.kept.Pod
	since := i.Created
	if i.Status.Started.After(since) {
		since = i.Status.Started
	}
	v := podInstanceStatus{
		ID: instanceID(e.path, i.ID), Message: i.Status.Message, AgentID: i.NodeID, StatusSince: stamp(since), LastUpdated: stamp(since), LastChanged: stamp(since),
		SpecReference: "/v2/pods" + e.path + "::versions/" + version, Role: "*",
	}
	node := nodeByID(snap, i.NodeID)
	if node != nil {
		v.AgentHostname = node.HostAddress
	}
	switch {
	case i.Desired != model.DesiredRun:
		v.Status = "TERMINAL"
	case i.NodeID == "":
		v.Status, v.Message = "PENDING", i.Reason
	case i.Status.Ready:
		v.Status = "STABLE"
	case i.Status.State == model.InstanceRunning || i.Status.State == model.InstanceWaiting:
		v.Status = "DEGRADED"
	default:
		v.Status = "STAGING"
	}
	for _, at := range i.Addresses {
		n, _ := store.Get[*model.Network](snap, at.Network)
		name := ""
		if n != nil {
			name = n.Name
		}
		v.Networks = append(v.Networks, podNetwork{name, []string{at.IP}})
	}
	port := 0
	for k := range d.Containers {
		c := &d.Containers[k]
		v.Resources.Cpus, v.Resources.Mem, v.Resources.Disk = v.Resources.Cpus+c.Resources.Cpus, v.Resources.Mem+c.Resources.Mem, v.Resources.Disk+c.Resources.Disk
		cs := containerStatus{Name: c.Name, Status: stateOf(i, node), StatusSince: v.StatusSince, ContainerID: v.ID + "." + c.Name, Resources: c.Resources, LastUpdated: v.LastUpdated, LastChanged: v.LastChanged}
		for _, run := range i.Status.Tasks {
			if run.Name == c.Name && run.State == "exited" {
				cs.Termination = &termination{run.ExitCode, run.Error}
			}
		}
		for _, ep := range c.Endpoints {
			es := endpointStatus{Name: ep.Name}
			if ep.HostPort != nil || d.onHost() {
				if port < len(i.HostPorts) {
					es.AllocatedHostPort = i.HostPorts[port].Published
				}
				port++
			}
			if c.HealthCheck != nil {
				healthy := i.Status.Health == model.HealthHealthy
				es.Healthy = &healthy
			}
			cs.Endpoints = append(cs.Endpoints, es)
		}
		v.Containers = append(v.Containers, cs)
	}
	return v
}

func (a *API) podStatus(w http.ResponseWriter, r *request) error {
	e, err := a.podOf(r)
	if err != nil {
		return err
	}
	answer(w, http.StatusOK, a.podState(r.snap, e))
	return nil
}

func (a *API) podStatuses(w http.ResponseWriter, r *request) error {
	out := []*podStatus{}
	for _, e := range a.pods(r) {
		out = append(out, a.podState(r.snap, e))
	}
	answer(w, http.StatusOK, out)
	return nil
}

func (a *API) podVersions(w http.ResponseWriter, r *request) error {
	e, err := a.podOf(r)
	if err != nil {
		return err
	}
	answer(w, http.StatusOK, slices.Concat([]string{}, versionsOf(r.snap, versionPrefix(r.ns, e.path))))
	return nil
}

func (a *API) podVersion(w http.ResponseWriter, r *request) error {
	e, err := a.podOf(r)
	if err != nil {
		return err
	}
	kv, ok := r.snap.Keys().Get(versionKey(r.ns, e.path, r.vars["version"]))
	k := &kept{}
	if !ok || json.Unmarshal(kv.Value, k) != nil || k.Pod == nil {
		return a.notFound("Pod", e.path+" at version "+r.vars["version"])
	}
	k.Pod.Version = k.Version
	answer(w, http.StatusOK, k.Pod)
	return nil
}

// podKill ends instances of a pod: one, or those that the body lists.
func (a *API) podKill(w http.ResponseWriter, r *request) error {
	e, err := a.podOf(r)
	if err != nil {
		return err
	}
	given := []string{r.vars["instance"]}
	if r.vars["instance"] == "" {
		body, err := readBody(r.Request)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(body, &given); err != nil {
			return badJSON("/", "expected an array of instance ids: "+err.Error())
		}
	}
	if r.flag("wipe") && e.kept.Pod.resident() {
		return &invalid{message: "wipe=true for pods with persistent volumes is not supported by Tutti yet", status: http.StatusUnprocessableEntity}
	}
	var ids []string
	out := []any{}
	for _, g := range given {
		id, ok := instanceOf(g)
		i, found := store.Get[*model.Instance](r.snap, id)
		if !ok || !found || i.WorkloadID != e.workload.ID {
			return &invalid{message: fmt.Sprintf("Instance '%s' does not exist", g), status: http.StatusNotFound}
		}
		ids = append(ids, id)
		out = append(out, a.instanceView(r.snap, e, i))
	}
	if err := a.Core.EndInstances(r.Context(), r.who, ids, false); err != nil {
		return err
	}
	if r.vars["instance"] != "" {
		answer(w, http.StatusOK, out[0])
		return nil
	}
	answer(w, http.StatusOK, out)
	return nil
}

// instanceView is an instance as events and pods have it.
func (a *API) instanceView(snap *store.Snapshot, e *entry, i *model.Instance) map[string]any {
	node := nodeByID(snap, i.NodeID)
	agent := map[string]any{"attributes": []any{}, "agentId": i.NodeID}
	if node != nil {
		agent["host"] = node.HostAddress
	}
	goal := "Running"
	if i.Desired != model.DesiredRun {
		goal = "Decommissioned"
	}
	strategy := &unreachable{}
	if e.kept != nil && e.kept.Pod != nil {
		strategy = e.kept.Pod.Scheduling.UnreachableStrategy
	}
	return map[string]any{
		"instanceId": instanceID(e.path, i.ID), "agentInfo": agent, "runSpecVersion": versionOf(snap, e, i, map[string]string{}), "unreachableStrategy": strategy,
		"state": map[string]any{"condition": condition(stateOf(i, node)), "since": stamp(i.Created), "goal": goal},
	}
}
