package model

import "time"

// Node is a host that runs work.
type Node struct {
	Meta
	// Role says whether the node is also a server.
	Server bool `json:"server"`
	// Standby keeps a server from having a vote: it was demoted.
	Standby bool `json:"standby,omitempty"`
	// Trusted is whether whoever administers the host has the whole cluster, as those of servers do.
	Trusted bool `json:"trusted,omitempty"`
	// Availability is what people want of it.
	Availability Availability `json:"availability"`
	Taints       []Taint      `json:"taints,omitempty"`
	// WireAddress is host:port of the node's port for other nodes.
	WireAddress string `json:"wireAddress"`
	// OverlayAddress is the node's own address within the overlay, where tunnels end.
	OverlayAddress string `json:"overlayAddress,omitempty"`
	// HostAddress is the address under which other hosts reach this one, without a port.
	HostAddress string `json:"hostAddress"`
	// Capacity is what the host has; Reserved is kept back from instances.
	Capacity Resources `json:"capacity"`
	Reserved Resources `json:"reserved,omitzero"`
	// Devices are the names of what is counted in Capacity.Custom, by kind; kinds that are only counted
	// have none.
	Devices map[string][]string `json:"devices,omitempty"`
	// Overcommit stretches the cores that burstable instances may set aside: 1.5 lets them have
	// half as much again. Up to 1: not at all.
	Overcommit float64           `json:"overcommit,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"` // os, arch, kernel, hostname, version …
	// Pressure is what the host is short of: memory, disk, pids. It takes no new work meanwhile.
	Pressure []string `json:"pressure,omitempty"`
	// Lacks is what of the kernel does not work on the host, and what that means, by name.
	Lacks map[string]string `json:"lacks,omitempty"`
	// Certificate is what the node says of the certificate that it proves itself with.
	Certificate NodeCertificate `json:"certificate,omitzero"`
	Status      NodeStatus      `json:"status"`
}

// HostFeature is something of a host's kernel, and whether it works.
type HostFeature struct {
	Name  string `json:"name"`
	Works bool   `json:"works"`
	Says  string `json:"says"` // what it is good for, or what is missing without it and why
}

// NodeCertificate is how a node's certificate is. Authorities go by the hash that join tokens have.
type NodeCertificate struct {
	Authority string    `json:"authority,omitempty"` // that signed it
	Trusts    []string  `json:"trusts,omitempty"`    // those that the node believes
	Ends      time.Time `json:"ends,omitzero"`
}

// Availability is the operator's wish for a node.
type Availability string

// A node takes work (active), takes no new work (cordoned), or gives up what it has (draining).
const (
	Active   Availability = "active"
	Cordoned Availability = "cordoned"
	Draining Availability = "draining"
)

// NodeState is what the cluster observes of a node.
type NodeState string

// A node is unknown until its first session, ready while it renews its lease, and down after.
const (
	NodeUnknown NodeState = "unknown"
	NodeReady   NodeState = "ready"
	NodeDown    NodeState = "down"
)

// NodeStatus is observed; its writer is the leader.
type NodeStatus struct {
	State   NodeState `json:"state"`
	Message string    `json:"message,omitempty"`
	Since   time.Time `json:"since,omitzero"`
	// Session changes with every agent start, so that a restart in between is noticed.
	Session string `json:"session,omitempty"`
	// Lease is how long the leases are at most that the node is granted; 0: as long as they ever are.
	Lease time.Duration `json:"lease,omitempty"`
}

// Taint keeps instances without a matching toleration off a node.
type Taint struct {
	Key    string `json:"key"`
	Value  string `json:"value,omitempty"`
	Effect string `json:"effect"` // noSchedule, preferNoSchedule, noExecute
}

// Resources counts what instances use up.
type Resources struct {
	NanoCPUs    int64            `json:"nanoCPUs,omitempty"` // 1e9 is one core
	MemoryBytes int64            `json:"memoryBytes,omitempty"`
	DiskBytes   int64            `json:"diskBytes,omitempty"`
	Pids        int64            `json:"pids,omitempty"`
	Custom      map[string]int64 `json:"custom,omitempty"` // devices and metrics, by name
}

func (n *Node) Kind() Kind              { return KindNode }
func (n *Node) GetMeta() *Meta          { return &n.Meta }
func (n *Node) CloneObject() Object     { return n.Clone() }
func (n *Node) AdoptStatus(from Object) { n.Status = from.(*Node).Status }
func (n *Node) AdoptDesired(from Object) {
	status := n.Status
	*n = *from.(*Node).Clone()
	n.Status = status
}

// Schedulable reports whether new instances may be placed on the node.
func (n *Node) Schedulable() bool {
	return n.Status.State == NodeReady && (n.Availability == Active || n.Availability == "") && len(n.Pressure) == 0
}
