// Package oci runs tasks as containers, each under a supervisor (see driver/supervisor): by
// libcontainer, or by another OCI runtime that the task names, a program of the host. Docker's
// defaults hold: capabilities, seccomp profile, masked paths.
package oci
