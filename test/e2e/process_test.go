//go:build e2e

package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
)

// pidOf returns a host's first process.
func pidOf(t *testing.T, host string) int {
	t.Helper()
	for _, h := range query[[]hostState](t, "host", "ls") {
		if h.Name == host {
			return h.PID
		}
	}
	t.Fatalf("no host %s", host)
	return 0
}

// inHost calls fn for every process in a host's process namespace or one below it: those whose
// network, or whose parents, lead to the host's first process.
func inHost(hostPID int, fn func(pid int, args []string)) error {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || !descends(pid, hostPID) {
			continue
		}
		cmdline, err := os.ReadFile(dir + "/cmdline")
		if err == nil && len(cmdline) > 0 {
			fn(pid, strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00"))
		}
	}
	return nil
}

func descends(pid, from int) bool {
	for range 20 {
		if pid == from {
			return true
		}
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return false
		}
		_, rest, ok := strings.Cut(string(data), ") ")
		fields := strings.Fields(rest)
		if !ok || len(fields) < 2 {
			return false
		}
		if pid, err = strconv.Atoi(fields[1]); err != nil || pid <= 1 {
			return false
		}
	}
	return false
}

func findNodeProcess(hostPID int) (int, error) {
	found := 0
	err := inHost(hostPID, func(pid int, args []string) {
		if len(args) > 1 && args[1] == "serve" {
			found = pid
		}
	})
	if err == nil && found == 0 {
		err = fmt.Errorf("no node process in the host of process %d", hostPID)
	}
	return found, err
}

func nodeProcess(t *testing.T, hostPID int) int {
	t.Helper()
	pid, err := findNodeProcess(hostPID)
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// containerPIDs returns the processes of a host that are in another process namespace than its
// first one: those in containers.
func containerPIDs(t *testing.T, hostPID int) []int {
	t.Helper()
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", hostPID))
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	err = inHost(hostPID, func(pid int, _ []string) {
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid)); err == nil && ns != own {
			out = append(out, pid)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// firstPIDs returns the first process of every container on a host; what probes start comes and goes.
func firstPIDs(t *testing.T, hostPID int) []int {
	t.Helper()
	var out []int
	for _, pid := range containerPIDs(t, hostPID) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(status)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "NSpid:" && f[len(f)-1] == "1" {
				out = append(out, pid)
			}
		}
	}
	return out
}

// mainPID returns a process of a running instance of the shop, by its host name in the container.
func mainPID(t *testing.T, name string) int {
	t.Helper()
	want := strings.ReplaceAll(name, ".", "-")
	for _, h := range query[[]hostState](t, "host", "ls") {
		for _, pid := range containerPIDs(t, h.PID) {
			env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
			if err == nil && strings.Contains("\x00"+string(env), "\x00HOSTNAME="+want+"\x00") {
				return pid
			}
		}
	}
	t.Fatalf("no process of %s", name)
	return 0
}

// dialFrom connects from the network namespace of a process.
func dialFrom(pid int, address string) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		result <- func() error {
			ns, err := netns.GetFromPid(pid)
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := netns.Set(ns); err != nil {
				return err
			}
			c, err := (&net.Dialer{Timeout: time.Second}).Dial("tcp", address)
			if err != nil {
				return err
			}
			return c.Close()
		}()
	}()
	return <-result
}
