package oci

import (
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// TestStraysAreWaitedFor leaves two children behind, of which one is waited for by somebody else.
func TestStraysAreWaitedFor(t *testing.T) {
	program, err := exec.LookPath("true")
	if err != nil {
		t.Fatal(err)
	}
	child := func() int {
		pid, err := syscall.ForkExec(program, []string{"true"}, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}})
		if err != nil {
			t.Fatal(err)
		}
		return pid
	}
	var s strays
	kept, err := s.begin(func() (*process, error) { return &process{pid: child()}, nil })
	if err != nil {
		t.Fatal(err)
	}
	stray := child()
	for end := time.Now().Add(20 * time.Second); syscall.Kill(stray, 0) == nil; time.Sleep(time.Millisecond) {
		if s.reap(); time.Now().After(end) {
			t.Fatal("what nobody waits for is not waited for")
		}
	}
	var status syscall.WaitStatus
	if pid, err := syscall.Wait4(kept.pid, &status, 0, nil); pid != kept.pid || err != nil {
		t.Errorf("the other child was waited for, too: %d, %v", pid, err)
	}
	kept.ended()
	if s.waited[kept.pid] {
		t.Error("it counts as waited for still")
	}
}
