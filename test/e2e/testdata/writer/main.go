// Program writer writes a line to a file outside its container every ten milliseconds, for as long as it
// runs: who it is, a new name with every run, and the time since the machine was started. It does
// not end when it is asked to.
package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	signal.Ignore(syscall.SIGTERM)
	f, err := os.OpenFile("/witness/"+os.Getenv("HOSTNAME"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	run := rand.Uint32()
	for {
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
			panic(err)
		}
		fmt.Fprintf(f, "%08x %d\n", run, now.Nano())
		time.Sleep(10 * time.Millisecond)
	}
}
