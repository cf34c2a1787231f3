package oci

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

// hold is the first process of a namespace that others' processes are in: it collects what they leave behind, until it
// is asked to end.
func hold() int {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGCHLD, syscall.SIGTERM, syscall.SIGINT)
	for s := range signals {
		if s != syscall.SIGCHLD {
			return 0
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != nil || pid <= 0 {
				break
			}
		}
	}
	return 0
}

// reap is PID 1 of a container that asked for one: it runs the task, passes signals on to it and
// collects what others leave behind.
func reap(args []string) int {
	if len(args) == 0 {
		return hold()
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	signals := make(chan os.Signal, 16)
	signal.Notify(signals)
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 127
	}
	for s := range signals {
		if s != syscall.SIGCHLD {
			if s != syscall.SIGURG { // the Go runtime's own
				syscall.Kill(cmd.Process.Pid, s.(syscall.Signal))
			}
			continue
		}
		for {
			var ws syscall.WaitStatus
			pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
			if err != nil || pid <= 0 {
				break
			}
			if pid == cmd.Process.Pid {
				if ws.Signaled() {
					return 128 + int(ws.Signal())
				}
				return ws.ExitStatus()
			}
		}
	}
	return 1
}
