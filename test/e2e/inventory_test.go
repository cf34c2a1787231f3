//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

// inventory is what a machine has that Tutti makes while it runs.
type inventory struct {
	Links, Mounts, Tables, Cgroups, Namespaces, Processes []string
	Forwarding                                            string
}

// takeInventory lists it all.
func takeInventory() (inv inventory, err error) {
	links, err := netlink.LinkList()
	if err != nil {
		return inv, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		inv.Links = append(inv.Links, l.Attrs().Name)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return inv, err
	}
	for line := range strings.Lines(string(mounts)) {
		inv.Mounts = append(inv.Mounts, strings.TrimSpace(line))
	}
	tables, err := (&nftables.Conn{}).ListTables()
	if err != nil {
		return inv, fmt.Errorf("list the packet filter's tables: %w", err)
	}
	for _, t := range tables {
		inv.Tables = append(inv.Tables, fmt.Sprintf("%d %s", t.Family, t.Name))
	}
	if inv.Cgroups, err = filepath.Glob("/sys/fs/cgroup/*/tutti*"); err != nil {
		return inv, err
	}
	named, err := filepath.Glob("/run/netns/*")
	if err != nil {
		return inv, err
	}
	inv.Namespaces = named
	if inv.Processes, err = programProcesses(); err != nil {
		return inv, err
	}
	forwarding, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	inv.Forwarding = strings.TrimSpace(string(forwarding))
	for _, list := range [][]string{inv.Links, inv.Mounts, inv.Tables, inv.Cgroups, inv.Namespaces, inv.Processes} {
		slices.Sort(list)
	}
	return inv, err
}

// programProcesses lists processes that run in another process namespace than this one, or are of
// the program under test: hosts, nodes, supervisors, responders, and everything in containers.
func programProcesses() ([]string, error) {
	own, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return nil, err
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, dir := range dirs {
		ns, err := os.Readlink(dir + "/ns/pid")
		if err != nil {
			continue // ended meanwhile
		}
		if stat, err := os.ReadFile(dir + "/stat"); err != nil || strings.Contains(string(stat), ") Z ") {
			continue // ended, and to be collected by the machine's first process
		}
		cmdline, _ := os.ReadFile(dir + "/cmdline") // empty when ended meanwhile
		exe, _ := os.Readlink(dir + "/exe")
		if ns != own || exe == program {
			out = append(out, strings.ReplaceAll(string(cmdline), "\x00", " "))
		}
	}
	return out, nil
}

// difference says what a later inventory has more or less.
func (inv inventory) difference(later inventory) []string {
	var out []string
	compare := func(what string, a, b []string) {
		for _, x := range b {
			if !slices.Contains(a, x) {
				out = append(out, fmt.Sprintf("%s %q is left over", what, x))
			}
		}
		for _, x := range a {
			if !slices.Contains(b, x) {
				out = append(out, fmt.Sprintf("%s %q is gone", what, x))
			}
		}
	}
	compare("link", inv.Links, later.Links)
	compare("mount", inv.Mounts, later.Mounts)
	compare("table", inv.Tables, later.Tables)
	compare("cgroup", inv.Cgroups, later.Cgroups)
	compare("namespace", inv.Namespaces, later.Namespaces)
	compare("process", inv.Processes, later.Processes)
	if inv.Forwarding != later.Forwarding {
		out = append(out, fmt.Sprintf("ip_forward was %s and is %s", inv.Forwarding, later.Forwarding))
	}
	return out
}
