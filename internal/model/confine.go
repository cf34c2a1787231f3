package model

import (
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
)

// Sharing says which namespaces of the kernel the tasks of an instance have in common with the node,
// or with another workload's instance on the same node. Where it says nothing, each task has its own.
// HostNetwork, HostPIDs and HostIPC stand in the template itself.
type Sharing struct {
	// HostNames gives the tasks the node's host name.
	HostNames bool `json:"hostNames,omitempty"`
	// HostCgroups shows the tasks all cgroups of the node; OwnCgroups only their own, privileged as
	// they may be.
	HostCgroups bool `json:"hostCgroups,omitempty"`
	OwnCgroups  bool `json:"ownCgroups,omitempty"`
	// OfferIPC lets other workloads name this one in IPCOf; NoSharedMemory leaves /dev/shm out.
	// OwnUsers gives the tasks users of their own, in a user namespace: root in them is nobody on the node.
	OwnUsers       bool `json:"ownUsers,omitempty"`
	OfferIPC       bool `json:"offerIPC,omitempty"`
	NoSharedMemory bool `json:"noSharedMemory,omitempty"`
	// PIDsOf and IPCOf are workloads, named as in Affinity, whose processes the tasks see, or whose
	// System V IPC and shared memory they use. The instance runs on the node of theirs.
	PIDsOf string `json:"pidsOf,omitempty"`
	IPCOf  string `json:"ipcOf,omitempty"`
	// PIDsTask is the task of PIDsOf that is meant; "" is its first one.
	PIDsTask string `json:"pidsTask,omitempty"`
	// OnePIDs has the tasks of an instance see each other's processes: these have one namespace, whose first process is
	// none of theirs, and outlives each of them. It is for templates whose tasks are separate.
	OnePIDs bool `json:"onePIDs,omitempty"`
	// NetworkOf is a workload, likewise, whose network, host name and names the tasks use as their own.
	NetworkOf string `json:"networkOf,omitempty"`
}

// Shared is what the template shares; never nil.
func (t *Template) Shared() *Sharing {
	if t.Sharing == nil {
		return &Sharing{}
	}
	return t.Sharing
}

// Joins are the workloads whose namespaces the tasks enter.
func (s *Sharing) Joins() []string {
	var out []string
	for _, w := range []string{s.PIDsOf, s.IPCOf, s.NetworkOf} {
		if w != "" && !slices.Contains(out, w) {
			out = append(out, w)
		}
	}
	return out
}

// StayWithJoined has instances placed on the nodes of those that they join, unless the template names one node.
func (t *Template) StayWithJoined() {
	if slices.ContainsFunc(t.Placement.Constraints, func(c Constraint) bool { return c.Key == "node.name" && c.Operator == Equal }) {
		return
	}
	for _, w := range t.Shared().Joins() {
		with := func(a Affinity) bool { return a.Weight == 0 && a.Key == "" && slices.Equal(a.Workloads, []string{w}) }
		if !slices.ContainsFunc(t.Placement.Near, with) {
			t.Placement.Near = append(t.Placement.Near, Affinity{Workloads: []string{w}})
		}
	}
}

// Runtimes are the runtimes that the template's tasks name.
func (t *Template) Runtimes() []string {
	var out []string
	for _, tasks := range [...][]TaskSpec{t.InitTasks, t.Tasks} {
		for i := range tasks {
			if r := tasks[i].Runtime; r != "" && !slices.Contains(out, r) {
				out = append(out, r)
			}
		}
	}
	return out
}

// NamedDevices are the devices of the template's tasks that are named as CDI does.
func (t *Template) NamedDevices() []string {
	var out []string
	for _, tasks := range [...][]TaskSpec{t.InitTasks, t.Tasks} {
		for i := range tasks {
			for _, d := range tasks[i].Devices {
				if _, _, named := CDIName(d.Host); named && !slices.Contains(out, d.Host) {
					out = append(out, d.Host)
				}
			}
		}
	}
	return out
}

// CDIName splits VENDOR/CLASS=NAME, as devices of the Container Device Interface are called.
func CDIName(device string) (kind, name string, ok bool) {
	kind, name, ok = strings.Cut(device, "=")
	vendor, class, slash := strings.Cut(kind, "/")
	return kind, name, ok && slash && vendor != "" && class != "" && name != "" && !strings.Contains(class, "/")
}

// BuiltInRuntime is what the runtime is called that is part of the program, where one has to be named.
const BuiltInRuntime = "tutti"

// UnitRuntime is the runtime of processes of the host that are to be units of systemd's: a scope each, in the slice tutti.slice. Nodes where
// systemd runs have it.
const UnitRuntime = "systemd"

// Attributes of a node that say what it can do besides: one for each runtime, whose value is its version, and
// one for each kind of CDI devices, whose value are their names, joined by commas.
const (
	RuntimeAttribute = "runtime."
	CDIAttribute     = "cdi."
)

// UsersAttribute is what nodes have that can give instances users of their own.
const UsersAttribute = "userns"

// UsersProblem says what a template with users of its own cannot have besides, "" when it has nothing of that.
func (t *Template) UsersProblem() string {
	s := t.Shared()
	if !s.OwnUsers {
		return ""
	}
	for what, has := range map[string]bool{
		"the node's network": t.HostNetwork, "the node's processes": t.HostPIDs, "the node's shared memory": t.HostIPC,
		"the node's host name": s.HostNames, "the node's cgroups": s.HostCgroups,
		"namespaces of another workload": len(s.Joins()) > 0, "shared memory that others may use": s.OfferIPC,
	} {
		if has {
			return what
		}
	}
	for _, tasks := range [...][]TaskSpec{t.InitTasks, t.Tasks} {
		for i := range tasks {
			switch {
			case tasks[i].Driver == "process":
				return "a process of the host"
			case tasks[i].Privileged:
				return "all privileges"
			case tasks[i].Runtime != "":
				return "another OCI runtime than the built-in one (" + tasks[i].Runtime + ")"
			}
		}
	}
	return ""
}

// OnePIDsProblem says what a template whose tasks have one namespace of processes cannot have, or lacks; "" when it is well.
func (t *Template) OnePIDsProblem() string {
	s := t.Shared()
	switch {
	case !s.OnePIDs:
		return ""
	case !t.Separate:
		return "tasks that are started and ended together"
	case t.HostPIDs:
		return "the node's processes"
	case s.PIDsOf != "":
		return "the processes of another workload"
	case s.OwnUsers:
		return "users of their own"
	}
	for _, tasks := range [...][]TaskSpec{t.InitTasks, t.Tasks} {
		for i := range tasks {
			switch {
			case tasks[i].Driver == "process":
				return "a process of the host"
			case tasks[i].Runtime != "":
				return "another OCI runtime than the built-in one (" + tasks[i].Runtime + ")"
			}
		}
	}
	return ""
}

// HasCDIDevice reports whether a node has a device.
func (n *Node) HasCDIDevice(device string) bool {
	kind, name, _ := CDIName(device)
	return slices.Contains(strings.Split(n.Attributes[CDIAttribute+kind], ","), name)
}

// Tuning is what few tasks ask of the kernel. Zero values ask for nothing.
type Tuning struct {
	CPUs        string `json:"cpus,omitempty"`        // the processors it may use, such as "0-3,7"
	MemoryNodes string `json:"memoryNodes,omitempty"` // the same of nodes of memory
	CPUShares   uint64 `json:"cpuShares,omitempty"`   // in place of what the reservation comes to; 1024 are one core
	// SwapBytes bounds memory and swap together, -1 not at all; Swappiness is 0 to 100.
	SwapBytes  int64   `json:"swapBytes,omitempty"`
	Swappiness *uint64 `json:"swappiness,omitempty"`
	NoOOMKill  bool    `json:"noOOMKill,omitempty"`
	IOWeight   uint16  `json:"ioWeight,omitempty"` // 10 to 1000
	IO         []IO    `json:"io,omitempty"`
	// DeviceRules are what the task may do with devices besides, such as "c 13:* rwm".
	DeviceRules []string `json:"deviceRules,omitempty"`
	// HugePages bounds the memory in huge pages, in bytes, by the size of the pages, such as 2MB.
	HugePages map[string]uint64 `json:"hugePages,omitempty"`
	// Clocks, unless nil, is by how much the task's clocks differ from the node's.
	Clocks *Clocks `json:"clocks,omitempty"`
	// Paths takes the place of the paths below /proc and /sys that are hidden or read-only.
	Paths *SystemPaths `json:"paths,omitempty"`
}

// Clocks are offsets of the clocks that count from the node's start, in a time namespace. There is none for the time of
// day.
type Clocks struct {
	Monotonic time.Duration `json:"monotonic,omitempty"`
	Boot      time.Duration `json:"boot,omitempty"` // which goes on while the node is suspended
}

// IO is about the traffic with a disk; 0 is no bound.
type IO struct {
	Device      string `json:"device"` // its path on the node
	Weight      uint16 `json:"weight,omitempty"`
	ReadBytes   uint64 `json:"readBytes,omitempty"` // a second, as the others
	WriteBytes  uint64 `json:"writeBytes,omitempty"`
	ReadCounts  uint64 `json:"readCounts,omitempty"`
	WriteCounts uint64 `json:"writeCounts,omitempty"`
}

// SystemPaths are below /proc and /sys.
type SystemPaths struct {
	Hidden   []string `json:"hidden,omitempty"`
	ReadOnly []string `json:"readOnly,omitempty"`
}

// Nothing reports whether nothing is asked for.
func (t *Tuning) Nothing() bool { return reflect.DeepEqual(*t, Tuning{}) }

// gpuKinds are the kinds of GPUs as CDI calls them, by whose they are.
var gpuKinds = map[string]string{"": "nvidia.com/gpu", "nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu", "intel": "intel.com/gpu"}

// WantGPUs gives a task so many GPUs for itself, or those with these names; -1 is all of a node's.
func WantGPUs(t *TaskSpec, vendor string, count int, names []string) error {
	kind, ok := gpuKinds[vendor]
	switch {
	case !ok:
		return fault.New(fault.Unsupported, "devices of the driver %q are not known; those of nvidia, amd and intel are, and others by their names, VENDOR/CLASS=NAME", vendor)
	case len(names) > 0 && count > 0:
		return fault.New(fault.Invalid, "cannot set both Count and DeviceIDs on device request")
	case count < -1:
		return fault.New(fault.Invalid, "%d is no number of devices", count)
	case count == -1:
		names = []string{"all"}
	}
	for _, name := range names {
		t.Devices = append(t.Devices, Device{Host: kind + "=" + name})
	}
	if len(names) == 0 && count > 0 {
		if t.Reserve.Custom == nil {
			t.Reserve.Custom = map[string]int64{}
		}
		t.Reserve.Custom[kind] += int64(count)
	}
	return nil
}

// tmpfsOptions are those of tmpfs that have no field of their own.
var tmpfsOptions = lazily(`^((no)?(exec|suid|dev|atime|diratime)|(rel|strict)atime|(a)?sync|(uid|gid|nr_inodes|nr_blocks)=[0-9]+[kKmMgG]?|huge=(never|always|within_size|advise)|mpol=[a-z0-9:,-]+)$`)

// AddTmpfsOption adds an option to a mount of a tmpfs.
func (m *Mount) AddTmpfsOption(option string) error {
	switch {
	case option == "" || option == "rw":
	case option == "ro":
		m.ReadOnly = true
	case tmpfsOptions().MatchString(option) && !strings.Contains(option, ","):
		if m.Options != "" {
			m.Options += ","
		}
		m.Options += option
	default:
		return fault.New(fault.Unsupported, "option %q of a tmpfs is not supported; size, mode, ro, rw, exec, suid, dev, uid, gid, nr_inodes and the like are", option)
	}
	return nil
}

// DeviceRule is what one of Tuning.DeviceRules looks like.
var DeviceRule = lazily(`^[abc] ([0-9]+|\*):([0-9]+|\*) [rwm]{1,3}$`)

var numberList = lazily(`^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$`)

var pageSize = lazily(`^[1-9][0-9]*[KMG]B$`)

// Problem says what is wrong with it, "" when nothing is.
func (t *Tuning) Problem() string {
	if t == nil {
		return ""
	}
	weight := func(w uint16) bool { return w == 0 || w >= 10 && w <= 1000 }
	for what, list := range map[string]string{"processors": t.CPUs, "nodes of memory": t.MemoryNodes} {
		if list != "" && !numberList().MatchString(list) {
			return fmt.Sprintf("the list of %s %q is not like 0-3,7", what, list)
		}
	}
	switch {
	case t.CPUShares == 1:
		return "2 shares of processors are the fewest"
	case t.SwapBytes < -1:
		return fmt.Sprintf("%d is no amount of swap; -1 is any", t.SwapBytes)
	case t.Swappiness != nil && *t.Swappiness > 100:
		return fmt.Sprintf("swappiness %d is not between 0 and 100", *t.Swappiness)
	case !weight(t.IOWeight):
		return fmt.Sprintf("weight of disk traffic %d is not between 10 and 1000", t.IOWeight)
	}
	for _, d := range t.IO {
		if !weight(d.Weight) {
			return fmt.Sprintf("weight of disk traffic %d of %s is not between 10 and 1000", d.Weight, d.Device)
		}
		if !strings.HasPrefix(d.Device, "/") {
			return fmt.Sprintf("%q is not the path of a device", d.Device)
		}
	}
	for size, bytes := range t.HugePages {
		if !pageSize().MatchString(size) {
			return fmt.Sprintf("huge pages of %q: a size is one that the kernel has, such as 2MB or 1GB", size)
		}
		if bytes > math.MaxInt64 {
			return fmt.Sprintf("%d bytes in huge pages of %s are more than any node has", bytes, size)
		}
	}
	for _, r := range t.DeviceRules {
		if !DeviceRule().MatchString(r) {
			return fmt.Sprintf("device rule %q is not like \"c 13:* rwm\"", r)
		}
	}
	return ""
}

// Clone returns a deep copy; nil gives nil.
func (t *Tuning) Clone() *Tuning {
	c := clonePointer(t)
	if c == nil {
		return nil
	}
	c.Swappiness = clonePointer(t.Swappiness)
	c.IO, c.DeviceRules = slices.Clone(t.IO), slices.Clone(t.DeviceRules)
	c.HugePages, c.Clocks = maps.Clone(t.HugePages), clonePointer(t.Clocks)
	if c.Paths = clonePointer(t.Paths); c.Paths != nil {
		c.Paths.Hidden, c.Paths.ReadOnly = slices.Clone(t.Paths.Hidden), slices.Clone(t.Paths.ReadOnly)
	}
	return c
}
