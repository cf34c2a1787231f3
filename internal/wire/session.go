package wire

import (
	"time"

	"github.com/tutti-run/tutti/internal/model"
)

// The messages of a node session: what a server and an agent tell each other. A session is one
// bidirectional stream; the agent speaks first (Hello), then both send whenever they have news.

// AgentMessage travels from agent to server; exactly one field is set.
type AgentMessage struct {
	Hello     *Hello     `json:"hello,omitempty"`
	Heartbeat *Heartbeat `json:"heartbeat,omitempty"`
	Status    *Report    `json:"status,omitempty"`
	// Node is what the agent knows of its host when that has changed since the greeting.
	Node *model.Node `json:"node,omitempty"`
	// Lost says that a difference did not fit what the agent has: everything is to be sent anew.
	Lost bool `json:"lost,omitempty"`
}

// Hello opens a session. The node's identity comes from its certificate, not from here.
type Hello struct {
	Session string      `json:"session"` // new with every agent start
	Node    *model.Node `json:"node"`    // what the agent knows of its host; Status is ignored
	// Instances are those that the agent holds, each with the key of the assignment that it has;
	// "" where it lacks a part of it, as an agent that was restarted lacks secrets.
	Instances map[string]string `json:"instances,omitempty"`
	// Network is the revision of the network state that the agent holds; 0: none. The next server
	// sends what was changed since.
	Network uint64 `json:"network,omitempty"`
	// Revision is the newest store revision of which this agent was given assignments, by any
	// server: one that has not come so far must not give it older ones.
	Revision uint64 `json:"revision,omitempty"`
}

// Heartbeat renews the node's lease. A greeting is the first.
type Heartbeat struct {
	// Number grows with each; a greeting is number 0.
	Number uint64 `json:"number"`
	// Applied is the store revision whose endpoints and routes this node has in force.
	Applied uint64 `json:"applied"`
}

// Report carries observed states, batched; the latest per instance wins.
type Report struct {
	Instances map[string]model.InstanceStatus `json:"instances,omitempty"`
}

// ServerMessage travels from server to agent; exactly one field is set.
type ServerMessage struct {
	Assign  *Assign  `json:"assign,omitempty"`
	Network *Network `json:"network,omitempty"`
	// Lease confirms a heartbeat: for so long the node may consider itself a member.
	Lease *Lease `json:"lease,omitempty"`
	// Servers are all servers of the cluster, for when this one goes away.
	Servers []ServerAddress `json:"servers,omitempty"`
	// Trust is whom the node should believe from now on.
	Trust *Trust `json:"trust,omitempty"`
	// Retell asks for the status of every instance: the leader wrote over some of them while the
	// node was silent.
	Retell bool `json:"retell,omitempty"`
	// Refused ends the session and says why.
	Refused *End `json:"refused,omitempty"`
}

// Lease confirms heartbeats up to one: the leader knows of them, and what it wanted of the node then
// has been sent before.
type Lease struct {
	Number uint64 `json:"number"`
	// For is how long the node may run what needs a lease, from when it sent that heartbeat; 0 grants
	// none, and only confirms.
	For time.Duration `json:"for"`
	// Every is how often heartbeats are wanted.
	Every time.Duration `json:"every"`
	// Network is the revision as of which the network state that was sent is right; 0: unknown.
	Network uint64 `json:"network,omitempty"`
}

// Assign tells an agent its instances: first all of them (Full), then differences.
type Assign struct {
	Full bool `json:"full,omitempty"`
	// Revision is the store revision that this was read from.
	Revision uint64       `json:"revision,omitempty"`
	Put      []Assignment `json:"put,omitempty"`
	// Keep are, with Full, those that the agent has in their present form.
	Keep   []string `json:"keep,omitempty"`
	Remove []string `json:"remove,omitempty"` // instance IDs to stop, if they run, and forget
	// Total is how many instances the node has after this.
	Total int `json:"total"`
	// Seq is, with Full, the number of the latest status that the cluster has of the node's instances.
	Seq uint64 `json:"seq,omitempty"`
}

// Assignment is an instance with all that its node needs to run it.
type Assignment struct {
	// Key stands for the rest: it is equal as long as nothing of it changed that matters here.
	Key      string            `json:"key"`
	Instance *model.Instance   `json:"instance"`
	Template *model.Template   `json:"template"`
	Workload WorkloadRef       `json:"workload"`
	Networks []*model.Network  `json:"networks,omitempty"`
	Volumes  []*model.Volume   `json:"volumes,omitempty"`
	Secrets  map[string][]byte `json:"secrets,omitempty"` // by ID, opened
	Configs  map[string][]byte `json:"configs,omitempty"` // by ID
	// Templated are the IDs of those secrets and configs that are templates; Labels are the workload's, for these.
	Templated map[string]bool   `json:"templated,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	// Room is what the node has for instances, for a template of separate tasks, which may be told.
	Room *model.Resources `json:"room,omitempty"`
}

// WorkloadRef names the workload of an instance.
type WorkloadRef struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	Application string `json:"application,omitempty"`
	Namespace   string `json:"namespace"`
}

// Network is the part of the cluster's network state that nodes program. It travels complete or as a
// difference, and is complete once the agent has put it together.
type Network struct {
	Revision uint64 `json:"revision"`
	// Since is set in a difference: it holds what was added or changed after that revision, and
	// turns a state as of it, or of any later revision before Revision, into that as of Revision.
	// 0 is a complete state.
	Since uint64 `json:"since,omitempty"`
	// Gone are, in a difference, the IDs of what is no more there.
	Gone     []string         `json:"gone,omitempty"`
	Nodes    []NetworkNode    `json:"nodes"`
	Networks []*model.Network `json:"networks"`
	Services []NetworkService `json:"services"`
	// Instances that have addresses and have not ended, for names and isolation.
	Instances []NetworkInstance `json:"instances"`
	// Policies are those of all namespaces.
	Policies []*model.Policy `json:"policies,omitempty"`
	// NodePool and AddressPool are those of the cluster.
	NodePool    string `json:"nodePool"`
	AddressPool string `json:"addressPool"`
	// AddressPool6 is where networks have their addresses of IPv6, and, in its first subnet, nodes.
	AddressPool6 string `json:"addressPool6,omitempty"`
	// Changes says, in a complete state that an agent put together, in what it differs from the one
	// before; nil: anything may be different. It does not travel.
	Changes *Changes `json:"-"`

	index *networkIndex // of a complete state that an agent put together
}

// NetworkNode is a node as others reach it.
type NetworkNode struct {
	ID             string `json:"id"`
	Name           string `json:"name"`
	HostAddress    string `json:"hostAddress"`
	OverlayAddress string `json:"overlayAddress"`
	TunnelKey      string `json:"tunnelKey,omitempty"` // by which it is known to WireGuard; "": it has none
	Down           bool   `json:"down,omitempty"`
}

// NetworkService is a service and where its traffic goes.
type NetworkService struct {
	ID          string              `json:"id"`
	Name        string              `json:"name"`
	Application string              `json:"application,omitempty"`
	Namespace   string              `json:"namespace"`
	Aliases     map[string][]string `json:"aliases,omitempty"` // by network ID
	VirtualIPs  []model.Address     `json:"virtualIPs,omitempty"`
	// OnHosts are the networks of hosts that it is on: no virtual IP leads there.
	OnHosts    []string            `json:"onHosts,omitempty"`
	Ports      []model.ServicePort `json:"ports,omitempty"`
	PortGroup  string              `json:"portGroup,omitempty"` // see model.Service
	RoundRobin bool                `json:"roundRobin,omitempty"`
	Balance    model.Balancing     `json:"balance,omitzero"`
	Direct     bool                `json:"direct,omitempty"` // see model.Service
	Backends   []model.Backend     `json:"backends,omitempty"`
	OutsideIPs []string            `json:"outsideIPs,omitempty"`
	// ExternalName is what the names of the service stand for.
	ExternalName string        `json:"externalName,omitempty"`
	Routes       []model.Route `json:"routes,omitempty"`
	// Secrets are what routes need of them, by ID: certificates with their keys, users, challenges.
	Secrets    map[string][]byte `json:"certificates,omitempty"`
	WorkloadID string            `json:"workloadID,omitempty"`
	// Endpoints are those that get new connections. They do not travel: the agent finds them by
	// NetworkInstance.Serves.
	Endpoints []Endpoint `json:"endpoints,omitempty"`
}

// Endpoint is an instance that serves.
type Endpoint struct {
	Instance  string          `json:"instance"`
	NodeID    string          `json:"nodeID"`
	Addresses []model.Address `json:"addresses"`
	Weight    int             `json:"weight,omitempty"`  // see NetworkInstance
	Targets   map[string]int  `json:"targets,omitempty"` // see model.Backend
}

// NetworkInstance is an instance as names and isolation need it.
type NetworkInstance struct {
	ID          string              `json:"id"`
	Name        string              `json:"name"` // "web.1"
	Application string              `json:"application,omitempty"`
	Namespace   string              `json:"namespace"`
	Workload    string              `json:"workload"` // name
	NodeID      string              `json:"nodeID"`
	Addresses   []model.Address     `json:"addresses"`
	Aliases     map[string][]string `json:"aliases,omitempty"`
	HostPorts   []model.HostPort    `json:"hostPorts,omitempty"`
	WorkloadID  string              `json:"workloadID,omitempty"`
	Labels      map[string]string   `json:"labels,omitempty"` // of its workload
	// Serves says that the services of its workload lead new connections to it.
	Serves bool `json:"serves,omitempty"`
	// Weight is how many connections it gets compared with others of its services; 0 is model.FullWeight.
	Weight int `json:"weight,omitempty"`
	// DNS are resolvers the instance wants asked for names from outside the cluster.
	DNS []string `json:"dns,omitempty"`
}

// ServerAddress is where a server's port for other nodes is.
type ServerAddress struct {
	ID      string `json:"id"`
	Address string `json:"address"` // host:port
}
