package supervisor

import (
	"os"
	"syscall"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/launch"
)

// Body is what a supervisor watches over: the processes of one task.
type Body interface {
	// Start runs the task's first process and returns when its first instruction is about to run.
	// When it fails, Destroy is called.
	Start(files *Files) (Process, error)
	// Exec runs one more process in the task; safe for concurrent use.
	Exec(spec *driver.ExecSpec, files *Files) (Process, error)
	// Kill ends the whole tree, paused or not; that it is gone already is no error.
	Kill() error
	Pause() error
	Resume() error
	// Update bounds the task as t is bounded, which differs in nothing else from the task that was started.
	Update(t *driver.Task) error
	Usage
	// OutOfMemory reports whether the kernel killed a process of the task for want of memory; it is
	// asked after the first process has failed or was killed.
	OutOfMemory() bool
	// Destroy frees what the task held, once nothing of it runs.
	Destroy() error
}

// Usage is what a task uses up.
type Usage interface {
	Stats() (*driver.Stats, error)
	// Members returns the process IDs of everything that runs in the task.
	Members() ([]int, error)
}

// Signaller is a Body whose first process is not everywhere reached by its process ID, such as one
// that runs on a kernel of its own.
type Signaller interface {
	// Signal sends a signal that exists to the first process; that it has ended is no error.
	Signal(signal int) error
}

// Adopter is a Body whose first process may have been begun before there was a supervisor; see First.
type Adopter interface {
	// Adopt is given that process instead of a call of Start, and how it ended if it was waited for already.
	Adopt(pid int, ended *syscall.WaitStatus) Process
}

// First is how the first process of a task is begun, and watched, by the program beside it before that does anything else.
type First struct {
	// Hand returns what that program is handed for it, when it knows from w of all but the task's cgroups.
	Hand func(w launch.Watch) []byte
	// Failed frees what was made for the process, and says why it could not be begun.
	Failed func(step int, errno syscall.Errno) error
}

// Process is one that a Body started.
type Process interface {
	PID() int
	// Wait returns how the process ended; it is called once.
	Wait() (syscall.WaitStatus, error)
}

// Files are a process's standard files. The body does not close them.
type Files struct {
	Stdin, Stdout, Stderr *os.File // nil is no input, or output that nobody wants

	TTY        bool // a terminal instead of them
	Rows, Cols int  // its first size; zero: any
	// Console is set by the body: the supervisor's end of the terminal.
	Console *os.File
}

// NewBody makes the body of a task. It may keep things in dir, which ends with the host and is
// removed with the task; reaper is the program that can be process 1 of a container (Reap).
type NewBody func(t *driver.Task, dir, reaper string) (Body, error)
