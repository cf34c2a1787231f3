package model

import (
	"strconv"
	"strings"
	"time"
)

// Instance is one placed copy of a workload's template. It never changes node: it is
// replaced. Its Meta.Name is workload name, "." and slot ("web.1"), or node name for global
// workloads, or, for stateful ones, workload name, "-" and ordinal ("db-0" for slot 1); unlike
// other names it need not be unique while one instance replaces another.
type Instance struct {
	Meta
	WorkloadID string `json:"workloadID"`
	Slot       int    `json:"slot"`
	// RevisionID is the Revision whose template this instance runs (workload ID "." hash).
	RevisionID string `json:"revisionID"`
	// NodeID is empty until placed.
	NodeID string `json:"nodeID,omitempty"`
	// Reason explains the placement, or why there is none yet.
	Reason  string       `json:"reason,omitempty"`
	Desired DesiredState `json:"desired"`
	Cause   string       `json:"cause,omitempty"` // why Desired is no longer run
	// Move is why it is to run elsewhere, though its node would do: it serves until the instance that
	// replaces it is ready. Most have none.
	Move *Move `json:"move,omitempty"`
	// Addresses are assigned with the node: one per attachment of the template, in its order.
	Addresses []Address `json:"addresses,omitempty"`
	// PublishedPorts are host-mode ports held on the node.
	HostPorts []HostPort `json:"hostPorts,omitempty"`
	// Stateful says that at most one instance of the slot may run at any time, anywhere.
	Stateful bool `json:"stateful,omitempty"`
	// Leased is decided with the node: its tasks run only as long as the node holds a lease, so that
	// it can be replaced elsewhere once the lease has surely ended. A stateful instance without one
	// has a volume that lives on its node, and is replaced nowhere else.
	Leased bool `json:"leased,omitempty"`
	// Standby keeps it out of traffic, ready as it may be, until its revision takes over.
	Standby bool `json:"standby,omitempty"`
	// Volumes are the slot's own volumes: the volume that the template names → the one that is
	// mounted in its place, both by ID. They are decided with the node.
	Volumes map[string]string `json:"volumes,omitempty"`
	// Devices are the names of the node's devices that it holds, by kind; see DevicesOf. They are
	// decided with the node.
	Devices map[string][]string `json:"devices,omitempty"`
	// Replaces is the instance whose slot this one takes over.
	Replaces string `json:"replaces,omitempty"`
	// Folders identifies what secrets hold of which it follows the content.
	Folders string `json:"folders,omitempty"`
	// Starts is the workload's count of starts that this instance follows.
	Starts uint64 `json:"starts,omitempty"`
	// StopWithin takes the place of the template's StopGrace when it is held.
	StopWithin *time.Duration `json:"stopWithin,omitempty"`
	Status     InstanceStatus `json:"status"`
}

// Address is an instance's address on a network.
type Address struct {
	Network string `json:"network"` // network ID
	IP      string `json:"ip"`
	IP6     string `json:"ip6,omitempty"` // where the network has both
}

// Move is a move of an instance to another node.
type Move struct {
	Why string `json:"why"`
	To  string `json:"to,omitempty"` // node ID; "" for wherever it would be placed
}

// HostPort is a port held on the instance's own node.
type HostPort struct {
	Protocol  string `json:"protocol"`
	Published int    `json:"published"`
	Target    int    `json:"target"`
	HostIP    string `json:"hostIP,omitempty"` // the only address of the node that it is; "": all
}

// DesiredState is what the cluster wants of an instance.
type DesiredState string

// An instance should run; or be stopped and kept to be started again (hold); or lose its traffic
// and then be stopped (drain); or end (stop); or end and be forgotten (remove).
const (
	DesiredRun    DesiredState = "run"
	DesiredHold   DesiredState = "hold"
	DesiredDrain  DesiredState = "drain"
	DesiredStop   DesiredState = "stop"
	DesiredRemove DesiredState = "remove"
)

// InstanceState is observed. It only moves forward, apart from a restart in place, which
// leads from running, waiting or held back to starting.
type InstanceState string

// The instance states, in order. Completed, failed and lost are final.
const (
	InstancePending   InstanceState = "pending"   // not placed, or not yet taken up by its node
	InstancePreparing InstanceState = "preparing" // image, volumes, network
	InstanceStarting  InstanceState = "starting"  // tasks are being started
	InstanceRunning   InstanceState = "running"   // every task runs
	InstanceWaiting   InstanceState = "waiting"   // a task ended and will be restarted
	InstanceStopping  InstanceState = "stopping"
	InstanceHeld      InstanceState = "held"      // its tasks have ended; it is kept, and can be started again
	InstanceCompleted InstanceState = "completed" // ended as it should: exit code 0, or stopped on request
	InstanceFailed    InstanceState = "failed"
	InstanceLost      InstanceState = "lost" // its node is gone; written by the leader
)

// Awaited is how the message of an instance being prepared ends that waits for content which is to come.
const Awaited = "is awaited"

// Final reports whether nothing follows this state.
func (s InstanceState) Final() bool {
	return s == InstanceCompleted || s == InstanceFailed || s == InstanceLost
}

// Health is what probes say.
type Health string

// The health values; none means that nothing probes.
const (
	HealthNone      Health = ""
	HealthStarting  Health = "starting"
	HealthHealthy   Health = "healthy"
	HealthUnhealthy Health = "unhealthy"
)

// InstanceStatus is observed; its writer is the agent of the instance's node (the leader,
// once the node is down).
type InstanceStatus struct {
	// Seq grows with every status that a node tells, across restarts of its agent: one that was long
	// under way, through a server that could not write it, does not replace a later one.
	Seq    uint64        `json:"seq,omitempty"`
	State  InstanceState `json:"state"`
	Health Health        `json:"health,omitempty"`
	// Ready is whether it should get traffic: running, and healthy where a probe exists.
	Ready      bool         `json:"ready"`
	Message    string       `json:"message,omitempty"`
	Restarts   int          `json:"restarts,omitempty"`
	Started    time.Time    `json:"started,omitzero"`  // of the latest run
	Finished   time.Time    `json:"finished,omitzero"` // of the latest run
	ReadySince time.Time    `json:"readySince,omitzero"`
	Tasks      []TaskStatus `json:"tasks,omitempty"`
}

// TaskStatus is the latest run of a task.
type TaskStatus struct {
	Name     string    `json:"name"`
	RunID    string    `json:"runID"` // the driver's id: instance ID, task name and run number joined by "."
	Run      int       `json:"run"`   // from 1
	State    string    `json:"state"` // created, running, exited
	PID      int       `json:"pid,omitempty"`
	Started  time.Time `json:"started,omitzero"`
	Finished time.Time `json:"finished,omitzero"`
	ExitCode int       `json:"exitCode"`
	Error    string    `json:"error,omitempty"`
	Image    string    `json:"image,omitempty"` // digest that runs
	OOM      bool      `json:"oom,omitempty"`

	// What follows is told of separate tasks.
	Up      bool   `json:"up,omitempty"` // see TaskSpec
	Ready   bool   `json:"ready,omitempty"`
	Waiting string `json:"waiting,omitempty"` // for what it waits before its next run

	Message  string `json:"message,omitempty"` // the last words of a run that has ended
	Restarts int    `json:"restarts,omitempty"`
	// Before is the run before this one, of which there is none for most.
	Before *TaskEnd `json:"before,omitempty"`
}

// TaskEnd is how a run of a task ended.
type TaskEnd struct {
	Run      int       `json:"run"`
	RunID    string    `json:"runID"`
	Started  time.Time `json:"started,omitzero"`
	Finished time.Time `json:"finished,omitzero"`
	ExitCode int       `json:"exitCode"`
	OOM      bool      `json:"oom,omitempty"`
	Error    string    `json:"error,omitempty"`
	Message  string    `json:"message,omitempty"`
}

// End is the end of the run that the status tells of.
func (t *TaskStatus) End() *TaskEnd {
	return &TaskEnd{
		Run: t.Run, RunID: t.RunID, Started: t.Started, Finished: t.Finished, ExitCode: t.ExitCode, OOM: t.OOM, Error: t.Error, Message: t.Message,
	}
}

// Follow takes over from an earlier status of the task what a driver does not tell.
func (t *TaskStatus) Follow(old *TaskStatus) {
	t.Restarts, t.Before = old.Restarts, old.Before
	switch {
	case t.Run == old.Run:
		t.Message = old.Message
		if t.State != "exited" {
			t.Up, t.Ready = old.Up, old.Ready
		}
	case old.Run > 0:
		t.Restarts++
		t.Before = old.End()
	}
}

func (i *Instance) Kind() Kind              { return KindInstance }
func (i *Instance) GetMeta() *Meta          { return &i.Meta }
func (i *Instance) CloneObject() Object     { return i.Clone() }
func (i *Instance) AdoptStatus(from Object) { i.Status = from.(*Instance).Status }
func (i *Instance) AdoptDesired(from Object) {
	status := i.Status
	*i = *from.(*Instance) // shared with the older version: neither is changed any more
	i.Status = status
}

// WantsToRun reports whether the instance counts towards its workload.
func (i *Instance) WantsToRun() bool { return i.Desired == DesiredRun && !i.Status.State.Final() }

// OwnVolume is the volume that is mounted where the template names one, both by ID.
func (i *Instance) OwnVolume(named string) string {
	if own := i.Volumes[named]; own != "" {
		return own
	}
	return named
}

// IsOf reports whether it is, on a node of that name, an instance of the workload that the other calls by a
// name as in Affinity: APPLICATION/WORKLOAD, or WORKLOAD within its own application.
func (i *Instance) IsOf(workload string, node string, other *Instance) bool {
	application, name, full := strings.Cut(workload, "/")
	if !full {
		application, name = other.Application, workload
	}
	rest, ok := strings.CutPrefix(i.Name, name)
	return ok && i.Namespace == other.Namespace && i.Application == application &&
		(rest == "" || rest == "."+strconv.Itoa(i.Slot) || rest == "."+node || rest == "-"+strconv.Itoa(i.Slot-1))
}

// DevicesOf are the names of the devices of a kind that a task holds. The tasks share out what the
// instance holds, in their order; each of the initial tasks, which are over before, begins anew.
func (i *Instance) DevicesOf(t *Template, task, kind string) []string {
	all := i.Devices[kind]
	part := func(from int, spec *TaskSpec) []string {
		return all[min(from, len(all)):min(from+int(spec.Reserve.Custom[kind]), len(all))]
	}
	for n := range t.InitTasks {
		if spec := &t.InitTasks[n]; spec.Name == task {
			return part(0, spec)
		}
	}
	from := 0
	for n := range t.Tasks {
		spec := &t.Tasks[n]
		if spec.Name == task {
			return part(from, spec)
		}
		from += int(spec.Reserve.Custom[kind])
	}
	return nil
}

// Serving reports whether balancers should send it new connections.
func (i *Instance) Serving() bool { return i.Desired == DesiredRun && i.Status.Ready && !i.Standby }
