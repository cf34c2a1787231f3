package oci

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/atomicfile"
)

// Compiling a seccomp profile takes libseccomp 30 ms of processor time, more than all else of a
// container's start, and libcontainer does it in each container anew. Here it is done once for
// each profile: a process of ours lets libcontainer load it, the kernel is asked for the program
// that was loaded, and the program is kept, under what it was made of, the kernel included: a host that comes back
// has no time for this, above all when it is to take over what others ran.
//
// Libcontainer cannot be handed a finished program, so a container's own first steps load it: a
// second thread of the init process, which keeps the capabilities that the first one drops, waits
// until that one has done all but execute the task, and then loads the program for both.

// filter is a compiled profile as seccomp(2) takes it.
type filter struct {
	flags   uint32
	program []byte // struct sock_filter, one after the other
}

const instructionBytes = 8

// filterPath is where the filter of a profile is kept that the key stands for.
func filterPath(dir string, key []byte) string {
	sum := sha256.Sum256(append(key, compiler()...))
	return filepath.Join(dir, "seccomp-"+hex.EncodeToString(sum[:16]))
}

// keepFilter returns the filter that is kept under a path, nil when this kernel does not give out what it
// loaded: then libcontainer has to do it. The profile is made where it was not compiled before.
func keepFilter(path string, make func() (*configs.Seccomp, error)) (*filter, error) {
	if f, err := readFilter(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	// Many containers may be the first at once; one compiles.
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("compile the seccomp profile: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("compile the seccomp profile: %w", err)
	}
	if f, err := readFilter(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	profile, err := make()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(profile)
	if err != nil {
		return nil, fmt.Errorf("encode the seccomp profile: %w", err)
	}
	program, err := compile(text)
	if err != nil {
		fmt.Fprintln(os.Stderr, "the compiled seccomp profile cannot be read back from the kernel; each container compiles it anew:", err)
	}
	data := binary.NativeEndian.AppendUint32(nil, flagsOf(profile))
	return readBack(path, append(data, program...))
}

func readBack(path string, data []byte) (*filter, error) {
	if err := atomicfile.Write(path, data); err != nil {
		return nil, fmt.Errorf("keep the compiled seccomp profile: %w", err)
	}
	return readFilter(path)
}

// compiler tells versions of what makes profiles and filters apart, and the kernels that they are made for, so that a newer tutti, or one
// on a newer kernel, makes its own.
var compiler = sync.OnceValue(func() (versions string) {
	var kernel unix.Utsname
	if unix.Uname(&kernel) == nil {
		versions = unix.ByteSliceToString(kernel.Release[:]) + " " + unix.ByteSliceToString(kernel.Version[:])
	}
	major, minor, micro := seccomp.Version()
	versions += fmt.Sprintf(" libseccomp %d.%d.%d", major, minor, micro)
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return versions
	}
	for _, d := range info.Deps {
		if d.Path == "github.com/opencontainers/runc" || d.Path == "github.com/moby/profiles/seccomp" {
			versions += " " + d.Version
		}
	}
	return versions
})

func readFilter(path string) (*filter, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	switch {
	case len(data) < 4 || (len(data)-4)%instructionBytes != 0:
		return nil, fmt.Errorf("the compiled seccomp profile %s is damaged: remove it, and it is made again", path)
	case len(data) == 4:
		return nil, nil
	}
	return &filter{flags: binary.NativeEndian.Uint32(data), program: data[4:]}, nil
}

// flagsOf are those of seccomp(2) that libcontainer would pass.
func flagsOf(profile *configs.Seccomp) (flags uint32) {
	for _, f := range profile.Flags {
		switch f {
		case "SECCOMP_FILTER_FLAG_LOG":
			flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case "SECCOMP_FILTER_FLAG_SPEC_ALLOW":
			flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		}
	}
	return flags
}

// compile lets another process load the profile and reads from the kernel what it loaded.
func compile(profile []byte) (program []byte, err error) {
	cmd := exec.Command("/proc/self/exe", compileArg)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	// Whoever traces has to be one thread throughout.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait() // it was killed
	}()
	if _, err := in.Write(append(profile, '\n')); err != nil {
		return nil, err
	}
	var thread int32
	if err := binary.Read(out, binary.NativeEndian, &thread); err != nil {
		return nil, fmt.Errorf("the process that compiles said nothing: %w", err)
	}
	if err := unix.PtraceAttach(int(thread)); err != nil {
		return nil, fmt.Errorf("trace the process that compiles: %w", err)
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(int(thread), &ws, unix.WALL, nil); err != nil {
		return nil, fmt.Errorf("wait for the process that compiles: %w", err)
	}
	defer func() {
		// A thread that ends while it is traced is its tracer's to wait for, and no process ends
		// before its threads have.
		if unix.PtraceDetach(int(thread)) != nil {
			unix.Wait4(int(thread), &ws, unix.WALL, nil) // it was killed meanwhile
		}
	}()
	get := func(to unsafe.Pointer) (int, error) {
		n, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SECCOMP_GET_FILTER, uintptr(thread), 0, uintptr(to), 0, 0)
		if errno != 0 {
			return 0, errno
		}
		return int(n), nil
	}
	n, err := get(nil)
	if err != nil || n == 0 {
		return nil, fmt.Errorf("ask the kernel for the filter of %d instructions: %w", n, err)
	}
	program = make([]byte, n*instructionBytes)
	if _, err := get(unsafe.Pointer(&program[0])); err != nil {
		return nil, fmt.Errorf("ask the kernel for the filter: %w", err)
	}
	return program, nil
}

// beCompiler loads the profile from its standard input and says which thread has it.
func beCompiler() int {
	runtime.LockOSThread()
	var profile configs.Seccomp
	err := json.NewDecoder(os.Stdin).Decode(&profile)
	if err == nil {
		_, err = seccomp.InitSeccomp(&profile)
	}
	if err == nil {
		err = binary.Write(os.Stdout, binary.NativeEndian, int32(unix.Gettid()))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	io.Copy(io.Discard, os.Stdin) // until it is killed, or its parent is gone
	return 0
}

// filterSocket is the descriptor under which a container's init process finds the socket for its
// filter. It is closed before the task is executed.
const filterSocket = 3

// send gives a container's init process its filter and returns when it is in force.
func (f *filter) send(socket *os.File) error {
	message := binary.NativeEndian.AppendUint32(nil, uint32(len(f.program)))
	message = binary.NativeEndian.AppendUint32(message, f.flags)
	if _, err := socket.Write(append(message, f.program...)); err != nil {
		return fmt.Errorf("hand the seccomp filter over: %w", err)
	}
	said, err := io.ReadAll(socket)
	if err != nil {
		return fmt.Errorf("wait for the seccomp filter: %w", err)
	}
	if string(said) != filterLoaded {
		if len(said) == 0 {
			return errors.New("load the seccomp filter: the container's first process ended")
		}
		return fmt.Errorf("load the seccomp filter: %s", bytes.TrimSpace(said))
	}
	return nil
}

const filterLoaded = "loaded"

// awaitFilter is called in a container's init process before anything else. If a filter is to
// come, a thread is set aside that will load it.
func awaitFilter() {
	if os.Getenv("_LIBCONTAINER_INITTYPE") != "standard" {
		return
	}
	for _, e := range os.Environ() {
		name, value, _ := strings.Cut(e, "=")
		if strings.HasPrefix(name, "_LIBCONTAINER_") && name != "_LIBCONTAINER_LOGLEVEL" && value == "3" {
			return // the first descriptor is libcontainer's own: no filter comes
		}
	}
	runtime.LockOSThread() // libcontainer goes on here; the other thread is really another
	aside := make(chan error)
	go func() {
		runtime.LockOSThread()
		// What this thread may do stays when the whole process changes its user.
		aside <- unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0)
		said := filterLoaded
		if err := loadFilter(); err != nil {
			said = err.Error()
		}
		unix.Write(filterSocket, []byte(said)) // if it cannot be said, the supervisor sees the end of file
		unix.Close(filterSocket)
		select {}
	}()
	if err := <-aside; err != nil {
		fmt.Fprintln(os.Stderr, "keep the capabilities of a thread:", err)
		os.Exit(1)
	}
}

func loadFilter() error {
	var header [8]byte
	if err := readFull(header[:]); err != nil {
		return err
	}
	length, flags := binary.NativeEndian.Uint32(header[:4]), binary.NativeEndian.Uint32(header[4:])
	if length == 0 || length%instructionBytes != 0 || length > unix.BPF_MAXINSNS*instructionBytes {
		return fmt.Errorf("a filter of %d bytes was announced", length)
	}
	program := make([]unix.SockFilter, length/instructionBytes)
	if err := readFull(unsafe.Slice((*byte)(unsafe.Pointer(&program[0])), length)); err != nil {
		return err
	}
	if err := regainCapabilities(); err != nil {
		return err
	}
	p := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	r, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(flags|unix.SECCOMP_FILTER_FLAG_TSYNC), uintptr(unsafe.Pointer(&p)))
	runtime.KeepAlive(program)
	if errno != 0 {
		return errno
	}
	if r != 0 {
		return fmt.Errorf("thread %d has another filter", r)
	}
	return nil
}

// regainCapabilities makes those effective again that a change of user left permitted only.
func regainCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	for i := range sets {
		sets[i].Effective = sets[i].Permitted
	}
	return os.NewSyscallError("capset", unix.Capset(&header, &sets[0]))
}

// readFull reads from the socket without Go's poller: nothing of it may be left when the task is
// executed.
func readFull(b []byte) error {
	for len(b) > 0 {
		n, err := unix.Read(filterSocket, b)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return os.NewSyscallError("read", err)
		case n == 0:
			return io.ErrUnexpectedEOF
		default:
			b = b[n:]
		}
	}
	return nil
}
