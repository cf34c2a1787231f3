package supervisor

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// heedSignals gives the signals that this process was started to ignore their default effect, so that
// no task inherits that. The C library's posix_spawn, which make uses, makes every program ignore
// one that the library keeps for itself (32), and os/signal does not reach it.
func heedSignals() {
	const (
		setSize           = 8 // bytes
		byDefault, ignore = 0, 1
	)
	for sig := uintptr(1); sig <= lastSignal; sig++ {
		// The kernel's struct sigaction: handler, flags, restorer, mask.
		var action [4]uintptr
		if _, _, err := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&action)), setSize, 0, 0); err != 0 || action[0] != ignore {
			continue
		}
		action[0] = byDefault
		unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&action)), 0, setSize, 0, 0)
	}
}
