package docker

import (
	"cmp"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

func findTask(snap *store.Snapshot, ref string) (*model.Instance, *model.Workload, error) {
	var found []*model.Instance
	for i := range store.ByIDPrefix[*model.Instance](snap, ref) {
		if w, ok := store.Get[*model.Workload](snap, i.WorkloadID); ok && !isContainer(w) && ref != "" {
			found = append(found, i)
		}
	}
	if len(found) != 1 {
		return nil, nil, fault.New(fault.NotFound, "task %s not found", ref)
	}
	w, _ := store.Get[*model.Workload](snap, found[0].WorkloadID)
	if owner, within := store.Within(snap, w); within {
		for _, i := range tasksOf(snap, owner) {
			if i.ID == found[0].ID {
				return i, owner, nil
			}
		}
	}
	return found[0], w, nil
}

// tasksOf are the instances of a service. Those of one that another platform keeps have no slots: they are
// numbered here, by their age.
func tasksOf(snap *store.Snapshot, w *model.Workload) []*model.Instance {
	list := slices.Collect(store.InstancesOf(snap, w))
	if w.Followed == nil {
		return list
	}
	slices.SortFunc(list, func(x, y *model.Instance) int {
		return cmp.Or(x.Created.Compare(y.Created), strings.Compare(x.ID, y.ID))
	})
	slot := 0
	for n, i := range list {
		list[n] = i.Clone()
		if i.WantsToRun() {
			slot++
			list[n].Slot = slot
		}
	}
	for _, i := range list {
		if !i.WantsToRun() {
			slot++
			i.Slot = slot
		}
	}
	return list
}

// current reports whether an instance is of the template that its service has now, as far as that is known.
func current(w *model.Workload, i *model.Instance) bool {
	return i.RevisionID == w.RevisionID || w.Followed != nil
}

// taskState is the state of an instance in Swarm's words.
func taskState(w *model.Workload, i *model.Instance) swarm.TaskState {
	switch i.Status.State {
	case model.InstancePending:
		if i.NodeID == "" {
			return swarm.TaskStatePending
		}
		return swarm.TaskStateAssigned
	case model.InstancePreparing:
		return swarm.TaskStatePreparing
	case model.InstanceStarting:
		return swarm.TaskStateStarting
	case model.InstanceRunning:
		if i.Status.Health == model.HealthStarting {
			return swarm.TaskStateStarting
		}
		return swarm.TaskStateRunning
	case model.InstanceWaiting:
		return swarm.TaskStateReady
	case model.InstanceStopping:
		return swarm.TaskStateRunning
	case model.InstanceFailed:
		if i.Desired != model.DesiredRun {
			return swarm.TaskStateShutdown
		}
		if len(i.Status.Tasks) == 0 {
			return swarm.TaskStateRejected
		}
		return swarm.TaskStateFailed
	case model.InstanceLost:
		return swarm.TaskStateOrphaned
	}
	if i.Desired != model.DesiredRun {
		return swarm.TaskStateShutdown
	}
	return swarm.TaskStateComplete
}

func desiredTaskState(w *model.Workload, i *model.Instance) swarm.TaskState {
	switch {
	case i.Desired != model.DesiredRun || i.Status.State.Final() && !w.Type.Job():
		return swarm.TaskStateShutdown
	case w.Type.Job():
		return swarm.TaskStateComplete
	}
	return swarm.TaskStateRunning
}

var taskMessages = map[swarm.TaskState]string{
	swarm.TaskStatePending: "pending task scheduling", swarm.TaskStateAssigned: "scheduler assigned task to node", swarm.TaskStatePreparing: "preparing",
	swarm.TaskStateStarting: "starting", swarm.TaskStateRunning: "started", swarm.TaskStateReady: "waiting to be restarted", swarm.TaskStateFailed: "started",
	swarm.TaskStateComplete: "finished", swarm.TaskStateShutdown: "shutdown", swarm.TaskStateRejected: "preparing", swarm.TaskStateOrphaned: "the node is gone",
}

func taskView(snap *store.Snapshot, w *model.Workload, i *model.Instance) swarm.Task {
	t := swarm.Task{ID: i.ID, ServiceID: w.ID, Slot: i.Slot, NodeID: i.NodeID, DesiredState: desiredTaskState(w, i)}
	t.Version.Index, t.CreatedAt, t.UpdatedAt = i.Revision, i.Created.UTC(), i.Created.UTC()
	t.Labels = map[string]string{}
	if w.Type.PerNode() {
		t.Slot = 0
	}
	if spec := specifiedOf(w).Spec; spec != nil && i.RevisionID == w.RevisionID {
		t.Spec = spec.TaskTemplate
	} else if r, ok := store.Get[*model.Revision](snap, i.RevisionID); ok {
		t.Spec = taskSpecOf(&r.Template)
	}
	if w.Type.Job() {
		if iteration := jobIteration(w); current(w, i) {
			t.JobIteration = &iteration
		} else {
			t.JobIteration = &swarm.Version{}
		}
	}
	state := taskState(w, i)
	t.Status = swarm.TaskStatus{State: state, Message: cmp.Or(taskMessages[state], string(state)), Timestamp: i.Created.UTC()}
	for _, at := range []time.Time{i.Status.Started, i.Status.Finished} {
		if at.After(t.Status.Timestamp) {
			t.Status.Timestamp = at.UTC()
			t.UpdatedAt = at.UTC()
		}
	}
	switch state {
	case swarm.TaskStatePending:
		t.Status.Err = i.Reason
	case swarm.TaskStateFailed, swarm.TaskStateRejected, swarm.TaskStateReady:
		t.Status.Err = i.Status.Message
		if code := i.Status.Tasks; len(code) > 0 && code[0].ExitCode != 0 && code[0].Error == "" {
			t.Status.Err = "task: non-zero exit (" + strconv.Itoa(code[0].ExitCode) + ")"
		}
	}
	if i.NodeID != "" {
		t.Status.ContainerStatus = &swarm.ContainerStatus{ContainerID: containerID(i.ID, 0)}
		if len(i.Status.Tasks) > 0 {
			t.Status.ContainerStatus.PID, t.Status.ContainerStatus.ExitCode = i.Status.Tasks[0].PID, i.Status.Tasks[0].ExitCode
		}
	}
	for _, p := range i.HostPorts {
		t.Status.PortStatus.Ports = append(t.Status.PortStatus.Ports, portConfig(model.ServicePort{Protocol: p.Protocol, Target: p.Target, Published: p.Published, HostMode: true}))
	}
	for _, address := range i.Addresses {
		n, ok := store.Get[*model.Network](snap, address.Network)
		ip, err := netip.ParseAddr(address.IP)
		if !ok || err != nil {
			continue
		}
		at := swarm.NetworkAttachment{Addresses: []netip.Prefix{netip.PrefixFrom(ip, 24)}}
		at.Network.ID, at.Network.Spec.Name = n.ID, dockerName(&n.Meta)
		at.Network.Spec.DriverConfiguration = &swarm.Driver{Name: "overlay"}
		t.NetworksAttachments = append(t.NetworksAttachments, at)
	}
	return t
}

// taskStates are those that a list of tasks may be asked for.
var taskStates = []swarm.TaskState{
	swarm.TaskStateNew, swarm.TaskStateAllocated, swarm.TaskStatePending, swarm.TaskStateAssigned, swarm.TaskStateAccepted, swarm.TaskStatePreparing,
	swarm.TaskStateReady, swarm.TaskStateStarting, swarm.TaskStateRunning, swarm.TaskStateComplete, swarm.TaskStateShutdown, swarm.TaskStateFailed,
	swarm.TaskStateRejected, swarm.TaskStateRemove, swarm.TaskStateOrphaned,
}

func (a *API) taskList(w http.ResponseWriter, r *request) error {
	f, err := readFilters(r, "_up-to-date", "desired-state", "id", "label", "name", "node", "runtime", "service")
	if err != nil {
		return err
	}
	snap := a.snapshot()
	services := map[string]bool{}
	for _, ref := range f["service"] {
		wl, err := findService(snap, ref)
		if err != nil {
			continue // of a service that is gone there are no tasks
		}
		services[wl.ID] = true
	}
	nodes := map[string]bool{}
	for _, ref := range f["node"] {
		if n, err := findNode(a, snap, ref); err == nil {
			nodes[n.ID] = true
		}
	}
	for _, state := range f["desired-state"] {
		if !slices.Contains(taskStates, swarm.TaskState(state)) {
			return fault.New(fault.Invalid, "Invalid desired-state filter: '%s'", state)
		}
	}
	out := []swarm.Task{}
	for _, wl := range servicesOf(snap) {
		if len(f["service"]) > 0 && !services[wl.ID] {
			continue
		}
		var labels map[string]string
		if len(f["label"]) > 0 {
			labels = specOf(snap, wl).Labels
		}
		for _, i := range tasksOf(snap, wl) {
			t := taskView(snap, wl, i)
			name := instanceName(wl, i)
			desired := string(t.DesiredState)
			switch {
			case len(f["node"]) > 0 && !nodes[i.NodeID], !f.prefix("id", i.ID), !f.prefix("name", name, dockerName(&wl.Meta)), !f.exact("runtime", "container"),
				len(f["_up-to-date"]) > 0 && !current(wl, i), !f.labels("label", labels):
				continue
			case len(f["desired-state"]) > 0 && !f.exact("desired-state", desired) && !(desired == "complete" && f.exact("desired-state", "running")):
				continue
			}
			out = append(out, t)
		}
	}
	slices.SortStableFunc(out, func(x, y swarm.Task) int {
		return cmp.Or(strings.Compare(x.ServiceID, y.ServiceID), cmp.Compare(x.Slot, y.Slot), y.CreatedAt.Compare(x.CreatedAt))
	})
	return answer(w, http.StatusOK, out)
}

func (a *API) taskInspect(w http.ResponseWriter, r *request) error {
	snap := a.snapshot()
	i, wl, err := findTask(snap, r.vars["id"])
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, taskView(snap, wl, i))
}
