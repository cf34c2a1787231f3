package provision

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/opencontainers/cgroups"
	"github.com/vishvananda/netlink"

	"github.com/tutti-run/tutti/internal/cgroup"
	"github.com/tutti-run/tutti/internal/fault"
)

// initConfig is what a host's first process is told.
type initConfig struct {
	Host
	Gateway string   `json:"gateway"`
	Bits    int      `json:"bits"`
	Log     string   `json:"log"`  // file for the node's output
	Args    []string `json:"args"` // of the node, the program first
}

// process identifies a process beyond the reuse of its number.
type process struct {
	PID   int    `json:"pid"`
	Start string `json:"start"` // ticks since boot, from /proc/<pid>/stat
}

func (m *Machine) nodeFile(h *Host) string { return filepath.Join(h.DataDir, "node.json") }
func (m *Machine) initFile(h *Host) string { return filepath.Join(h.DataDir, "init.json") }
func (m *Machine) pidFile(h *Host) string  { return filepath.Join(h.DataDir, "init.pid") }

// LogFile is where a host's node writes what it does.
func (h *Host) LogFile() string { return filepath.Join(h.DataDir, "tutti.log") }

// startOf reads when a process was started; "" when there is none, or only its remains.
func startOf(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, ok := strings.Cut(string(data), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return ""
	}
	return fields[19]
}

// running returns a host's first process.
func (m *Machine) running(h *Host) (int, bool) { return readProcess(m.pidFile(h)) }

func readProcess(path string) (int, bool) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	var p process
	if _, err := fmt.Sscanf(string(data), "%d %s", &p.PID, &p.Start); err != nil || p.PID < 2 {
		return 0, false
	}
	return p.PID, startOf(p.PID) == p.Start
}

func writeProcess(path string, pid int) error {
	return os.WriteFile(path, []byte(fmt.Sprintf("%d %s\n", pid, startOf(pid))), 0o600)
}

// boot starts a host's first process in namespaces of its own, and gives it its link.
func (m *Machine) boot(h *Host) (err error) {
	// A reboot wipes the run directory.
	if err := os.RemoveAll(h.RunDir); err != nil {
		return fmt.Errorf("clear the run directory of %s: %w", h.Name, err)
	}
	for _, dir := range []string{h.RunDir, h.DataDir} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return fmt.Errorf("make the directories of %s: %w", h.Name, err)
		}
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	config := initConfig{
		Host: *h, Gateway: m.gateway().String(), Bits: m.Subnet.Bits(), Log: h.LogFile(),
		Args: append(append([]string{exe}, m.NodeArgs...), m.nodeFile(h)),
	}
	if err := writeJSON(m.initFile(h), config); err != nil {
		return fmt.Errorf("write the configuration of %s: %w", h.Name, err)
	}
	out, err := os.OpenFile(h.LogFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", h.Name, err)
	}
	defer out.Close()
	wait, goOn, err := os.Pipe()
	if err != nil {
		return err
	}
	defer goOn.Close()
	answer, told, err := os.Pipe()
	if err != nil {
		wait.Close()
		return err
	}
	defer answer.Close()
	cmd := &exec.Cmd{
		Path: exe, Args: []string{"tutti", initArg, m.initFile(h)}, Dir: "/", Stdout: out, Stderr: out,
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, ExtraFiles: []*os.File{wait, told},
		SysProcAttr: &syscall.SysProcAttr{
			Setsid:     true,
			Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		},
	}
	err = cmd.Start()
	wait.Close()
	told.Close()
	if err != nil {
		return fmt.Errorf("start the first process of %s: %w", h.Name, err)
	}
	pid := cmd.Process.Pid
	go cmd.Wait() // only so that it leaves no zombie while this process lives
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreGone(cmd.Process.Kill()))
		}
	}()
	if err := writeProcess(m.pidFile(h), pid); err != nil {
		return fmt.Errorf("remember the first process of %s: %w", h.Name, err)
	}
	if err := joinCgroup(h, pid); err != nil {
		return err
	}
	if err := m.plug(h, pid); err != nil {
		return err
	}
	goOn.Close() // end of file lets it go on
	text, err := io.ReadAll(answer)
	if err != nil {
		return fmt.Errorf("boot %s: %w", h.Name, err)
	}
	if string(text) != "ok" {
		return fault.New(fault.Internal, "%s did not boot: %s (more in %s)", h.Name, orText(string(text), "its first process ended"), h.LogFile())
	}
	return nil
}

func ignoreGone(err error) error {
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

func orText(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// Cgroup is the parent of all cgroups in the host.
func (h *Host) Cgroup() string { return cgroupName + "/" + h.Name }

// joinCgroup moves a process into the host's own cgroup, in every hierarchy that takes it.
func joinCgroup(h *Host, pid int) error {
	roots, err := cgroup.Hierarchies()
	if err != nil {
		return err
	}
	for _, root := range roots {
		dir := filepath.Join(root, h.Cgroup(), "init")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make the cgroup of %s: %w", h.Name, err)
		}
		if err := inheritCPUSet(root, dir); err != nil {
			return fmt.Errorf("make the cgroup of %s: %w", h.Name, err)
		}
		for cgroup, weight := range map[string]int{cgroupName: hostsWeight, h.Cgroup() + "/init": nodeWeight} {
			if err := setWeight(filepath.Join(root, cgroup), weight); err != nil {
				return fmt.Errorf("set the weight of %s: %w", cgroup, err)
			}
		}
		if err := cgroups.WriteCgroupProc(dir, pid); err != nil {
			return fmt.Errorf("move %s into its cgroup: %w", h.Name, err)
		}
	}
	return nil
}

const (
	// hostsWeight is how many busy processes of the machine the hosts together weigh as much as:
	// with a cgroup's weight as it is at first, all of them would get as much as one compiler.
	hostsWeight = 16
	// nodeWeight is how many tasks a host's Tutti process weighs as much as. What keeps up a hundred
	// of them must not wait for its turn among them: others would take the host for dead.
	nodeWeight = 16
)

// setWeight sets the part of the processors' time that a cgroup gets while there is not enough for
// all, in multiples of what is usual; hierarchies that do not share out processors are left alone.
func setWeight(dir string, times int) error {
	for file, usual := range map[string]int{"cpu.shares": 1024, "cpu.weight": 100} {
		f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		_, err = fmt.Fprint(f, usual*times)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// inheritCPUSet gives new cgroups of the first version's cpuset hierarchy what it does not
// inherit by itself.
func inheritCPUSet(root, dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			continue // another hierarchy
		}
		below := root
		rel, err := filepath.Rel(root, dir)
		if err != nil {
			return err
		}
		for _, part := range strings.Split(rel, "/") {
			below = filepath.Join(below, part)
			have, err := os.ReadFile(filepath.Join(below, file))
			if err != nil || strings.TrimSpace(string(have)) != "" {
				continue
			}
			if err := os.WriteFile(filepath.Join(below, file), value, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// unseen stands for hosts whose first processes are in another PID namespace.
const unseen = "(unseen)"

// runningDirs returns the directories of the hosts that run on this machine, whoever keeps them:
// the first processes tell by what they were started with.
func runningDirs() []string {
	roots, err := cgroup.Hierarchies()
	if err != nil || len(roots) == 0 {
		return nil
	}
	files, err := filepath.Glob(filepath.Join(roots[0], cgroupName, "*", "init", "cgroup.procs"))
	if err != nil {
		return nil // the pattern is well formed
	}
	seen := map[string]bool{}
	for _, file := range files {
		procs, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for pid := range strings.FieldsSeq(string(procs)) {
			if pid == "0" {
				seen[unseen] = true
				continue
			}
			cmdline, err := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
			args := strings.Split(string(cmdline), "\x00")
			if err == nil && len(args) > 2 && args[1] == initArg {
				seen[filepath.Dir(filepath.Dir(args[2]))] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

// leftOver reports whether something of virtual hosts is there.
func leftOver() bool {
	if _, err := netlink.LinkByName(bridgeName); err == nil {
		return true
	}
	roots, err := cgroup.Hierarchies()
	if err != nil {
		return false
	}
	for _, root := range roots {
		if _, err := os.Stat(filepath.Join(root, cgroupName)); err == nil {
			return true
		}
	}
	return false
}
