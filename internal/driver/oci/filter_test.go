package oci

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/driver"
)

// confinement is what the kernel says of a process.
type confinement struct {
	filters [][]byte
	status  string // the lines about users, capabilities and seccomp
}

func confinementOf(t *testing.T, pid int) (c confinement) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		name, _, _ := strings.Cut(line, ":")
		if strings.HasPrefix(name, "Cap") || name == "Uid" || name == "Gid" || name == "Groups" || strings.HasPrefix(name, "Seccomp") || name == "NoNewPrivs" {
			c.status += line
		}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.PtraceAttach(pid); err != nil {
		t.Fatal(err)
	}
	defer unix.PtraceDetach(pid)
	var ws unix.WaitStatus
	if _, err := unix.Wait4(pid, &ws, unix.WALL, nil); err != nil {
		t.Fatal(err)
	}
	for i := 0; ; i++ {
		n, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SECCOMP_GET_FILTER, uintptr(pid), uintptr(i), 0, 0, 0)
		if errno == unix.ENOENT {
			return c
		}
		if errno != 0 {
			t.Skipf("this kernel does not tell what filters a process has: %v", errno)
		}
		program := make([]byte, n*instructionBytes)
		if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SECCOMP_GET_FILTER, uintptr(pid), uintptr(i), uintptr(unsafe.Pointer(&program[0])), 0, 0); errno != 0 {
			t.Fatal(errno)
		}
		c.filters = append(c.filters, program)
	}
}

// decide runs a filter on a system call all of whose arguments have one value.
func decide(t *testing.T, vm *bpf.VM, arch, number, argument uint32) int {
	t.Helper()
	var data [64]byte // struct seccomp_data; this machine reads big-endian words
	binary.BigEndian.PutUint32(data[0:], number)
	binary.BigEndian.PutUint32(data[4:], arch)
	for i := range 6 {
		binary.BigEndian.PutUint32(data[16+8*i:], argument)
	}
	action, err := vm.Run(data[:])
	if err != nil {
		t.Fatal(err)
	}
	return action
}

func machine(t *testing.T, program []byte) *bpf.VM {
	t.Helper()
	var instructions []bpf.Instruction
	for at := 0; at < len(program); at += instructionBytes {
		i := program[at:]
		instructions = append(instructions, bpf.RawInstruction{
			Op: binary.NativeEndian.Uint16(i), Jt: i[2], Jf: i[3], K: binary.NativeEndian.Uint32(i[4:]),
		}.Disassemble())
	}
	vm, err := bpf.NewVM(instructions)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

// decisions of a filter for all system calls there are, and more, by each of the ways to call
// them. Programs may differ and decide alike: the order in which libcontainer tells architectures
// apart changes from one time to the next.
func decisions(t *testing.T, program []byte) (out []int) {
	t.Helper()
	vm := machine(t, program)
	const x32 = 0x4000_0000
	for _, arch := range []uint32{unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_AARCH64, unix.AUDIT_ARCH_ARM} {
		for number := range uint32(600) {
			for _, argument := range []uint32{0, 1, 8, 16, 0x20000, unix.CLONE_NEWUSER, 0xffffffff} {
				out = append(out, decide(t, vm, arch, number, argument), decide(t, vm, arch, number|x32, argument))
			}
		}
	}
	return out
}

// A filter that was compiled once confines as libcontainer's own, whatever the task may do besides.
func TestAKeptFilterIsLibcontainersOwn(t *testing.T) {
	e := setUp(t)
	changes := []func(*driver.Task){
		func(*driver.Task) {},
		func(task *driver.Task) { task.User, task.Groups = "app", []string{"7"} },
		func(task *driver.Task) { task.SecurityOpts = []string{"no-new-privileges"} },
		func(task *driver.Task) { task.User, task.SecurityOpts = "app", []string{"no-new-privileges"} },
		func(task *driver.Task) { task.CapAdd = []string{"SYS_ADMIN"} },
		func(task *driver.Task) { task.CapDrop = []string{"ALL"} },
	}
	look := func(run int) (out []confinement) {
		for i, change := range changes {
			id := fmt.Sprintf("i.%d.%d", i, run)
			e.start(id, change, "sleep")
			e.waitFor(id, "ready")
			st, err := e.d.Status(e.ctx, id)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, confinementOf(t, st.PID))
			if err := e.d.Remove(e.ctx, id); err != nil {
				t.Fatal(err)
			}
		}
		return out
	}
	compiled := look(1)
	kept, err := filepath.Glob(filepath.Join(e.cfg.FilterDir, "seccomp-*"))
	if err != nil || len(kept) == 0 {
		t.Fatalf("nothing was kept: %v, %v", kept, err)
	}
	before := map[string]time.Time{}
	for _, path := range kept {
		if st, err := os.Stat(path); err == nil {
			before[path] = st.ModTime()
		}
	}
	again := look(2)
	for path, at := range before {
		if st, err := os.Stat(path); err != nil || !st.ModTime().Equal(at) {
			t.Errorf("%s was made anew: %v", filepath.Base(path), err)
		}
	}
	for _, path := range kept { // as on a kernel that tells nothing
		if filepath.Ext(path) == "" {
			writeFile(t, path, "\x00\x00\x00\x00", 0o600)
		}
	}
	own := look(3)
	for i := range changes {
		if len(own[i].filters) != 1 {
			t.Fatalf("libcontainer loaded %d filters", len(own[i].filters))
		}
		for run, got := range [][]confinement{compiled, again} {
			if len(got[i].filters) != 1 || !slices.Equal(decisions(t, got[i].filters[0]), decisions(t, own[i].filters[0])) {
				t.Errorf("task %d, run %d: the filter decides otherwise than libcontainer's", i, run+1)
			}
			if got[i].status != own[i].status {
				t.Errorf("task %d, run %d is\n%s\nby libcontainer it would be\n%s", i, run+1, got[i].status, own[i].status)
			}
		}
	}
	if slices.Equal(decisions(t, own[0].filters[0]), decisions(t, own[4].filters[0])) {
		t.Error("a capability changes nothing in what is decided")
	}
}

// What the first steps in a container worked with must not reach the task.
func TestATaskHasNoDescriptorsButItsOwn(t *testing.T) {
	e := setUp(t)
	e.start("i.fds.1", nil, "descriptors")
	e.wait("i.fds.1")
	if out := e.logs("i.fds.1", all); out != "0 1 2\n" {
		t.Fatalf("the task has the descriptors %q", out)
	}
}

func TestADamagedFilterIsNotLoaded(t *testing.T) {
	e := setUp(t)
	e.start("i.a.1", nil, "exit", "0")
	e.wait("i.a.1")
	kept, err := filepath.Glob(filepath.Join(e.cfg.FilterDir, "seccomp-*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ content, want string }{{"\x00\x00\x00\x00short", "damaged"}, {"\x00\x00\x00\x00notafilt", "invalid argument"}} {
		for _, path := range kept {
			if filepath.Ext(path) == "" {
				writeFile(t, path, c.content, 0o600)
			}
		}
		task := e.task()
		task.ID, task.Args = "i.b.1", []string{"/prog", "exit", "0"}
		err := e.d.Start(e.ctx, task)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("start gave %v, want %q in it", err, c.want)
		}
		if err := e.d.Remove(e.ctx, "i.b.1"); err != nil {
			t.Error(err)
		}
	}
}
