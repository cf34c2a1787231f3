// Package provision makes hosts. The one provider so far makes virtual hosts on this machine:
// each has its own process, network, mount, host name and IPC namespaces, a link to a private
// bridge, a cgroup, a data directory, and a first process (init.go) that keeps a Tutti node
// running in it, as an init system would.
//
// The host's processes all live in its process namespace, so that killing the first one is a
// power cut: the kernel kills every other at once, containers included. Links, mounts and
// namespaces go with the processes. What does not (the bridge, the packet filter's table, cgroups)
// has fixed names, so that taking down works from the names alone, also after a crash.
//
// No daemon is needed: every command works on files and the kernel's state, under a lock. Only
// the published ports on the machine's own loopback address (ports.go), and looking after the number of
// hosts (grow.go), need a process. The latter works with any Provider.
package provision
