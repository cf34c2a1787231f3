package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/supervisor"
	"github.com/tutti-run/tutti/internal/fault"
)

// step is what a process is to become.
type step struct {
	Args            []string
	Env             []string
	Dir             string
	UID, GID        int
	Groups          []int
	Limits          []limit
	Umask           *uint32
	OOMScoreAdjust  int
	NoNewPrivileges bool
	First           bool   // of its task
	NetNS           string // path; "" is the host's
	MountNS         string // path, to join; "" is the one that the process is in
	Mounts          []driver.Mount
	Sandbox         string
}

type limit struct {
	Which int
	Value unix.Rlimit
}

// stepSocket is the descriptor of the socket to the supervisor.
const stepSocket = 3

// stepDone is said when all that can fail has been done, save for the last system call. An error
// of that one follows it.
const stepDone = "ok"

// beStep waits to be told what to be, and becomes it.
func beStep() int {
	runtime.LockOSThread() // namespaces are a thread's, and the one that executes the program counts
	// Nothing but the standard files may reach the program.
	if err := unix.CloseRange(stepSocket, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		fmt.Fprintln(os.Stderr, "close the supervisor's files:", err)
		return 1
	}
	socket := os.NewFile(stepSocket, "step")
	var s step
	if err := json.NewDecoder(socket).Decode(&s); err != nil {
		return 1 // the supervisor gave up
	}
	err := s.become(socket) // which returns only when it failed
	fmt.Fprintf(socket, "%s\n%s", fault.KindOf(err), err)
	return 1
}

func (s *step) become(socket *os.File) error {
	if err := s.enter(); err != nil {
		return err
	}
	// Always, as the supervisor's own is not what a task should have.
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(s.OOMScoreAdjust)), 0); err != nil {
		return fmt.Errorf("set the OOM score: %w", err)
	}
	for _, l := range s.Limits {
		if err := unix.Setrlimit(l.Which, &l.Value); err != nil {
			return fmt.Errorf("set limit %d: %w", l.Which, err)
		}
	}
	if s.Umask != nil {
		unix.Umask(int(*s.Umask))
	}
	// Tried before the user is changed: a sandbox may lie where that user cannot pass.
	moved := unix.Chdir(s.Dir)
	if err := syscall.Setgroups(s.Groups); err != nil {
		return fmt.Errorf("set the groups: %w", err)
	}
	if err := syscall.Setgid(s.GID); err != nil {
		return fmt.Errorf("set the group: %w", err)
	}
	if err := syscall.Setuid(s.UID); err != nil {
		return fmt.Errorf("set the user: %w", err)
	}
	if s.NoNewPrivileges {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("give up new privileges: %w", err)
		}
	}
	if errors.Is(moved, unix.EACCES) {
		moved = unix.Chdir(s.Dir) // on a network's file system the host's root may be nobody
	}
	if moved != nil {
		return fault.New(fault.Invalid, "working directory %s: %w", s.Dir, moved)
	}
	path, err := lookPath(s.Args[0], s.Env)
	if err != nil {
		return err
	}
	if s.First { // changing the user would clear it
		if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(supervisor.OrphanSignal), 0, 0, 0); err != nil {
			return fmt.Errorf("be stopped when the supervisor is killed: %w", err)
		}
	}
	if _, err := socket.WriteString(stepDone); err != nil {
		return err
	}
	err = syscall.Exec(path, s.Args, s.Env)
	switch {
	case errors.Is(err, unix.ENOENT): // its interpreter
		return fault.New(fault.NotFound, "%q needs an interpreter that is not on this host", s.Args[0])
	case errors.Is(err, unix.ENOEXEC):
		return fault.New(fault.Invalid, "%q is no program for this host", s.Args[0])
	}
	return fmt.Errorf("execute %q: %w", s.Args[0], err)
}

// enter joins namespaces and makes the task's mounts.
func (s *step) enter() error {
	var network *os.File
	if s.NetNS != "" {
		var err error
		if network, err = os.Open(s.NetNS); err != nil {
			return fmt.Errorf("open the task's network: %w", err)
		}
		defer network.Close()
	}
	if s.MountNS != "" {
		f, err := os.Open(s.MountNS)
		if err != nil {
			return fmt.Errorf("open the task's mounts: %w", err)
		}
		defer f.Close()
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("part from the other threads: %w", err)
		}
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("join the task's mounts: %w", err)
		}
	}
	if network != nil {
		if err := unix.Setns(int(network.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("join the task's network: %w", err)
		}
	}
	if len(s.Mounts) == 0 {
		return nil
	}
	// What is mounted here must not be seen outside; what the host mounts later is seen here.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("part from the host's mounts: %w", err)
	}
	for i := range s.Mounts {
		if err := s.mount(&s.Mounts[i]); err != nil {
			return err
		}
	}
	return nil
}

// secretsDir is where secrets and configs are found unless a task says otherwise.
const secretsDir = "/run/secrets"

// mount makes one of the task's mounts at a place that the host has, or that can be made for it:
// below the sandbox, or, in memory, below /run/secrets.
func (s *step) mount(m *driver.Mount) error {
	target := filepath.Clean(m.Target)
	if strings.HasPrefix(target, secretsDir+"/") {
		if err := mountSecretsDir(); err != nil {
			return err
		}
	}
	isDir := true
	if m.Type == "bind" {
		st, err := os.Stat(m.Source)
		if err != nil {
			return fmt.Errorf("source of mount %s: %w", target, err)
		}
		isDir = st.IsDir()
	}
	if err := s.place(target, isDir); err != nil {
		return err
	}
	// By descriptor: nobody can exchange the target for a link meanwhile.
	at, err := unix.Openat2(unix.AT_FDCWD, target, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return fmt.Errorf("open mount target %s: %w", target, err)
	}
	defer unix.Close(at)
	to := "/proc/self/fd/" + strconv.Itoa(at)
	if m.Type == "tmpfs" {
		options := "mode=1777"
		if m.Mode != 0 {
			options = fmt.Sprintf("mode=%o", m.Mode)
		}
		if m.SizeBytes > 0 {
			options += fmt.Sprintf(",size=%d", m.SizeBytes)
		}
		flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
		if m.ReadOnly {
			flags |= unix.MS_RDONLY
		}
		if err := unix.Mount("tmpfs", to, "tmpfs", flags, options); err != nil {
			return fmt.Errorf("mount memory at %s: %w", target, err)
		}
		return nil
	}
	if err := unix.Mount(m.Source, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	if m.ReadOnly {
		if err := unix.MountSetattr(unix.AT_FDCWD, target, unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
			return fmt.Errorf("make mount %s read-only: %w", target, err)
		}
	}
	return nil
}

// place makes sure that a mount has something to be mounted on.
func (s *step) place(target string, isDir bool) error {
	st, err := os.Stat(target)
	if err == nil {
		if st.IsDir() != isDir {
			return fault.New(fault.Invalid, "mount target %s: one of it and its source is a directory, the other is not", target)
		}
		return nil
	}
	if !os.IsNotExist(err) {
		return fmt.Errorf("look at mount target %s: %w", target, err)
	}
	base := secretsDir
	if s.Sandbox != "" && strings.HasPrefix(target, filepath.Clean(s.Sandbox)+"/") {
		base = filepath.Clean(s.Sandbox)
	} else if !strings.HasPrefix(target, secretsDir+"/") {
		return fault.New(fault.Invalid, "mount target %s does not exist on this host; a process sees the host's own files, and only a target below its "+
			"working directory is made", target)
	}
	root, err := os.OpenRoot(base) // a link must not lead out of it
	if err != nil {
		return fmt.Errorf("make mount target %s: %w", target, err)
	}
	defer root.Close()
	rel := strings.TrimPrefix(target, base+"/")
	dir := rel
	if !isDir {
		dir = filepath.Dir(rel)
	}
	if err := root.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make mount target %s: %w", target, err)
	}
	if isDir {
		return nil
	}
	f, err := root.OpenFile(rel, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("make mount target %s: %w", target, err)
	}
	return f.Close()
}

// mountSecretsDir puts memory at /run/secrets, where only this task sees it; on the host an empty
// directory is left there.
func mountSecretsDir() error {
	if err := os.MkdirAll(secretsDir, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", secretsDir, err)
	}
	var st unix.Statfs_t
	own, _ := os.Stat(filepath.Join(secretsDir, marker))
	if own != nil && unix.Statfs(secretsDir, &st) == nil && st.Type == unix.TMPFS_MAGIC {
		return nil // mounted for an earlier one
	}
	if err := unix.Mount("tmpfs", secretsDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755"); err != nil {
		return fmt.Errorf("mount memory at %s: %w", secretsDir, err)
	}
	return os.WriteFile(filepath.Join(secretsDir, marker), nil, 0o444)
}

// marker tells the task's own /run/secrets from another that the host may have.
const marker = ".tutti"
