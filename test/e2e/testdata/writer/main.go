// Program writer writes a line to a file outside its container every ten milliseconds, for as long as it
// runs: who it is, a new name with every run, and the time since the machine was started. The line
// goes to /data first, where it may have a volume. It does not end when it is asked to.
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
	kept, err := os.OpenFile("/data/lines", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
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
		line := fmt.Sprintf("%08x %d\n", run, now.Nano())
		fmt.Fprint(kept, line)
		fmt.Fprint(f, line)
		time.Sleep(10 * time.Millisecond)
	}
}
