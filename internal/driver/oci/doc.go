// Package oci runs tasks as containers, each under a supervisor (see driver/supervisor): by a list of
// steps from libcontainer's configuration, by libcontainer where more is asked for, or by another OCI
// runtime that the task names, a program of the host. Docker's defaults hold: capabilities, seccomp
// profile, masked paths.
package oci
