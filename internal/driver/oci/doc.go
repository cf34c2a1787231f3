// Package oci runs tasks as containers, by libcontainer, each under a supervisor (see
// driver/supervisor). Docker's defaults hold: capabilities, seccomp profile, masked paths.
package oci
