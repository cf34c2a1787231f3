package model

import "time"

// Service is a name with a virtual IP per network and published ports, leading to the ready
// instances of a workload.
type Service struct {
	Meta
	WorkloadID string `json:"workloadID"`
	// Aliases are further names, by network ID.
	Aliases map[string][]string `json:"aliases,omitempty"`
	// Networks are where the service has a virtual IP.
	Networks []string      `json:"networks,omitempty"`
	Ports    []ServicePort `json:"ports,omitempty"`
	// PortGroup lets services of one application publish the same ports: each leads to the ready
	// instances of all that have it.
	PortGroup string `json:"portGroup,omitempty"`
	// Direct services lead to Backends in place of the instances of a workload, by their ports alone, and
	// may choose their virtual IP, which need not be of the network's subnet.
	Direct    bool      `json:"direct,omitempty"`
	Backends  []Backend `json:"backends,omitempty"`
	VirtualIP string    `json:"virtualIP,omitempty"`
	// OutsideIPs are further addresses, of no host, at which the ports of a direct service are led: for whoever comes
	// by them to any host.
	OutsideIPs []string `json:"outsideIPs,omitempty"`
	// ExternalName is what the names of a direct service stand for, in place of an address.
	ExternalName string `json:"externalName,omitempty"`
	// DNSRoundRobin answers names with instance addresses instead of a virtual IP.
	DNSRoundRobin bool          `json:"dnsRoundRobin,omitempty"`
	Balance       Balancing     `json:"balance,omitzero"`
	Routes        []Route       `json:"routes,omitempty"`
	Status        ServiceStatus `json:"status"`
}

// Backend is an address that a direct service leads to.
type Backend struct {
	Address string `json:"address"`
	// Name is that of the address below the service's, if it has one.
	Name string `json:"name,omitempty"`
	// Targets are the ports that are answered there, by the names of the service's; nil: all of them, at their own Target.
	Targets map[string]int `json:"targets,omitempty"`
}

// TargetOf is where a port of a service is answered at one that has targets of its own, such as a backend; 0: it is not.
func (p *ServicePort) TargetOf(targets map[string]int) int {
	if targets == nil {
		return p.Target
	}
	return targets[p.Name]
}

// How many connections an instance gets compared with others: what it is when nothing is said, and at most.
const (
	FullWeight = 100
	MostWeight = 1000
)

// Balancing says which of a service's instances get a connection.
type Balancing struct {
	// Sticky leads a client to the same instance as before, if it is not longer ago than this and the
	// instance is ready still; 0: each connection by itself.
	Sticky time.Duration `json:"sticky,omitempty"`
	Local  LocalPolicy   `json:"local,omitempty"`
	// Outside is what Local is for clients from outside, by published ports and outside addresses; "" is as Local.
	Outside LocalPolicy `json:"outside,omitempty"`
}

// FromOutside is the policy for clients from outside.
func (b *Balancing) FromOutside() LocalPolicy {
	switch b.Outside {
	case "":
		return b.Local
	case LocalWherever:
		return LocalAny
	}
	return b.Outside
}

// LocalPolicy says what instances on the node of the client, or on the node that a client from outside
// speaks to, have ahead of others.
type LocalPolicy string

// Any instance gets connections; those of the node all of them as long as there are any (prefer); or
// none but those (only).
const (
	LocalAny    LocalPolicy = ""
	LocalPrefer LocalPolicy = "prefer"
	LocalOnly   LocalPolicy = "only"
	// LocalWherever is LocalAny where that would be as another policy says.
	LocalWherever LocalPolicy = "any"
)

// ServiceStatus is assigned by the leader.
type ServiceStatus struct {
	VirtualIPs []Address `json:"virtualIPs,omitempty"` // one per network
	Message    string    `json:"message,omitempty"`
}

// ServicePort publishes a port of a service's instances on hosts.
type ServicePort struct {
	Name      string `json:"name,omitempty"`
	Protocol  string `json:"protocol"`            // tcp, udp, sctp
	Target    int    `json:"target"`              // inside the instance
	Virtual   int    `json:"virtual,omitempty"`   // on the virtual IP; 0: as inside the instance
	Published int    `json:"published,omitempty"` // on hosts; 0: not published
	HostMode  bool   `json:"hostMode,omitempty"`  // only where instances run; otherwise on every host
	HostIP    string `json:"hostIP,omitempty"`    // the only address of hosts that it is published on; "": all
}

// Network is a set of instances that reach each other by address and name.
type Network struct {
	Meta
	// Subnet in CIDR form; empty until the leader assigns one from the cluster's pool.
	Subnet  string `json:"subnet,omitempty"`
	Gateway string `json:"gateway,omitempty"`
	// IPv6 gives instances an address of that version besides. Subnet6, of /96 or larger, is empty until
	// the leader assigns one.
	IPv6       bool   `json:"ipv6,omitempty"`
	Subnet6    string `json:"subnet6,omitempty"`
	Internal   bool   `json:"internal,omitempty"` // no way out of the cluster
	Attachable bool   `json:"attachable,omitempty"`
	// Shared lets workloads of all namespaces attach to it, by its ID.
	Shared bool   `json:"shared,omitempty"`
	Driver string `json:"driver,omitempty"`
	// Underlay is the network of hosts that instances are on, of the drivers that need one.
	Underlay *Underlay `json:"underlay,omitempty"`
	// Encrypted has what passes between nodes go through WireGuard, or not at all.
	Encrypted bool `json:"encrypted,omitempty"`
	// MTU is 0 for the largest that fits.
	MTU    int           `json:"mtu,omitempty"`
	Status NetworkStatus `json:"status"`
}

// NetworkStatus is assigned by the leader.
type NetworkStatus struct {
	Subnet  string `json:"subnet,omitempty"`
	Subnet6 string `json:"subnet6,omitempty"`
	Message string `json:"message,omitempty"` // why there is no subnet
	// Blocks are the parts of the subnet that nodes hold; a node routes a block as a whole.
	Blocks []Block `json:"blocks,omitempty"`
}

// Block is a range of a network's addresses held by a node.
type Block struct {
	NodeID string `json:"nodeID"`
	CIDR   string `json:"cidr"`
}

// Volume is named storage.
type Volume struct {
	Meta
	Driver  string            `json:"driver,omitempty"` // "local"
	Options map[string]string `json:"options,omitempty"`
	// NodeID is where a local volume lives, set by the first placement that uses it.
	NodeID string `json:"nodeID,omitempty"`
}

// Secret is encrypted data that reaches only the nodes that need it.
type Secret struct {
	Meta
	// Sealed is the data, encrypted with the cluster's secret key.
	Sealed []byte `json:"sealed"`
	// Digest identifies the content without revealing it (keyed).
	Digest string `json:"digest"`
	// Templated content is a template, which nodes fill in for each task: see package agent.
	Templated bool `json:"templated,omitempty"`
}

// Config is plain data for tasks.
type Config struct {
	Meta
	Data      []byte `json:"data"`
	Templated bool   `json:"templated,omitempty"` // as of a secret
}

// Image is a name for content, and which nodes hold it.
type Image struct {
	Meta             // Name is the normalized reference, e.g. "docker.io/library/redis:7"
	Digest    string `json:"digest"` // of the manifest or index
	SizeBytes int64  `json:"sizeBytes"`
	// Pulled: it came from the registry that its name says, and can come from there again.
	Pulled bool `json:"pulled,omitempty"`
	// Signed are the keys whose signature of Digest was verified: the beginnings of their hashes.
	Signed []string    `json:"signed,omitempty"`
	Status ImageStatus `json:"status"`
	Health *Probe      `json:"health,omitempty"` // HEALTHCHECK of the image's configuration
}

// ImageStatus is written by the leader from what nodes report.
type ImageStatus struct {
	Nodes []string `json:"nodes,omitempty"` // IDs of nodes that hold the whole image
}

// Event is something that happened, kept for a while.
type Event struct {
	Meta
	Time    time.Time `json:"time"`
	Type    string    `json:"type"`    // e.g. "instance placed"
	Subject Subject   `json:"subject"` // what it is about
	Message string    `json:"message"`
}

// NewEvent returns an event about an object.
func NewEvent(now time.Time, kind string, about Object, message string) *Event {
	m, id := about.GetMeta(), NewID()
	return &Event{
		Meta: Meta{ID: id, Namespace: m.Namespace, Application: m.Application, Name: id, Created: now},
		Time: now, Type: kind, Message: message,
		Subject: Subject{Kind: about.Kind(), ID: m.ID, Name: m.FullName()},
	}
}

// Subject refers to an object.
type Subject struct {
	Kind Kind   `json:"kind"`
	ID   string `json:"id"`
	Name string `json:"name"`
}

// NamespaceShare says how much of the cluster a namespace may have.
type NamespaceShare struct {
	// Weight is of its dominant share against those of others, when there is too little; 0 counts
	// as 1.
	Weight float64 `json:"weight,omitempty"`
	// Quota bounds what its instances set aside together; a resource of 0 is not bounded.
	Quota        Resources `json:"quota,omitzero"`
	MaxInstances int       `json:"maxInstances,omitempty"` // 0: any number
}

// ClusterID is the ID of the one Cluster object.
const ClusterID = "cluster"

// Cluster is the single object with the cluster's own settings; its ID is ClusterID.
type Cluster struct {
	Meta
	// AddressPool is where networks without a chosen subnet get theirs, in CIDR form.
	AddressPool string `json:"addressPool"`
	// NetworkBits is the prefix length of those subnets.
	NetworkBits int `json:"networkBits"`
	// NodePool is where nodes get their own overlay addresses.
	NodePool string `json:"nodePool"`
	// AddressPool6 is where networks with IPv6 get subnets of /64; the first one is the nodes'. Empty
	// stands for DefaultAddressPool6.
	AddressPool6 string `json:"addressPool6,omitempty"`
	// Namespaces have a share of the cluster of their own, by name; others weigh 1 and have no quota.
	Namespaces map[string]NamespaceShare `json:"namespaces,omitempty"`
	Images     ImageSettings             `json:"images,omitzero"`
	// CACertificate is that of the authority that signs, in PEM.
	CACertificate []byte `json:"caCertificate"`
	// Retiring is the authority before, while another takes over from it.
	Retiring *RetiringAuthority `json:"retiring,omitempty"`
	// Removed are servers that were removed and whose certificates have not ended yet.
	Removed []RemovedServer `json:"removed,omitempty"`
	// Sealed are the cluster's own keys, sealed with the key in each server's key file: see package
	// trust, which alone looks into it.
	Sealed []byte `json:"sealed,omitempty"`

	// Earlier versions kept the keys here, in clear; they are empty once Sealed is set. The tokens
	// admit servers and agents; CAKey is PEM; SecretKey encrypts secrets (32 bytes).
	ServerToken string `json:"serverToken,omitempty"`
	AgentToken  string `json:"agentToken,omitempty"`
	CAKey       []byte `json:"caKey,omitempty"`
	SecretKey   []byte `json:"secretKey,omitempty"`
}

// RetiringAuthority is one that signs nothing any more and is believed for a while.
type RetiringAuthority struct {
	Certificate []byte `json:"certificate"` // PEM
	// Cross is the key of the authority that signs, certified by this one, in PEM: it lets nodes
	// that know only this one believe the new one.
	Cross []byte    `json:"cross"`
	Since time.Time `json:"since"`
	// Until is when it is dropped, at the latest: nodes that were away all the time must join anew.
	Until time.Time `json:"until"`
}

// RemovedServer is a server whose certificate must not let it in any more.
type RemovedServer struct {
	ID    string    `json:"id"`
	Until time.Time `json:"until"` // no certificate of it can be valid after
}

func (s *Service) Kind() Kind              { return KindService }
func (s *Service) GetMeta() *Meta          { return &s.Meta }
func (s *Service) CloneObject() Object     { return s.Clone() }
func (s *Service) AdoptStatus(from Object) { s.Status = from.(*Service).Status }
func (s *Service) AdoptDesired(from Object) {
	status := s.Status
	*s = *from.(*Service).Clone()
	s.Status = status
}

func (n *Network) Kind() Kind              { return KindNetwork }
func (n *Network) GetMeta() *Meta          { return &n.Meta }
func (n *Network) CloneObject() Object     { return n.Clone() }
func (n *Network) AdoptStatus(from Object) { n.Status = from.(*Network).Status }
func (n *Network) AdoptDesired(from Object) {
	status := n.Status
	*n = *from.(*Network).Clone()
	n.Status = status
}

func (i *Image) Kind() Kind              { return KindImage }
func (i *Image) GetMeta() *Meta          { return &i.Meta }
func (i *Image) CloneObject() Object     { return i.Clone() }
func (i *Image) AdoptStatus(from Object) { i.Status = from.(*Image).Status }
func (i *Image) AdoptDesired(from Object) {
	status := i.Status
	*i = *from.(*Image).Clone()
	i.Status = status
}

func (v *Volume) Kind() Kind          { return KindVolume }
func (v *Volume) GetMeta() *Meta      { return &v.Meta }
func (v *Volume) CloneObject() Object { return v.Clone() }
func (v *Volume) AdoptStatus(Object)  {}
func (v *Volume) AdoptDesired(Object) {}

func (s *Secret) Kind() Kind          { return KindSecret }
func (s *Secret) GetMeta() *Meta      { return &s.Meta }
func (s *Secret) CloneObject() Object { return s.Clone() }
func (s *Secret) AdoptStatus(Object)  {}
func (s *Secret) AdoptDesired(Object) {}

func (c *Config) Kind() Kind          { return KindConfig }
func (c *Config) GetMeta() *Meta      { return &c.Meta }
func (c *Config) CloneObject() Object { return c.Clone() }
func (c *Config) AdoptStatus(Object)  {}
func (c *Config) AdoptDesired(Object) {}

func (e *Event) Kind() Kind          { return KindEvent }
func (e *Event) GetMeta() *Meta      { return &e.Meta }
func (e *Event) CloneObject() Object { return e.Clone() }
func (e *Event) AdoptStatus(Object)  {}
func (e *Event) AdoptDesired(Object) {}

func (c *Cluster) Kind() Kind          { return KindCluster }
func (c *Cluster) GetMeta() *Meta      { return &c.Meta }
func (c *Cluster) CloneObject() Object { return c.Clone() }
func (c *Cluster) AdoptStatus(Object)  {}
func (c *Cluster) AdoptDesired(Object) {}
