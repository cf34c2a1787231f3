// Package apart lets the tests of a package run in namespaces of their own.
package apart

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

const insideEnv = "TUTTI_TEST_INSIDE"

// Main runs the tests in new namespaces, given as CLONE_NEW… flags, and ends the process: whatever
// happens to the tests, none of their links, rules and mounts is left on the machine. It is for
// TestMain. Without root the tests run where they are; those that need it say so.
func Main(m *testing.M, namespaces uintptr) {
	if os.Geteuid() != 0 || os.Getenv(insideEnv) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: namespaces, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}
