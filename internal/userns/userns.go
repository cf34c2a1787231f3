package userns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/fault"
)

// Size is how many users, and groups, a namespace has.
const Size = 1 << 16

// The users of the node that are given to namespaces. systemd, subordinate users and people's accounts
// leave these alone.
const (
	lowest  = 0x70000000
	spaces  = 4000
	nsFile  = "user"
	idsFile = "first"
)

// Users are those of a namespace.
type Users struct {
	Path  string `json:"path"`  // a file that is the namespace
	First uint32 `json:"first"` // the user, and group, of the node who is 0 there
}

// nobody is who everybody else is within a namespace.
const nobody = 65534

// Inside is who a user of the node is in the namespace; of a nil one the same.
func (u *Users) Inside(id int) int {
	switch {
	case u == nil:
		return id
	case id < int(u.First) || id >= int(u.First)+Size:
		return nobody
	}
	return id - int(u.First)
}

// Outside is who a user of the namespace is on the node.
func (u *Users) Outside(id int) (int, error) {
	switch {
	case u == nil:
		return id, nil
	case id < 0 || id >= Size:
		return 0, fault.New(fault.Invalid, "there is no user %d in a user namespace, which has %d", id, Size)
	}
	return int(u.First) + id, nil
}

// Pool keeps the namespaces of instances.
type Pool struct {
	dir  string
	mu   sync.Mutex
	next uint32 // number of the range that is tried first
}

// NewPool keeps them below dir, which a restart of the host may wipe.
func NewPool(dir string) *Pool { return &Pool{dir: dir} }

// Make gives an instance users of its own, and a network namespace that belongs to them, bound to the
// file net. Those that it had before are let go of.
func (p *Pool) Make(instance, net string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.release(instance); err != nil {
		return err
	}
	first, err := p.free()
	if err != nil {
		return err
	}
	dir := filepath.Join(p.dir, instance)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fmt.Errorf("make room for a user namespace: %w", err)
	}
	err = os.WriteFile(filepath.Join(dir, idsFile), []byte(strconv.FormatUint(uint64(first), 10)), 0o600)
	if err == nil {
		err = begin(first, unix.CLONE_NEWNET, func(pid int) error {
			return errors.Join(bind(pid, "user", filepath.Join(dir, nsFile)), bind(pid, "net", net))
		})
	}
	if err != nil {
		return errors.Join(fmt.Errorf("make a user namespace: %w", err), p.release(instance))
	}
	return nil
}

// Get returns the users that an instance has.
func (p *Pool) Get(instance string) (*Users, error) {
	path := filepath.Join(p.dir, instance, nsFile)
	first, err := p.firstOf(instance)
	var st unix.Statfs_t
	if err == nil {
		err = unix.Statfs(path, &st)
	}
	if err != nil || st.Type != unix.NSFS_MAGIC {
		return nil, fault.New(fault.Unavailable, "the user namespace of instance %s is not there any more", instance)
	}
	return &Users{Path: path, First: first}, nil
}

// Held are the instances that have users.
func (p *Pool) Held() ([]string, error) {
	entries, err := os.ReadDir(p.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out, err
}

// Release lets go of an instance's users; it is idempotent.
func (p *Pool) Release(instance string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.release(instance)
}

func (p *Pool) release(instance string) error {
	dir := filepath.Join(p.dir, instance)
	if err := unix.Unmount(filepath.Join(dir, nsFile), unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("let go of a user namespace: %w", err)
	}
	return os.RemoveAll(dir)
}

func (p *Pool) firstOf(instance string) (uint32, error) {
	text, err := os.ReadFile(filepath.Join(p.dir, instance, idsFile))
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	return uint32(n), err
}

// free finds a range that no instance has.
func (p *Pool) free() (uint32, error) {
	entries, err := os.ReadDir(p.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, err
	}
	taken := map[uint32]bool{}
	for _, e := range entries {
		if first, err := p.firstOf(e.Name()); err == nil { // otherwise one that was never made
			taken[first] = true
		}
	}
	for i := range uint32(spaces) {
		number := (p.next + i) % spaces
		if first := lowest + number*Size; !taken[first] {
			p.next = number + 1
			return first, nil
		}
	}
	return 0, fault.New(fault.Exhausted, "all %d ranges of users that this node has for instances are taken", spaces)
}

// begin makes a user namespace, and others that belong to it, and calls use with a process that has them
// and never runs.
func begin(first uint32, others uintptr, use func(pid int) error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the tracer is this thread, which ends with the function
		mapping := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(first), Size: Size}}
		p, err := os.StartProcess("/proc/self/exe", []string{"user-namespace"}, &os.ProcAttr{Env: []string{}, Sys: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWUSER | others, UidMappings: mapping, GidMappings: mapping, GidMappingsEnableSetgroups: true,
			Ptrace: true, Pdeathsig: unix.SIGKILL, // it stops before its first instruction
		}})
		if err != nil {
			done <- err
			return
		}
		err = use(p.Pid)
		err = errors.Join(err, p.Kill())
		_, werr := p.Wait()
		done <- errors.Join(err, werr)
	}()
	return <-done
}

// bind keeps a namespace of a process in a file.
func bind(pid int, kind, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o400)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(fmt.Sprintf("/proc/%d/ns/%s", pid, kind), path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind the %s namespace to %s: %w", kind, path, err)
	}
	return nil
}
