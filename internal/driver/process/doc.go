// Package process runs tasks as plain programs of the host, each under a supervisor (see
// driver/supervisor): in a cgroup of their own, as the user and in the directory that were chosen,
// with the host's files and, unless another is named, the host's network. Nothing of libcontainer
// touches them: it would take the host's root file system for a container's.
//
// A program is not started directly but by a first step in a process of its own (step.go), which
// waits until it is in its cgroup, turns itself into what was asked for, and then executes it.
// Mounts, where there are any, are made in a mount namespace that only the task sees.
//
// A task of the runtime "systemd" is a unit besides: a scope, in the slice tutti.slice.
package process
