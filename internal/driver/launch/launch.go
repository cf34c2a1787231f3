// Package launch starts a process by a list of system calls that it makes between its birth and the
// program it executes.
//
// A container's first process has some hundred things to do before it becomes what it is for: mounts,
// a new root, limits, identity. Doing that in Go takes a program that is executed and set up for it,
// which is most of what such a start costs. Here the list is written beforehand, and gone through in C,
// in the memory of the process that has written it: the new one is born with vfork(2)'s rules, so that
// neither is a page copied, nor a program loaded but its own.
//
// What may be in a list is decided by who writes it; this package knows nothing of containers.
package launch

// #include "launch.h"
// #include "watch.h"
import "C"

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Program is a list of steps, and the data that they refer to. The zero value is empty.
type Program struct {
	steps []C.struct_step
	names []string
	data  []byte
}

// A Result is what a step returned, as an argument of a later one.
type Result int

// A Step may be told what to do with errors.
type Step struct {
	p *Program
	i int
}

// Call adds a system call. An argument is an integer, a Result, a string or the bytes of a structure, of which the
// kernel gets the address, or nil, which is 0. The name tells in errors what was tried.
func (p *Program) Call(name string, number uintptr, args ...any) Step {
	return p.add(name, int64(number), args...)
}

func (p *Program) add(name string, call int64, args ...any) Step {
	if p.steps == nil {
		p.steps, p.names = make([]C.struct_step, 0, 320), make([]string, 0, 320)
	}
	s := C.struct_step{call: C.int64_t(call)}
	for i, a := range args {
		switch a := a.(type) {
		case nil:
		case int:
			s.arg[i] = C.int64_t(a)
		case int64:
			s.arg[i] = C.int64_t(a)
		case uint32:
			s.arg[i] = C.int64_t(a)
		case uint64:
			s.arg[i] = C.int64_t(a)
		case uintptr:
			s.arg[i] = C.int64_t(a)
		case Result:
			s.arg[i], s.kind[i] = C.int64_t(a), C.RESULT
		case string:
			s.arg[i], s.kind[i] = C.int64_t(p.put(append([]byte(a), 0))), C.ADDRESS
		case []byte:
			s.arg[i], s.kind[i] = C.int64_t(p.put(a)), C.ADDRESS
		default:
			panic(fmt.Sprintf("launch: an argument of %s is a %T", name, a))
		}
	}
	p.steps, p.names = append(p.steps, s), append(p.names, name)
	return Step{p, len(p.steps) - 1}
}

// put keeps data for the kernel, where structures may begin.
func (p *Program) put(data []byte) int {
	if p.data == nil {
		p.data = make([]byte, 0, 16<<10) // of a container
	}
	for len(p.data)%8 != 0 {
		p.data = append(p.data, 0)
	}
	at := len(p.data)
	p.data = append(p.data, data...)
	return at
}

// list keeps strings, and their offsets as the C side expects them.
func (p *Program) list(all []string) []byte {
	var offsets []byte
	for _, s := range all {
		offsets = binary.NativeEndian.AppendUint64(offsets, uint64(p.put(append([]byte(s), 0))))
	}
	return binary.NativeEndian.AppendUint64(offsets, ^uint64(0))
}

// Allow lets the program go on after these errors, of which there may be four.
func (s Step) Allow(errors ...unix.Errno) Step {
	for i, e := range errors {
		s.p.steps[s.i].allowed[i] = C.int32_t(e)
	}
	return s
}

// Skip leaves out steps that follow: so many if this one failed with an allowed error, so many if it did not.
func (s Step) Skip(failed, done int) Step {
	s.p.steps[s.i].skip_failed, s.p.steps[s.i].skip_done = C.int32_t(failed), C.int32_t(done)
	return s
}

// Result is what the step will have returned.
func (s Step) Result() Result { return Result(s.i) }

// Target says what OpenTarget makes and takes.
type Target int64

const (
	Directory Target = 0              // made where there is nothing
	File      Target = C.TARGET_FILE  // an empty file is made where there is nothing
	Plain     Target = C.TARGET_PLAIN // no symbolic link leads there
	Proc      Target = C.TARGET_PROC  // it may lie in a file system of processes, and is refused with EPERM otherwise
)

// OpenTarget opens what is at a path below the root, as seen with that as the root, and makes what is missing of it.
func (p *Program) OpenTarget(root any, path string, mode int, t Target) Step {
	return p.add("open "+path, C.OPEN_TARGET, root, path, mode, int64(t))
}

// MountOn is mount(2) with an open file as the target. The host's or the container's /proc must be mounted.
func (p *Program) MountOn(name string, target Result, source, kind string, flags int, data string) Step {
	var d any
	if data != "" {
		d = data
	}
	return p.add(name, C.MOUNT_ON, target, source, kind, flags, d)
}

// Mask hides what is at a path, if anything is: a file behind the open null device, a directory behind an empty one.
func (p *Program) Mask(path string, null Result) Step { return p.add("hide "+path, C.MASK, path, null) }

// MakeReadOnly makes a part of a tree read-only, if it is there.
func (p *Program) MakeReadOnly(path string) Step {
	return p.add("make "+path+" read-only", C.MAKE_READ_ONLY, path)
}

// CheckNull fails with ENODEV where an open file is not the null device.
func (p *Program) CheckNull(fd Result) Step {
	return p.add("look whether /dev/null is that", C.CHECK_NULL, fd)
}

// OwnStdio gives the standard files to a user, but the null device.
func (p *Program) OwnStdio(uid int) Step { return p.add("own the standard files", C.OWN_STDIO, uid) }

// CheckDirectory fails with EXDEV where the working directory is outside of the root.
func (p *Program) CheckDirectory() Step {
	return p.add("look whether the working directory is in the container", C.CHECK_DIRECTORY)
}

// LoadFilter loads a seccomp filter.
func (p *Program) LoadFilter(flags uint32, program []byte) Step {
	return p.add("load the seccomp filter", C.LOAD_FILTER, flags, program, len(program)/8)
}

// ResetSignals blocks and handles none any more. Until then all are blocked.
func (p *Program) ResetSignals() Step { return p.add("have no signals blocked", C.RESET_SIGNALS) }

// Failed fails as an earlier step has.
func (p *Program) Failed(earlier Result) Step {
	return p.add(p.names[earlier], C.FAILED, earlier)
}

// Execute ends the program. Where there are several paths, the first that can be executed is.
func (p *Program) Execute(paths, args, env []string) {
	argv, envp := p.list(args), p.list(env)
	p.add("exec", C.EXECUTE, strings.Join(paths, "\x00")+"\x00", argv, envp)
}

// Error tells which step failed.
type Error struct {
	Step  string
	Errno syscall.Errno
	// Exec says that everything was ready, and the program could not be executed.
	Exec bool
}

func (e *Error) Error() string { return e.Step + ": " + e.Errno.Error() }

// Unwrap returns the system's error.
func (e *Error) Unwrap() error { return e.Errno }

// Run starts a process by the program, in new namespaces where flags has such of clone(2), and returns once it has
// executed what it is for, with its ID. The calling thread waits meanwhile, others go on. When the process has failed it
// was waited for, and the error is an *Error. A program can be run once.
func (p *Program) Run(flags uintptr) (pid int, err error) { return p.run(flags, -1) }

// RunAmong is Run in the process namespace of the process that a pidfd is of, for which it takes Linux 5.8.
func (p *Program) RunAmong(pidfd int) (pid int, err error) { return p.run(0, pidfd) }

func (p *Program) run(flags uintptr, ns int) (pid int, err error) {
	pinned := C.struct_program{count: C.int64_t(len(p.steps))}
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&p.steps[0])
	pin.Pin(&p.data[0])
	pinned.steps, pinned.data = &p.steps[0], (*C.char)(unsafe.Pointer(&p.data[0]))
	pid = int(C.tutti_launch(&pinned, C.int64_t(flags), C.int64_t(ns)))
	if pid < 0 {
		return 0, p.Failure(-1, syscall.Errno(-pid))
	}
	if pinned.error == 0 {
		return pid, nil
	}
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); err != unix.EINTR {
			break
		}
	}
	return 0, p.Failure(int(pinned.failed), syscall.Errno(pinned.error))
}

// Failure is the error of a step, by its number; below zero: of the birth of the process.
func (p *Program) Failure(step int, errno syscall.Errno) *Error {
	switch {
	case step < 0:
		return &Error{Step: "clone", Errno: errno}
	case step < len(p.names):
		return &Error{Step: p.names[step], Errno: errno, Exec: p.steps[step].call == C.EXECUTE}
	}
	return &Error{Step: "end", Errno: errno}
}

// A Watch is what is done with a process that was begun by a program that was handed over: until more is asked for, its
// output is kept, who asks for its end waits, and the end is recorded.
type Watch struct {
	// Record is a file that tells how the process is, in JSON. Running and Ended are its beginning: while it runs what is before its ID,
	// and when it has ended what is before the fields started, finished, exitCode and oom.
	Record         string
	Running, Ended string

	Log     string // a file that the output is appended to
	LogRoom int64  // the bytes that it may hold; below zero: nothing is kept

	// Socket is where requests are taken: Wait to be told Done at the end, Kill to end the process and be told the same,
	// and what begins with Signal and ends with a number of CBOR for a signal.
	Socket                   string
	Wait, Kill, Signal, Done []byte

	Groups []string // directories of cgroups, removed at the end
	OOM    string   // a file that counts processes killed for want of memory as oom_kill; "" for none
}

// Files of a process that runs a program which was handed to it.
const (
	HandedFile = C.HANDED_FILE            // what Hand made
	OutputFile = C.OUTPUT_ENDS + C.STDOUT // what its own process prints to
	ErrorsFile = C.OUTPUT_ENDS + C.STDERR
)

// Hand writes the program down for another process of this program's kind. That is started with "begin" as its last argument,
// and with these files: 3 to be told "ok", or "step", its number and an errno where that fails, when the process ends; HandedFile;
// then ours of the pipes for output and errors, and those that the process writes to. It runs the program before anything of Go's,
// watches what comes of it, and goes on when there is more to do; see Begun.
func (p *Program) Hand(flags uintptr, w Watch) []byte {
	text := func(s string) C.int64_t { return C.int64_t(p.put(append([]byte(s), 0))) }
	raw := func(b []byte) (at, size C.int64_t) { return C.int64_t(p.put(b)), C.int64_t(len(b)) }
	h := C.struct_handed{mark: C.HANDED_MARK, count: C.int64_t(len(p.steps)), flags: C.int64_t(flags), log_room: C.int64_t(w.LogRoom)}
	h.lasting = text("")
	h.running, h.ended = text(w.Running), text(w.Ended)
	h.temporary, h.record, h.log, h.socket = text(w.Record+".new"), text(w.Record), text(w.Log), text(w.Socket)
	h.groups, h.oom = text(strings.Join(append(w.Groups, ""), "\x00")), text(w.OOM)
	h.wait, h.wait_size = raw(w.Wait)
	h.kill, h.kill_size = raw(w.Kill)
	h.signal, h.signal_size = raw(w.Signal)
	h.done, h.done_size = raw(w.Done)
	var out []byte
	out = append(out, unsafe.Slice((*byte)(unsafe.Pointer(&h)), unsafe.Sizeof(h))...)
	out = append(out, unsafe.Slice((*byte)(unsafe.Pointer(&p.steps[0])), uintptr(len(p.steps))*unsafe.Sizeof(p.steps[0]))...)
	return append(out, p.data...)
}

// Begun is a process that this one has begun by a program that was handed to it.
type Begun struct {
	PID int // 0: there is none
	At  time.Time
	// Watched says that it was watched until now, that 3 was told "ok", and that the following is known.
	Watched  bool
	Ended    *syscall.WaitStatus // nil: it was not waited for yet
	Listener int                 // the descriptor of the socket for requests
	Waiting  []int               // connections that are to be told of the end
	Asking   []int               // connections of which nothing was read yet
	Outputs  [2]Output           // its output and its errors
	// Early is what it has printed in its first moments, nil when it was too much, or is long ago.
	Early []Piece
}

// Output is how far the output of a process was kept.
type Output struct {
	FD     int    // -1: nothing more will come
	Unkept []byte // was read, and is in no file yet
}

// Piece is something that a process has printed.
type Piece struct {
	Errors bool // rather than output
	Text   []byte
}

// TakeOver returns what this process has begun before Go began in it.
func TakeOver() Begun {
	w := &C.tutti_watched
	b := Begun{PID: int(w.pid), At: time.Unix(int64(w.began.tv_sec), int64(w.began.tv_nsec)), Watched: w.on != 0}
	if !b.Watched {
		for n := range b.Outputs {
			b.Outputs[n].FD = C.OUTPUT_FILES + n
		}
		return b
	}
	if w.ended != 0 {
		status := syscall.WaitStatus(w.status)
		b.Ended = &status
	}
	b.Listener = int(w.listener)
	for _, c := range w.connection[:w.connections] {
		if c.waits != 0 {
			b.Waiting = append(b.Waiting, int(c.fd))
		} else {
			b.Asking = append(b.Asking, int(c.fd))
		}
	}
	for n := range b.Outputs {
		s := &w.stream[n]
		b.Outputs[n] = Output{FD: int(s.fd), Unkept: C.GoBytes(unsafe.Pointer(&s.unkept), C.int(s.size))}
	}
	if w.pieces >= 0 {
		early := C.GoBytes(unsafe.Pointer(&w.early), C.int(w.early_size))
		b.Early = []Piece{}
		for _, p := range w.piece[:w.pieces] {
			b.Early = append(b.Early, Piece{Errors: p.stream == C.STDERR, Text: early[:p.size]})
			early = early[p.size:]
		}
	}
	return b
}

// FirstLimit is how many files this process might have open when it began: Go raises that, and what it starts
// is to have it as it was.
func FirstLimit() unix.Rlimit {
	var soft, hard C.uint64_t
	C.tutti_first_limit(&soft, &hard)
	return unix.Rlimit{Cur: uint64(soft), Max: uint64(hard)}
}
