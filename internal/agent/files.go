package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/users"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/files"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/userns"
	"github.com/tutti-run/tutti/internal/wire"
)

// A task's files are looked at as it sees them: those of a running one in its mount namespace, those of
// one that has ended in a mount namespace that is made for that, of its root file system and its
// mounts. A process of the host has its sandbox.

// rootOf opens the root of a task's files. done frees it.
func (a *Agent) rootOf(ctx context.Context, ref wire.TaskRef) (root *files.Root, t *model.TaskSpec, done func(), err error) {
	w, err := a.worker(ref.Instance)
	if err != nil {
		return nil, nil, nil, err
	}
	w.mu.Lock()
	t, err = w.task(ref.Task)
	p := w.prepared
	w.mu.Unlock()
	if err != nil {
		return nil, nil, nil, err
	}
	if driverName(t) == "process" {
		root, err = files.Open(w.sandbox(t))
		if err != nil {
			return nil, nil, nil, fault.New(fault.Unavailable, "%s has no files yet: %w", w.assignment.Instance.FullName(), err)
		}
		return root, t, func() { root.Close() }, nil
	}
	var theirs *userns.Users
	if p != nil {
		theirs = p.users
	}
	if root, err := runningRoot(ctx, w, t.Name); err != nil || root != nil {
		if root != nil {
			root.Users = theirs
		}
		return root, t, func() { root.Close() }, err
	}
	if p == nil || p.rootfs[t.Name] == "" {
		return nil, nil, nil, fault.New(fault.Unavailable, "%s has no files yet", w.assignment.Instance.FullName())
	}
	root, done, err = assemble(p.rootfs[t.Name], p.mounts[t.Name], theirs)
	return root, t, done, err
}

// runningRoot opens the root of a running task; nil when it does not run.
func runningRoot(ctx context.Context, w *worker, task string) (*files.Root, error) {
	d, id, err := w.latestRun(task)
	if err != nil {
		return nil, nil // not started yet
	}
	runs := func() (int, bool) {
		st, err := d.Status(ctx, id)
		return st.PID, err == nil && st.PID > 0 && (st.State == driver.Running || st.State == driver.Paused)
	}
	pid, ok := runs()
	if !ok {
		return nil, nil
	}
	root, err := files.Open(fmt.Sprintf("/proc/%d/root", pid))
	if again, ok := runs(); err != nil || !ok || again != pid { // it ended, and the number may be another's
		if err == nil {
			root.Close()
		}
		return nil, nil
	}
	return root, nil
}

// assemble mounts what a task that has ended would see, in a mount namespace that a thread holds until
// done is called.
func assemble(rootfs string, mounts []driver.Mount, theirs *userns.Users) (root *files.Root, done func(), err error) {
	type result struct {
		root *files.Root
		err  error
	}
	made, over, gone := make(chan result), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		runtime.LockOSThread() // never unlocked: the thread ends with this function, and the namespace with it
		root, err := assembleHere(rootfs, mounts, theirs)
		if root != nil {
			root.Users = theirs
		}
		made <- result{root, err}
		<-over
		if root != nil {
			root.Close()
		}
	}()
	r := <-made
	if r.err != nil {
		close(over)
		return nil, nil, r.err
	}
	return r.root, func() { close(over); <-gone }, nil
}

func assembleHere(rootfs string, mounts []driver.Mount, theirs *userns.Users) (*files.Root, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return nil, fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("keep mounts to ourselves: %w", err)
	}
	base, err := unix.Open(rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open root file system: %w", err)
	}
	defer unix.Close(base)
	for _, m := range mounts {
		if m.Type != "bind" {
			continue // what was in memory has gone
		}
		at, err := unix.Openat2(base, strings.TrimPrefix(m.Target, "/"), &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
		if errors.Is(err, unix.ENOENT) && theirs == nil && isDir(m.Source) { // it was never run
			at, err = makeDir(base, m.Target)
		}
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("find %s: %w", m.Target, err)
		}
		target := fmt.Sprintf("/proc/thread-self/fd/%d", at)
		if theirs != nil {
			err = theirs.Bind(m.Source, target, true)
		} else {
			err = unix.Mount(m.Source, target, "", unix.MS_BIND|unix.MS_REC, "")
		}
		unix.Close(at)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("mount %s: %w", m.Target, err)
		}
		if err == nil && m.ReadOnly {
			if at, err = unix.Openat2(base, strings.TrimPrefix(m.Target, "/"), &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT}); err == nil {
				err = unix.Mount("", fmt.Sprintf("/proc/thread-self/fd/%d", at), "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
				unix.Close(at)
			}
			if err != nil {
				return nil, fmt.Errorf("mount %s read-only: %w", m.Target, err)
			}
		}
	}
	return files.Open(rootfs)
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// makeDir makes a directory below an open root, and those above it, as a runtime does for what is to be mounted there.
func makeDir(base int, path string) (at int, err error) {
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT}
	above := "."
	for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		parent, err := unix.Openat2(base, above, how)
		if err != nil {
			return -1, err
		}
		err = unix.Mkdirat(parent, name, 0o755)
		unix.Close(parent)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return -1, err
		}
		above += "/" + name
	}
	return unix.Openat2(base, above, how)
}

func (a *Agent) fileStat(ctx context.Context, r wire.FilesRequest) (wire.FileStat, error) {
	root, _, done, err := a.rootOf(ctx, r.TaskRef)
	if err != nil {
		return wire.FileStat{}, err
	}
	defer done()
	st, err := root.Stat(r.Path)
	return wire.FileStat{Name: st.Name, Size: st.Size, Mode: uint32(st.Mode), ModTime: st.ModTime, LinkTarget: st.LinkTarget}, err
}

func (a *Agent) serveReadFiles(ctx context.Context, s *wire.Stream) error {
	var r wire.FilesRequest
	if err := s.Receive(&r); err != nil {
		return err
	}
	out := bufio.NewWriterSize(pieceWriter{s}, 128<<10)
	err := a.readFiles(ctx, r, out)
	if err == nil {
		err = out.Flush()
	}
	return s.Send(wire.Piece{End: wire.EndOf(err)})
}

type pieceWriter struct{ s *wire.Stream }

func (w pieceWriter) Write(p []byte) (int, error) {
	if err := w.s.Send(wire.Piece{Data: p}); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (a *Agent) readFiles(ctx context.Context, r wire.FilesRequest, out io.Writer) error {
	switch r.What {
	case wire.FilesTree:
		root, _, done, err := a.rootOf(ctx, r.TaskRef)
		if err != nil {
			return err
		}
		defer done()
		return root.Pack(ctx, out, r.Path)
	case wire.FilesRoot:
		rootfs, _, err := a.rootfs(r.TaskRef)
		if err != nil {
			return err
		}
		root, err := files.Open(rootfs)
		if err != nil {
			return err
		}
		defer root.Close()
		root.Users = a.usersOf(r.Instance)
		return root.PackAll(ctx, out)
	case wire.FilesLayer:
		_, key, err := a.rootfs(r.TaskRef)
		if err != nil {
			return err
		}
		return a.Images.Changed(ctx, key, func(upper, _ string) error {
			root, err := files.Open(upper)
			if err != nil {
				return err
			}
			defer root.Close()
			return root.PackLayer(ctx, out)
		})
	}
	return fault.New(fault.Unsupported, "this node cannot read %q of a task", r.What)
}

// rootfs is where the root file system of a task is mounted, and its key.
func (a *Agent) rootfs(ref wire.TaskRef) (path, key string, err error) {
	w, err := a.worker(ref.Instance)
	if err != nil {
		return "", "", err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	t, err := w.task(ref.Task)
	if err != nil {
		return "", "", err
	}
	if w.prepared == nil || w.prepared.rootfs[t.Name] == "" {
		return "", "", fault.New(fault.Unavailable, "%s has no root file system of its own", w.assignment.Instance.FullName())
	}
	return w.prepared.rootfs[t.Name], w.id + "." + t.Name, nil
}

// usersOf are those of an instance that are not the node's.
func (a *Agent) usersOf(instance string) *userns.Users {
	w, err := a.worker(instance)
	if err != nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.prepared == nil {
		return nil
	}
	return w.prepared.users
}

func (a *Agent) fileChanges(ctx context.Context, ref wire.TaskRef) ([]wire.FileChange, error) {
	_, key, err := a.rootfs(ref)
	if err != nil {
		return nil, err
	}
	out := []wire.FileChange{}
	err = a.Images.Changed(ctx, key, func(upper, base string) error {
		u, err := files.Open(upper)
		if err != nil {
			return err
		}
		defer u.Close()
		b, err := files.Open(base)
		if err != nil {
			return err
		}
		defer b.Close()
		return u.ChangesSince(ctx, b, func(path string, kind files.Change) {
			out = append(out, wire.FileChange{Path: path, Kind: changeKinds[kind]})
		})
	})
	return withoutOurs(out), err
}

// ours are the places of the root file system at which every task finds something of its node's.
var ours = []string{"/dev", "/proc", "/sys", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}

// withoutOurs leaves those out, and the directories that were changed by nothing else.
func withoutOurs(list []wire.FileChange) []wire.FileChange {
	above, kept := map[string]bool{}, map[string]bool{}
	list = slices.DeleteFunc(list, func(c wire.FileChange) bool {
		if !slices.Contains(ours, c.Path) {
			return false
		}
		for dir := path.Dir(c.Path); dir != "/"; dir = path.Dir(dir) {
			above[dir] = true
		}
		return true
	})
	out := []wire.FileChange{}
	for _, c := range slices.Backward(list) {
		if above[c.Path] && !kept[c.Path] {
			continue
		}
		kept[path.Dir(c.Path)] = true
		out = append(out, c)
	}
	slices.Reverse(out)
	return out
}

var changeKinds = map[files.Change]wire.FileChangeKind{
	files.Added: wire.FileAdded, files.Changed: wire.FileChanged, files.Deleted: wire.FileDeleted,
}

func (a *Agent) serveWriteFiles(ctx context.Context, s *wire.Stream) error {
	var r wire.FilesRequest
	if err := s.Receive(&r); err != nil {
		return err
	}
	return s.Send(wire.Piece{End: wire.EndOf(a.writeFiles(ctx, r, wire.Pieces(s)))})
}

func (a *Agent) writeFiles(ctx context.Context, r wire.FilesRequest, archive io.Reader) error {
	root, t, done, err := a.rootOf(ctx, r.TaskRef)
	if err != nil {
		return err
	}
	defer done()
	o := files.UnpackOptions{KeepKind: r.KeepKind}
	if r.ToUser && t.User != "" {
		rootfs := "/"
		if driverName(t) != "process" {
			if rootfs, _, err = a.rootfs(r.TaskRef); err != nil {
				return err
			}
		}
		u, err := users.Lookup(rootfs, t.User, slices.Clone(t.Groups))
		if err != nil {
			return err
		}
		o.Owner = &files.Owner{UID: int(u.UID), GID: int(u.GID)}
	}
	if t.ReadOnlyRoot {
		if err := writable(root, t, r.Path); err != nil {
			return err
		}
	}
	return root.Unpack(ctx, archive, r.Path, o)
}

// writable refuses to write into a root file system that is to be read only; what is mounted there may
// be written to.
func writable(root *files.Root, t *model.TaskSpec, path string) error {
	at, err := root.Resolve(path)
	if err != nil {
		return err
	}
	for _, m := range t.Mounts {
		if rest, ok := strings.CutPrefix(at, strings.TrimSuffix(m.Target, "/")); ok && (rest == "" || rest[0] == '/') && !m.ReadOnly {
			return nil
		}
	}
	return fault.New(fault.Forbidden, "container rootfs is marked read-only")
}
