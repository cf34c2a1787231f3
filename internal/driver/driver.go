// Package driver is the small interface between the agent and whatever runs tasks: containers
// (driver/oci), plain processes (driver/process), or nothing at all (driver/fake). The suite in
// driver/drivertest states what every driver must do, and each is held to it.
//
// A driver owns a state directory. What it writes there (exit codes, times, logs) outlives the
// process that called it: after a restart, List returns every task that was started and not
// removed, and Wait, Logs and Exec work on it as before.
package driver

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/userns"
)

// Task is all that a driver needs to run one task; nothing in it refers to the store.
type Task struct {
	// ID names this run: instance ID, task name and run number joined by ".".
	ID string
	// Rootfs is a mounted, writable root file system (oci), or "" (process).
	Rootfs string
	// Sandbox is a directory of the host that is the task's own (process), or "" (oci).
	Sandbox    string
	Args       []string // the resolved argv; never empty
	Env        []string // NAME=value, complete
	User       string   // user[:group], names or numbers, looked up in the rootfs
	Groups     []string
	WorkingDir string
	Hostname   string
	Domainname string
	// NetNS is the path of the network namespace to join; "" is the host's.
	NetNS string
	// HostPIDs and HostIPC share these namespaces with the host (oci), HostNames that of its name.
	// PIDNS and IPCNS are the paths of others to join.
	HostPIDs, HostIPC, HostNames bool
	PIDNS, IPCNS                 string
	// Users are those of the user namespace that the task enters, nil the host's. NetNS belongs to it then, and Rootfs
	// shows its users; what mounts bring in is shown with them by the driver.
	Users *userns.Users
	// HostCgroups shows all cgroups, OwnCgroups the task's own only; without both it is what
	// privileges say.
	HostCgroups, OwnCgroups bool
	NoSharedMemory          bool
	// Cgroups is where this host has its cgroups, found by the driver, so that not every task's supervisor has to look.
	Cgroups *Cgroups
	// CgroupParent is the path under which the task's cgroup is made, e.g. "/tutti/<instance>".
	CgroupParent string
	Mounts       []Mount
	Limit        model.Resources
	Reserve      model.Resources
	CapAdd       []string
	CapDrop      []string
	Privileged   bool
	ReadOnlyRoot bool
	// SecurityOpts are "no-new-privileges", "seccomp=unconfined", "seccomp=" and a profile in JSON, and
	// "apparmor=" and the name of a profile.
	SecurityOpts []string
	Tuning       *model.Tuning
	Log          *model.LogPolicy
	Ulimits      []model.Ulimit
	Devices      []model.Device // by paths of the host
	// Injected are changes to the container's specification that devices with names ask for.
	Injected       *Injected
	Init           bool
	TTY            bool
	Stdin          bool
	ShmBytes       int64
	Sysctls        map[string]string
	OOMScoreAdjust int
	Umask          *uint32 // nil: the driver's default (process)
	// Runtime is the name of the OCI runtime that makes the container (oci); "" is the built-in one.
	// RuntimePath is its program on this host, found by the driver.
	Runtime, RuntimePath string
	// Filters is the directory of compiled seccomp profiles, named by the driver (oci).
	Filters string
	// Leased tasks run only while the node holds a lease; see Leaser.
	Leased bool
}

// Hold, as the only argument of a task with Init, is no program: the init process alone runs, and ends when it is asked
// to. Others enter its namespaces.
const Hold = "{hold}"

// Injected is a part of a container's specification. It is a type of its own for the supervisors that read tasks: a JSON decoder
// prepares itself for all types that it might meet, which is a third of what reading a task takes where this is one of them.
type Injected struct{ *specs.Spec }

// MarshalJSON implements json.Marshaler.
func (i *Injected) MarshalJSON() ([]byte, error) { return json.Marshal(i.Spec) }

// UnmarshalJSON implements json.Unmarshaler.
func (i *Injected) UnmarshalJSON(text []byte) error { return json.Unmarshal(text, &i.Spec) }

// Cgroups tells where cgroups of version 1 are. Of version 2 there is nothing to tell.
type Cgroups struct {
	Roots       map[string]string // where paths begin, by subsystem
	Hierarchies []CgroupHierarchy
}

// CgroupHierarchy is a mount of cgroups.
type CgroupHierarchy struct {
	Mountpoint, Root string
	Subsystems       []string
}

// Paths are the directories of a cgroup by subsystem, nil where they are to be looked for.
func (c *Cgroups) Paths(path string) map[string]string {
	if c == nil {
		return nil
	}
	paths := map[string]string{}
	for s, root := range c.Roots {
		paths[s] = filepath.Join(root, path)
	}
	return paths
}

// Mount is a resolved mount: sources are paths on this host.
type Mount struct {
	Type        string // "bind" or "tmpfs"
	Source      string
	Target      string
	ReadOnly    bool
	Propagation string
	Recursion   string // bind: as in model.Mount
	SizeBytes   int64
	Mode        uint32
	Options     string // tmpfs: further ones, joined by commas
}

// State of a task run; it only moves forward.
type State string

// The task states.
const (
	Created State = "created"
	Running State = "running"
	Paused  State = "paused"
	Exited  State = "exited"
)

// Status tells how a task run is or how it ended.
type Status struct {
	ID       string    `json:"id"`
	State    State     `json:"state"`
	PID      int       `json:"pid,omitempty"` // as seen from the driver's own pid namespace
	Started  time.Time `json:"started,omitzero"`
	Finished time.Time `json:"finished,omitzero"`
	ExitCode int       `json:"exitCode"` // 128+n when ended by signal n
	OOM      bool      `json:"oom,omitempty"`
	Error    string    `json:"error,omitempty"` // why it could not be started
}

// ExecSpec is one more process inside a running task.
type ExecSpec struct {
	Args       []string
	Env        []string // added to the task's
	User       string   // "" is the task's
	WorkingDir string   // "" is the task's
	TTY        bool
	Privileged bool
	Rows, Cols int // initial terminal size
}

// Streams carries a process's input and output. Nil fields are closed or discarded.
// With a TTY, everything arrives on Stdout.
type Streams struct {
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	// Resize carries terminal sizes; nil when there is no terminal.
	Resize <-chan Size
	// Signals carries signals to send to the process.
	Signals <-chan os.Signal
	// FromStart asks Attach for what the task printed in its first moments, too: see its promise.
	FromStart bool
}

// Size of a terminal in characters.
type Size struct{ Rows, Cols int }

// LogOptions chooses log lines.
type LogOptions struct {
	Follow bool      // go on until the task ends and all was read, or ctx is done
	Since  time.Time // zero: from the start
	Until  time.Time // zero: no end
	Tail   int       // the last n lines; negative: all
	// Run is, for the agent, which run of a task is meant: one by its number, the latest (-1), or the
	// one before that (-2). 0 is all that are kept, one after the other.
	Run int
}

// LogEntry is one line, or a part of one longer than the log's limit (then without a newline).
type LogEntry struct {
	Time   time.Time `json:"time"`
	Stream string    `json:"stream"` // stdout, stderr
	Line   []byte    `json:"line"`   // with its newline, if it had one
}

// Stats is a reading of a running task.
type Stats struct {
	Time             time.Time `json:"time"`
	CPUNanoseconds   uint64    `json:"cpuNanoseconds"`
	MemoryBytes      uint64    `json:"memoryBytes"` // without reclaimable file cache
	MemoryLimitBytes uint64    `json:"memoryLimitBytes"`
	Pids             uint64    `json:"pids"`
	ReadBytes        uint64    `json:"readBytes"`
	WriteBytes       uint64    `json:"writeBytes"`

	// What follows the agent adds, the same for all drivers.

	// HostNanoseconds are those that the host's processors have gone through in all, used or not.
	HostNanoseconds uint64 `json:"hostNanoseconds,omitempty"`
	Processors      int    `json:"processors,omitempty"` // of the host
	HostMemoryBytes uint64 `json:"hostMemoryBytes,omitempty"`
	// Links are those of the task's network, unless that is the host's.
	Links []LinkStats `json:"links,omitempty"`
}

// LinkStats are the counts of a network link, by bytes and packets.
type LinkStats struct {
	Name            string `json:"name"`
	ReceivedBytes   uint64 `json:"receivedBytes"`
	ReceivedPackets uint64 `json:"receivedPackets"`
	ReceiveErrors   uint64 `json:"receiveErrors"`
	ReceiveDropped  uint64 `json:"receiveDropped"`
	SentBytes       uint64 `json:"sentBytes"`
	SentPackets     uint64 `json:"sentPackets"`
	SendErrors      uint64 `json:"sendErrors"`
	SendDropped     uint64 `json:"sendDropped"`
}

// Process is one that a task's processes consist of.
type Process struct {
	PID            int       `json:"pid"`  // as seen from the driver's own pid namespace
	Parent         int       `json:"ppid"` // the same
	UID            uint32    `json:"uid"`
	State          string    `json:"state"` // the kernel's letter: R, S, D, Z, T …
	Started        time.Time `json:"started,omitzero"`
	CPUNanoseconds uint64    `json:"cpuNanoseconds"`
	MemoryBytes    uint64    `json:"memoryBytes"` // resident, what is shared included
	Command        []string  `json:"command"`     // argv, or the name in brackets
}

// Driver runs tasks. Methods on an unknown ID return fault.NotFound. All methods are safe for
// concurrent use.
type Driver interface {
	// Start runs the task and returns when its first instruction is about to run, or with the
	// reason why it could not. Starting an ID that was started already does nothing.
	Start(ctx context.Context, t Task) error
	// Status returns the current state.
	Status(ctx context.Context, id string) (Status, error)
	// Wait blocks until the task has exited; safe to call again after a restart.
	Wait(ctx context.Context, id string) (Status, error)
	// Signal sends a signal by number to the task's first process.
	Signal(ctx context.Context, id string, signal int) error
	// Kill ends the whole tree of the task at once and returns when it is gone.
	Kill(ctx context.Context, id string) error
	Pause(ctx context.Context, id string) error
	Resume(ctx context.Context, id string) error
	// Exec runs a process in the task and returns its exit code (128+n for signal n).
	Exec(ctx context.Context, id string, spec ExecSpec, s Streams) (exitCode int, err error)
	// Attach connects to the task's own streams until it exits or ctx is done; any number at once.
	// With FromStart, whoever comes within the run's first five seconds gets all that was printed
	// before, up to 64 KiB.
	Attach(ctx context.Context, id string, s Streams) error
	// Logs calls yield for each entry in order until done or yield returns an error.
	Logs(ctx context.Context, id string, o LogOptions, yield func(LogEntry) error) error
	// Update bounds a task that runs anew, as Start would have: what a task was bounded in and is no more it has without
	// bounds. What the kernel refuses leaves the task as it was.
	Update(ctx context.Context, id string, b model.Bounds) error
	Stats(ctx context.Context, id string) (Stats, error)
	// Processes lists the processes of a running task, by process ID.
	Processes(ctx context.Context, id string) ([]Process, error)
	// List returns every task started and not removed, also those started before a restart.
	List(ctx context.Context) ([]Status, error)
	// Remove kills what runs and frees everything that the task held, logs included.
	Remove(ctx context.Context, id string) error
}
