package host

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Clock says how the host keeps its clock, as the kernel knows.
func Clock() (inStep bool, says string) {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	switch {
	case err != nil:
		return false, "the kernel does not tell: " + err.Error()
	case state == unix.TIME_ERROR || t.Status&unix.STA_UNSYNC != 0:
		return false, "nothing keeps it in step: no time service has told the kernel so"
	}
	return true, fmt.Sprintf("a time service keeps it in step, within %s", time.Duration(t.Maxerror)*time.Microsecond)
}
