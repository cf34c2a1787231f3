package oci

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

// reap is PID 1 of a container that asked for one: it runs the task, passes signals on to it and
// collects what others leave behind.
func reap(args []string) int {
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
