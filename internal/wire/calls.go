package wire

import (
	"time"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/model"
)

// Paths that agents serve to servers.
const (
	PathLogs         = "/agent/logs"          // stream: LogsRequest, then LogsReply until End
	PathAccess       = "/agent/access"        // stream: AccessRequest, then LogsReply until End, of which each line is an Access
	PathExec         = "/agent/exec"          // stream: ExecStart, then ExecInput and ExecOutput
	PathAttach       = "/agent/attach"        // stream: ExecStart without Spec, then ExecInput and ExecOutput
	PathTry          = "/agent/try"           // call: TryRequest → TryReply
	PathFlows        = "/agent/flows"         // call: FlowsRequest → FlowsReply
	PathCounts       = "/agent/counts"        // call: Empty → CountsReply
	PathDial         = "/agent/dial"          // stream: ExecStart with Port, then ExecInput and ExecOutput
	PathDocker       = "/node/docker"         // stream: Pieces both ways, a connection of the Docker API
	PathSignal       = "/agent/signal"        // call: SignalRequest → Empty
	PathStats        = "/agent/stats"         // call: TaskRef → driver.Stats
	PathUsage        = "/agent/usage"         // call: Empty → NodeUsage
	PathSizes        = "/agent/sizes"         // call: SizesRequest → SizesReply
	PathNodeDebug    = "/agent/debug"         // call: Empty → NodeDebug
	PathProcesses    = "/agent/processes"     // call: TaskRef → []driver.Process
	PathPause        = "/agent/pause"         // call: PauseRequest → Empty
	PathBound        = "/agent/bound"         // call: BoundRequest → Empty
	PathLinked       = "/agent/linked"        // call: LinkedRequest → Empty
	PathFileStat     = "/agent/files/stat"    // call: FilesRequest → FileStat
	PathFileChanges  = "/agent/files/changes" // call: TaskRef → []FileChange
	PathReadFiles    = "/agent/files/read"    // stream: FilesRequest, then Piece until its End
	PathWriteFiles   = "/agent/files/write"   // stream: FilesRequest, then Piece, and one with End back
	PathEnsureImage  = "/agent/image/ensure"  // call: ImageRef → ImageRef
	PathRemoveImage  = "/agent/image/remove"  // call: ImageRef → Empty
	PathRemoveVolume = "/agent/volume/remove" // call: VolumeRef → Empty
	PathReadVolume   = "/agent/volume/read"   // stream: VolumeFiles, then Piece until its End
	PathWriteVolume  = "/agent/volume/write"  // stream: VolumeFiles, then Piece, and one with End back
	PathBlob         = "/agent/blob/"         // GET <digest>
)

// PathRegistry is where servers tell nodes how the registry of an image that these are to run is reached.
const PathRegistry = "/server/registry" // call: image.Wanted → []image.Endpoint

// BlobOf is the query of PathBlob that says of which image the blob is.
const BlobOf = "of"

// Empty is an answer without content.
type Empty struct{}

// TaskRef names a task of an instance; an empty Task is the first one.
type TaskRef struct {
	Instance string `json:"instance"`
	Task     string `json:"task,omitempty"`
}

// LinkedRequest waits until an instance has these addresses, no fewer and no others, on its node.
type LinkedRequest struct {
	Instance  string          `json:"instance"`
	Addresses []model.Address `json:"addresses,omitempty"`
}

// FlowsRequest asks for the connections of a node's clients within a span.
type FlowsRequest struct {
	Span time.Duration `json:"span"`
}

// MostFlowsSpan is the longest span: the kernel remembers connections that have ended for as long.
const MostFlowsSpan = time.Minute

// FlowsReply are connections, those between the same ends together.
type FlowsReply struct {
	Flows []Flow `json:"flows"`
}

// FlowEnds says between whom connections are: addresses of instances, FlowNode for the node that tells, or "" for
// what is outside of the cluster.
type FlowEnds struct {
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
	// Via is the virtual IP that was asked, or FlowNode for a port of the node; "" is what answers itself.
	Via      string `json:"via,omitempty"`
	Protocol string `json:"protocol"`
	Port     uint16 `json:"port"`   // that was asked
	Target   uint16 `json:"target"` // of what answers
}

// FlowNode is the node itself.
const FlowNode = "node"

// Flow is what there was between two ends.
type Flow struct {
	FlowEnds
	Begun    int    `json:"begun,omitempty"` // within the span
	Open     int    `json:"open,omitempty"`  // at its end
	Sent     uint64 `json:"sent,omitempty"`  // bytes within the span, by the client, packets' headers with them
	Received uint64 `json:"received,omitempty"`
}

// ServiceEntrance is where connections come to a service. It is a service's, by its ID, or an instance's that holds a port
// by itself.
type ServiceEntrance struct {
	Service  string `json:"service,omitempty"`
	Instance string `json:"instance,omitempty"`
	// IP is the virtual IP, or the only address that a port is published on; "" is all of a node's.
	IP string `json:"ip,omitempty"`
	// Port is the published one; 0 is the whole of a virtual IP.
	Port     uint16 `json:"port,omitempty"`
	Protocol string `json:"protocol,omitempty"`
}

// ServiceCount is what came to an entrance by a node, since it is there.
type ServiceCount struct {
	ServiceEntrance
	Connections uint64 `json:"connections"`        // or, of datagrams, pairs of ends; also those that nobody answered
	Sent        uint64 `json:"sent,omitempty"`     // bytes to the service, packets' headers with them
	Received    uint64 `json:"received,omitempty"` // bytes from it
}

// CountsReply is what a node has counted.
type CountsReply struct {
	Counts []ServiceCount `json:"counts,omitempty"`
	// Requests are those that came for services with routes since the ingress began, by service ID.
	Requests map[string]uint64 `json:"requests,omitempty"`
}

// NodeUsage is what the tasks of a node have used so far, and how many requests its ingress has had.
type NodeUsage struct {
	Time time.Time `json:"time"`
	// Instances are those that run, by ID.
	Instances map[string]InstanceUsage `json:"instances,omitempty"`
	// Requests are those that came for services with routes since the ingress began, by service ID.
	Requests map[string]uint64 `json:"requests,omitempty"`
}

// InstanceUsage is what all tasks of an instance use together: processors since they began, memory now.
type InstanceUsage struct {
	CPUNanoseconds uint64 `json:"cpuNanoseconds"`
	MemoryBytes    uint64 `json:"memoryBytes"`
}

// SizesRequest asks how much files hold: those of tasks, and those of volumes, by ID.
type SizesRequest struct {
	Tasks   []TaskRef `json:"tasks,omitempty"`
	Volumes []string  `json:"volumes,omitempty"`
}

// SizesReply answers in the order of the request.
type SizesReply struct {
	Tasks   []TaskSize `json:"tasks,omitempty"`
	Volumes []int64    `json:"volumes,omitempty"` // in bytes, or UnknownSize
}

// TaskSize is how much is in the files of a task, in bytes, or UnknownSize: what was written, and that with what its
// root file system was made of.
type TaskSize struct {
	Written int64 `json:"written"`
	Total   int64 `json:"total"`
}

// UnknownSize is that of what is not there, or could not be gone through in time.
const UnknownSize = -1

// NodeDebug is how a node is, as it says itself.
type NodeDebug struct {
	Time    time.Time `json:"time"` // by the node's clock
	Version string    `json:"version"`
	Kernel  string    `json:"kernel"`
	// Left is what is left of what the host has, and of what its instances may have together.
	Left     []Left              `json:"left"`
	Pressure []string            `json:"pressure,omitempty"`
	Features []model.HostFeature `json:"features"`
	Clock    Clock               `json:"clock"`
	Process  NodeProcess         `json:"process"`
	// Instances are those that the node holds, Network the revision of the network state in force there.
	Instances int      `json:"instances"`
	Network   uint64   `json:"network"`
	Servers   []string `json:"servers"` // that the node knows, in the order in which it tries them
	Problems  []string `json:"problems,omitempty"`
}

// Left is how much is left of something.
type Left struct {
	What string `json:"what"`
	Left int64  `json:"left"`
	Of   int64  `json:"of"`
}

// Clock is how a host's clock is.
type Clock struct {
	InStep bool   `json:"inStep"` // as its kernel was told
	Says   string `json:"says"`
	// Ahead is by how much it is ahead of the server that asked, in nanoseconds, give or take Within.
	Ahead  time.Duration `json:"ahead"`
	Within time.Duration `json:"within"`
}

// NodeProcess is Tutti's own process on a node.
type NodeProcess struct {
	PID         int           `json:"pid"`
	Running     time.Duration `json:"running"` // since it was started, in nanoseconds
	MemoryBytes int64         `json:"memoryBytes"`
	HeapBytes   uint64        `json:"heapBytes"`
	Goroutines  int           `json:"goroutines"`
	Files       int           `json:"files"` // open
	OOMScore    int64         `json:"oomScore"`
}

// TryRequest has a name looked up, or a connection made, from within an instance's network.
type TryRequest struct {
	Instance string `json:"instance"`
	Name     string `json:"name,omitempty"`
	Address  string `json:"address,omitempty"` // host:port of TCP
}

// TryReply is what became of it.
type TryReply struct {
	Addresses []string      `json:"addresses,omitempty"`
	Took      time.Duration `json:"took"`
	Error     string        `json:"error,omitempty"`
}

// ImageRef names an image and pins its content.
type ImageRef struct {
	Name   string `json:"name"`
	Digest string `json:"digest,omitempty"`
}

// VolumeRef names a volume.
type VolumeRef struct {
	ID string `json:"id"`
}

// VolumeFiles names what a volume holds.
type VolumeFiles struct {
	Volume *model.Volume `json:"volume"`
}

// LogsRequest opens a log.
type LogsRequest struct {
	TaskRef
	Options driver.LogOptions `json:"options"`
}

// AccessRequest opens a node's access log.
type AccessRequest struct {
	All      bool              `json:"all,omitempty"`
	Services []string          `json:"services,omitempty"` // IDs, if not all
	Options  driver.LogOptions `json:"options"`
}

// Access is a request that the ingress answered, or tells of requests that it did not write down.
type Access struct {
	Time         time.Time `json:"time"`    // when it came
	Service      string    `json:"service"` // "shop/web"
	Host         string    `json:"host,omitempty"`
	Client       string    `json:"client,omitempty"`
	User         string    `json:"user,omitempty"` // who said so by basic authentication
	Method       string    `json:"method,omitempty"`
	Target       string    `json:"target,omitempty"` // path and query, as they were sent
	Secure       bool      `json:"secure,omitempty"` // by TLS
	Status       int       `json:"status"`
	Bytes        int64     `json:"bytes"` // of the answer's body
	Milliseconds float64   `json:"milliseconds"`
	Instance     string    `json:"instance,omitempty"` // that was asked last
	UserAgent    string    `json:"userAgent,omitempty"`
	Referer      string    `json:"referer,omitempty"`
	// Dropped is how many requests are not written down, since the disk was too slow; then there is nothing else.
	Dropped uint64 `json:"dropped,omitempty"`
}

// LogsReply carries entries, or the end of the log.
type LogsReply struct {
	Entries []driver.LogEntry `json:"entries,omitempty"`
	End     *End              `json:"end,omitempty"`
}

// End closes a stream: with nothing, or with an error and its kind.
type End struct {
	Error    string `json:"error,omitempty"`
	Kind     string `json:"kind,omitempty"`
	ExitCode int    `json:"exitCode,omitempty"`
}

// ExecStart opens a process in a task.
type ExecStart struct {
	TaskRef
	Spec   driver.ExecSpec `json:"spec"`
	Stdin  bool            `json:"stdin"`
	Stdout bool            `json:"stdout"`
	Stderr bool            `json:"stderr"`
	// FromStart is for attaching; see driver.Streams.
	FromStart bool `json:"fromStart,omitempty"`
	// Port is, for dialing, a TCP port of the instance, as it would connect to it itself.
	Port int `json:"port,omitempty"`
}

// SignalRequest sends a signal, by number, to a task's first process.
type SignalRequest struct {
	TaskRef
	Signal int `json:"signal"`
}

// PauseRequest stops a task's processes where they are, or lets them go on; an empty Task is all of
// the instance's.
type PauseRequest struct {
	TaskRef
	Pause bool `json:"pause"`
}

// BoundRequest bounds a task that runs anew.
type BoundRequest struct {
	TaskRef
	Bounds model.Bounds `json:"bounds"`
}

// FilesWhat is what of a task's root file system is read.
type FilesWhat string

// What can be read.
const (
	// FilesTree is a file or tree, as the task sees it, mounts included.
	FilesTree FilesWhat = ""
	// FilesRoot is the root file system without what is mounted into it.
	FilesRoot FilesWhat = "root"
	// FilesLayer is what was changed since the image, as a layer of an image.
	FilesLayer FilesWhat = "layer"
)

// FilesRequest names files of a task.
type FilesRequest struct {
	TaskRef
	Path string    `json:"path,omitempty"`
	What FilesWhat `json:"what,omitempty"`
	// KeepKind refuses, when writing, to replace a directory by a file or the other way round.
	KeepKind bool `json:"keepKind,omitempty"`
	// ToUser gives what is written to the task's user instead of those that the archive names.
	ToUser bool `json:"toUser,omitempty"`
}

// Piece is a part of an archive, or its end.
type Piece struct {
	Data []byte `json:"data,omitempty"`
	End  *End   `json:"end,omitempty"`
}

// FileStat tells of a file. Mode is as of io/fs.
type FileStat struct {
	Name       string    `json:"name"`
	Size       int64     `json:"size"`
	Mode       uint32    `json:"mode"`
	ModTime    time.Time `json:"modTime"`
	LinkTarget string    `json:"linkTarget,omitempty"`
}

// FileChange is a file of a task that is not as in its image.
type FileChange struct {
	Path string         `json:"path"`
	Kind FileChangeKind `json:"kind"`
}

// FileChangeKind says how.
type FileChangeKind string

// The kinds of changes.
const (
	FileAdded   FileChangeKind = "added"
	FileChanged FileChangeKind = "changed"
	FileDeleted FileChangeKind = "deleted"
)

// ExecInput travels to the process; one field is set.
type ExecInput struct {
	Data   []byte       `json:"data,omitempty"`
	Closed bool         `json:"closed,omitempty"` // end of input
	Resize *driver.Size `json:"resize,omitempty"`
	Signal int          `json:"signal,omitempty"`
}

// ExecOutput travels from the process; one field is set.
type ExecOutput struct {
	Stdout []byte `json:"stdout,omitempty"`
	Stderr []byte `json:"stderr,omitempty"`
	End    *End   `json:"end,omitempty"`
}
