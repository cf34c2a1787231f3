package model

import (
	"iter"
	"slices"
	"time"
)

// Template says what one instance consists of: one network namespace, shared volumes, and
// one or more tasks in it.
type Template struct {
	InitTasks []TaskSpec `json:"initTasks,omitempty"` // run one after the other, to completion, before Tasks
	Tasks     []TaskSpec `json:"tasks"`

	Hostname   string `json:"hostname,omitempty"`
	Domainname string `json:"domainname,omitempty"`
	// PlacedHostname lets Hostname have what is known once the instance has a node: see TaskSpec.PlacedEnv.
	PlacedHostname bool         `json:"placedHostname,omitempty"`
	HostNetwork    bool         `json:"hostNetwork,omitempty"`
	NoNetwork      bool         `json:"noNetwork,omitempty"`
	Networks       []Attachment `json:"networks,omitempty"`
	DNS            DNSConfig    `json:"dns,omitzero"`
	ExtraHosts     []HostEntry  `json:"extraHosts,omitempty"`
	// HostsTitle is a comment that /etc/hosts begins with.
	HostsTitle string `json:"hostsTitle,omitempty"`
	// Ports are ports of the instance's node that it holds, by number or any that is free.
	Ports []PortRequest `json:"ports,omitempty"`
	// Sysctls apply to the namespaces that the tasks share.
	Sysctls map[string]string `json:"sysctls,omitempty"`

	Placement Placement     `json:"placement,omitzero"`
	Restart   RestartPolicy `json:"restart"`
	// StopGrace is how long tasks have between the stop signal and the kill.
	StopGrace time.Duration     `json:"stopGrace"`
	Labels    map[string]string `json:"labels,omitempty"` // of instances
	// Indexed tells each instance its number, from 0, in the variable JOB_COMPLETION_INDEX.
	Indexed bool `json:"indexed,omitempty"`
	// KeepEnded keeps an instance whose tasks have ended for good, or that was suspended, as it is:
	// its node, root file system, addresses and logs stay, and it can be started again. It is not
	// restarted for being unhealthy.
	KeepEnded bool `json:"keepEnded,omitempty"`
	// Separate tasks live by themselves: each is started anew alone, as the restart policy says, and an
	// init task that has completed is not run again. Otherwise the end of one task is that of all.
	Separate bool `json:"separate,omitempty"`
	// The tasks see the processes, or the System V IPC, of the node.
	HostPIDs bool `json:"hostPIDs,omitempty"`
	HostIPC  bool `json:"hostIPC,omitempty"`
	// Weight is how many connections each instance gets compared with others of its services, from 1 to
	// MostWeight; 0 is FullWeight.
	Weight int `json:"weight,omitempty"`
	// Sharing is what else they share, if anything.
	Sharing *Sharing `json:"sharing,omitempty"`
	// ForceUpdate makes an otherwise equal template a new revision.
	ForceUpdate uint64 `json:"forceUpdate,omitempty"`
}

// LogPolicy says what is kept of what each run of a task writes.
type LogPolicy struct {
	None      bool  `json:"none,omitempty"` // nothing
	FileBytes int64 `json:"fileBytes,omitempty"`
	// Files is how many of that size there are, up to MaxLogFiles; the oldest goes.
	Files int `json:"files,omitempty"`
}

// MaxLogFiles is how many files the output of a run is kept in at most.
const MaxLogFiles = 10

// Attachment joins an instance to a network.
type Attachment struct {
	Network string   `json:"network"` // network ID
	Aliases []string `json:"aliases,omitempty"`
	Address string   `json:"address,omitempty"` // fixed IPv4 address, if asked for
	// Address6 is a fixed IPv6 address, likewise.
	Address6 string `json:"address6,omitempty"`
	// Link is what the host must have for it, where the network is one of hosts.
	Link *Link `json:"link,omitempty"`
}

// PortRequest asks for a port of the node that the instance is placed on.
type PortRequest struct {
	Protocol string `json:"protocol"`         // tcp or udp
	Host     int    `json:"host,omitempty"`   // 0: any that is free, from the range for that
	Target   int    `json:"target,omitempty"` // inside the instance; 0: the same number
	HostIP   string `json:"hostIP,omitempty"` // the only address of the node that it is held on; "": all
}

// The range from which ports of a node are chosen.
const (
	FirstChosenPort = 21000
	LastChosenPort  = 29999
)

// DNSConfig overrides what the instance's resolver is told.
type DNSConfig struct {
	Servers []string `json:"servers,omitempty"`
	Search  []string `json:"search,omitempty"`
	Options []string `json:"options,omitempty"`
	// Direct has instances ask Servers themselves, and find no names of the cluster.
	Direct bool `json:"direct,omitempty"`
}

// HostEntry is a line of /etc/hosts.
type HostEntry struct {
	Name    string `json:"name"`
	Address string `json:"address"` // an IP address, or "host-gateway"
}

// TaskSpec is one container or one plain process.
type TaskSpec struct {
	Name   string `json:"name"`
	Driver string `json:"driver,omitempty"` // "oci" (default) or "process"
	// Runtime is the OCI runtime that makes the container, by name; "" is the built-in one.
	Runtime string `json:"runtime,omitempty"`
	// Image is the reference as people wrote it; Digest pins what it meant when the revision
	// was made (the manifest or index digest, "sha256:…").
	Image  string `json:"image,omitempty"`
	Digest string `json:"digest,omitempty"`
	// Entrypoint and Args replace the image's ENTRYPOINT and CMD. Nil keeps the image's; a
	// non-nil Entrypoint drops the image's CMD; an empty non-nil one clears it.
	Entrypoint []string `json:"entrypoint"`
	Args       []string `json:"args"`
	Env        []string `json:"env,omitempty"` // NAME=value, over the image's
	// PlacedEnv is like Env, and under it; a value may have what is known once the instance has a
	// node, such as {port.0}: see package agent.
	PlacedEnv  []string `json:"placedEnv,omitempty"`
	PlacedArgs bool     `json:"placedArgs,omitempty"` // Entrypoint and Args may have the same
	User       string   `json:"user,omitempty"`
	Groups     []string `json:"groups,omitempty"`
	WorkingDir string   `json:"workingDir,omitempty"`

	Mounts []Mount `json:"mounts,omitempty"`

	Reserve Resources `json:"reserve,omitzero"` // what the scheduler sets aside
	Limit   Resources `json:"limit,omitzero"`   // what the kernel enforces

	Health   *Probe  `json:"health,omitempty"`   // ready when it passes, restarted when it fails; nil: the image's HEALTHCHECK
	Probes   []Probe `json:"probes,omitempty"`   // further ones: ready when all pass
	NoHealth bool    `json:"noHealth,omitempty"` // ignore the image's HEALTHCHECK too

	// What follows is of the tasks of a separate template, in place of Health and Probes. A run counts
	// as up once Startup has passed and AfterStart is done; it ends, and is followed as the restart
	// policy says, when Startup or Liveness says that it is unhealthy; it is ready while Readiness passes.
	Startup    *Probe    `json:"startup,omitempty"`
	Liveness   *Probe    `json:"liveness,omitempty"`
	Readiness  *Probe    `json:"readiness,omitempty"`
	AfterStart *Hook     `json:"afterStart,omitempty"`
	BeforeStop *Hook     `json:"beforeStop,omitempty"`
	LastWords  LastWords `json:"lastWords,omitzero"`
	Sidecar    bool      `json:"sidecar,omitempty"` // of an init task: it runs on beside the tasks, and ends after them

	// NonRoot refuses to start the task as root.
	NonRoot        bool              `json:"nonRoot,omitempty"`
	CapAdd         []string          `json:"capAdd,omitempty"`
	CapDrop        []string          `json:"capDrop,omitempty"`
	Privileged     bool              `json:"privileged,omitempty"`
	ReadOnlyRoot   bool              `json:"readOnlyRoot,omitempty"`
	SecurityOpts   []string          `json:"securityOpts,omitempty"` // see driver.Task
	Tuning         *Tuning           `json:"tuning,omitempty"`
	Log            *LogPolicy        `json:"log,omitempty"` // nil: what is kept of each run's output is the node's choice
	Ulimits        []Ulimit          `json:"ulimits,omitempty"`
	Devices        []Device          `json:"devices,omitempty"`
	Init           bool              `json:"init,omitempty"` // run under a reaping init process
	TTY            bool              `json:"tty,omitempty"`
	Stdin          bool              `json:"stdin,omitempty"`
	ShmBytes       int64             `json:"shmBytes,omitempty"`
	StopSignal     string            `json:"stopSignal,omitempty"`
	OOMScoreAdjust int               `json:"oomScoreAdjust,omitempty"`
	Umask          *uint32           `json:"umask,omitempty"`     // of a process; nil: the host's
	Artifacts      []Artifact        `json:"artifacts,omitempty"` // of a process; put into its sandbox before it starts
	Labels         map[string]string `json:"labels,omitempty"`
}

// MountType says where a mount's content comes from.
type MountType string

// The mount types. Secret and config mounts are files in memory.
const (
	MountVolume MountType = "volume"
	MountBind   MountType = "bind"
	MountTmpfs  MountType = "tmpfs"
	MountSecret MountType = "secret"
	MountConfig MountType = "config"
	MountImage  MountType = "image" // what an image holds, read-only
)

// What a bind does with what is mounted below its source: it leaves that out; or takes it along and does
// not make it read-only, even where the mount is; or makes it so, or fails.
const (
	BindAlone        = "alone"
	BindTreeWritable = "treeWritable"
	BindTreeReadOnly = "treeReadOnly"
)

// Mount makes something visible inside a task.
type Mount struct {
	Type MountType `json:"type"`
	// Source is a volume, secret or config ID, a host path for bind, an image's name, empty for tmpfs. An
	// empty volume source is an anonymous volume that lives as long as the instance.
	Source   string `json:"source,omitempty"`
	Target   string `json:"target"`
	ReadOnly bool   `json:"readOnly,omitempty"`

	Propagation    string `json:"propagation,omitempty"` // bind: rprivate (default), rslave, rshared …
	CreateHostPath bool   `json:"createHostPath,omitempty"`
	Share          string `json:"share,omitempty"`     // anonymous volume: tasks of the instance with the same name here have the same one
	NoCopy         bool   `json:"noCopy,omitempty"`    // volume: do not fill it from the image
	SubPath        string `json:"subPath,omitempty"`   // mount this folder, or file, of it
	Recursion      string `json:"recursion,omitempty"` // bind: see the constants; "" takes along what is mounted below
	Options        string `json:"options,omitempty"`   // tmpfs: further ones of the file system, joined by commas
	SizeBytes      int64  `json:"sizeBytes,omitempty"` // tmpfs
	// Memory keeps an anonymous volume in memory; SizeBytes bounds it.
	Memory bool `json:"memory,omitempty"`
	// Folder takes a secret's content for a tar archive and mounts this one of the folders at its top.
	// Unlike otherwise, what the secret holds later on is followed, all files at once, unless SubPath is
	// given.
	Folder string `json:"folder,omitempty"`
	// Placed lets a bind's source and target have what is known once the instance has a node: see TaskSpec.PlacedEnv.
	Placed bool `json:"placed,omitempty"`
	// HostKind is what must be at a bind's source: "directory", "file", "socket", "charDevice",
	// "blockDevice", or "fileOrCreate"; "" is anything.
	HostKind string `json:"hostKind,omitempty"`
	Mode     uint32 `json:"mode,omitempty"` // tmpfs, secret, config, root of a volume: permission bits
	UID      string `json:"uid,omitempty"`  // secret, config
	GID      string `json:"gid,omitempty"`  // secret, config; of a volume the group that may write to it
	// Content identifies what a secret or config held when the revision was made, so that
	// changed content makes a new revision; of an image it is the digest.
	Content string `json:"content,omitempty"`
}

// Probe asks a task how it is.
type Probe struct {
	Exec          []string      `json:"exec,omitempty"`  // argv run in the task
	Shell         string        `json:"shell,omitempty"` // a command for /bin/sh -c
	HTTP          *HTTPProbe    `json:"http,omitempty"`
	TCPPort       int           `json:"tcpPort,omitempty"`
	TCPPortOf     int           `json:"tcpPortOf,omitempty"` // in place of TCPPort, as HTTPProbe.PortOf
	Interval      time.Duration `json:"interval"`
	Timeout       time.Duration `json:"timeout"`
	StartPeriod   time.Duration `json:"startPeriod,omitempty"`   // failures within it do not count
	StartInterval time.Duration `json:"startInterval,omitempty"` // interval within the start period
	Retries       int           `json:"retries"`                 // failures in a row until unhealthy
	// Once asks until it passes for the first time in a run, and never makes it unhealthy.
	Once bool `json:"once,omitempty"`
	// What follows is of the probes of separate tasks: how long to wait before the first one, how many
	// have to pass in a row, and how long the task has to end when it is found unhealthy.
	Delay  time.Duration  `json:"delay,omitempty"`
	Passes int            `json:"passes,omitempty"`
	Grace  *time.Duration `json:"grace,omitempty"`
	GRPC   *GRPCProbe     `json:"grpc,omitempty"`
	Host   string         `json:"host,omitempty"` // asked by TCP in place of the instance
}

// GRPCProbe asks a service of the gRPC health protocol, which must answer that it serves.
type GRPCProbe struct {
	Port    int    `json:"port"`
	Service string `json:"service,omitempty"`
}

// Hook is done at a moment of a task's life; one field is set.
type Hook struct {
	Exec    []string      `json:"exec,omitempty"` // argv run in the task
	HTTP    *HTTPProbe    `json:"http,omitempty"`
	TCPPort int           `json:"tcpPort,omitempty"`
	Sleep   time.Duration `json:"sleep,omitempty"`
}

// LastWords is what a task says as it ends, up to 4 KiB, for its status.
type LastWords struct {
	Path string `json:"path,omitempty"` // of a file in the task
	// FromLog takes the end of the log of a run that failed without having written the file.
	FromLog bool `json:"fromLog,omitempty"`
}

// HTTPProbe is a GET that must answer 200 to 399.
type HTTPProbe struct {
	Scheme string `json:"scheme,omitempty"`
	Port   int    `json:"port"`
	PortOf int    `json:"portOf,omitempty"` // in place of Port: where the port request of this number, from 1, leads
	Path   string `json:"path"`
	Codes  []int  `json:"codes,omitempty"` // answers that pass, in place of 200 to 399

	Host    string   `json:"host,omitempty"`    // asked in place of the instance
	Headers []string `json:"headers,omitempty"` // "Name: value"
}

// Ulimit is one process limit.
type Ulimit struct {
	Name string `json:"name"` // nofile, nproc …
	Soft int64  `json:"soft"`
	Hard int64  `json:"hard"`
}

// Device maps a host device into a task. Host may be the name of one as CDI has it, VENDOR/CLASS=NAME:
// the other fields are empty then.
type Device struct {
	Host        string `json:"host"`
	Container   string `json:"container"`
	Permissions string `json:"permissions"` // of r, w, m
}

// RestartCondition says which ends of a task lead to a new run.
type RestartCondition string

// The restart conditions.
const (
	RestartAlways    RestartCondition = "always"
	RestartOnFailure RestartCondition = "onFailure"
	RestartNever     RestartCondition = "never"
)

// RestartPolicy is applied by the agent, in place.
type RestartPolicy struct {
	Condition   RestartCondition `json:"condition"`
	Delay       time.Duration    `json:"delay,omitempty"`       // before the first restart
	Factor      float64          `json:"factor,omitempty"`      // by which the delay grows each time; 0: it doubles
	MaxDelay    time.Duration    `json:"maxDelay,omitempty"`    // up to which it grows; 0: a minute
	MaxAttempts int              `json:"maxAttempts,omitempty"` // 0: without end
	Window      time.Duration    `json:"window,omitempty"`      // a run this long resets the count
	AtOnce      bool             `json:"atOnce,omitempty"`      // the first restart is without delay
}

// Placement restricts and ranks nodes. What it says of instances is about those of the workload,
// whatever their revision, or, with Group, about those of all workloads with the same one.
type Placement struct {
	Group       string       `json:"group,omitempty"`
	Constraints []Constraint `json:"constraints,omitempty"` // all must hold
	Prefer      []Preference `json:"prefer,omitempty"`      // nodes that meet them are taken first
	Spread      []string     `json:"spread,omitempty"`      // node keys to spread over as evenly as possible, e.g. "node.labels.zone"
	Skew        []Skew       `json:"skew,omitempty"`        // node keys over which instances must be spread evenly
	MaxPer      []MaxPer     `json:"maxPer,omitempty"`      // bounds on instances per value of a node key
	MaxPerNode  int          `json:"maxPerNode,omitempty"`
	Near        []Affinity   `json:"near,omitempty"`  // where instances of other workloads, or of this one, run
	Apart       []Affinity   `json:"apart,omitempty"` // where they do not
	Tolerations []Toleration `json:"tolerations,omitempty"`
	Platforms   []string     `json:"platforms,omitempty"` // os/arch
	// Priority decides who is placed first and, where room is short, who gives way to whom: lower
	// to higher.
	Priority int           `json:"priority,omitempty"`
	Strategy Strategy      `json:"strategy,omitempty"` // "" is spread
	Gang     bool          `json:"gang,omitempty"`     // all pending instances are placed at once, or none
	Class    ResourceClass `json:"class,omitempty"`    // "" is guaranteed
}

// Preference is a constraint that should hold rather than must.
type Preference struct {
	Constraint
	// Weight is added up over what a node meets, or taken off where negative; -100 to 100, not 0.
	Weight int `json:"weight"`
}

// Skew bounds by how many instances the values of a node key may differ.
type Skew struct {
	Key string `json:"key"`
	Max int    `json:"max"` // from 1
	// Groups are counted in place of the workload's own instances.
	Groups []string `json:"groups,omitempty"`
	// MinDomains is how many values there must be, as far as the workload has instances for them.
	MinDomains int `json:"minDomains,omitempty"`
}

// MaxPer bounds how many instances run in all nodes with the same value of a key.
type MaxPer struct {
	Key string `json:"key"`
	Max int    `json:"max"` // from 1
}

// Affinity is to instances of some workloads in the same failure domain.
type Affinity struct {
	// Workloads are full names ("shop/db"), or names within the same application; empty for the
	// workload itself.
	Workloads []string `json:"workloads,omitempty"`
	Groups    []string `json:"groups,omitempty"` // of placements, in place of Workloads
	Key       string   `json:"key,omitempty"`    // whose values are the failure domains; "" for each node
	Weight    int      `json:"weight,omitempty"` // 1 to 100; 0: it must hold
}

// CountedAs is under which name a workload's instances are counted together: their group's, or the
// workload's ID.
func (p *Placement) CountedAs(workloadID string) string {
	if p.Group == "" {
		return workloadID
	}
	return groupName(p.Group)
}

func groupName(group string) string { return "group " + group }

// GroupNames are the names under which instances of groups are counted.
func GroupNames(groups []string) []string {
	out := make([]string, len(groups))
	for i, g := range groups {
		out[i] = groupName(g)
	}
	return out
}

// Strategy says what a workload's instances do with the nodes that are equal otherwise.
type Strategy string

// The strategies: nodes with the fewest instances of the workload and the least load first; the
// fullest first; or those whose resources are used up most evenly, so that none is stranded.
const (
	SpreadOut Strategy = "spread"
	BinPack   Strategy = "binPack"
	Balance   Strategy = "balance"
)

// ResourceClass says what a reservation is worth.
type ResourceClass string

// Reservations of guaranteed instances fit into what a node has. Burstable ones may set aside more
// cores, by the node's overcommitment. Best-effort ones set nothing aside.
const (
	Guaranteed ResourceClass = "guaranteed"
	Burstable  ResourceClass = "burstable"
	BestEffort ResourceClass = "bestEffort"
)

// Constraint compares a key of a node with a value. Keys: node.id, node.name, node.hostname,
// node.role (server, agent), node.platform.os, node.platform.arch, node.ip, node.labels.X,
// node.attributes.X.
type Constraint struct {
	Key      string   `json:"key"`
	Operator Operator `json:"operator"`
	Values   []string `json:"values,omitempty"`
}

// Operator is a comparison.
type Operator string

// The operators. A missing key is unequal to everything.
const (
	Equal     Operator = "="
	NotEqual  Operator = "!="
	In        Operator = "in"
	NotIn     Operator = "notIn"
	Exists    Operator = "exists"
	NotExists Operator = "notExists"
	Matches   Operator = "matches" // regular expression (RE2), whole value

	NotMatches Operator = "notMatches"

	// These compare with one value: as versions where that is one, such as v6.1, as numbers
	// otherwise. What is neither compares to nothing.
	Less    Operator = "<"
	AtMost  Operator = "<="
	Greater Operator = ">"
	AtLeast Operator = ">="
)

// Toleration lets an instance onto tainted nodes. Empty fields match everything.
type Toleration struct {
	Key    string `json:"key,omitempty"`
	Value  string `json:"value,omitempty"`
	Effect string `json:"effect,omitempty"`
}

// Images are those that the tasks are made of or have mounted, each with the digest that it was pinned to, if it was.
func (t *Template) Images() iter.Seq2[string, string] {
	return func(yield func(name, digest string) bool) {
		for _, task := range slices.Concat(t.InitTasks, t.Tasks) {
			if task.Image != "" && !yield(task.Image, task.Digest) {
				return
			}
			for i := range task.Mounts {
				if m := &task.Mounts[i]; m.Type == MountImage && !yield(m.Source, m.Content) {
					return
				}
			}
		}
	}
}
