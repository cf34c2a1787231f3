// Package volume gives volumes their place on a host: a directory per local volume, filled from the
// image on first use.
package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// Volumes owns a directory with one directory per volume: "data", which tasks see, and a file that
// tells of its first filling from an image: "filling" while it is under way, or was cut short, and
// "filled" when it is done or was found unnecessary. It is safe for concurrent use.
type Volumes struct {
	root string

	mu    sync.Mutex
	locks map[string]*sync.Mutex // by path of the data; held while it is filled
}

// New returns the volumes below root.
func New(root string) (*Volumes, error) {
	if err := os.MkdirAll(root, 0o711); err != nil {
		return nil, fmt.Errorf("make the volumes' directory: %w", err)
	}
	return &Volumes{root: root, locks: map[string]*sync.Mutex{}}, nil
}

func (v *Volumes) dir(id string) (string, error) {
	if id == "" || strings.ContainsAny(id, "/\x00") || id == "." || id == ".." {
		return "", fault.New(fault.Invalid, "%q is not the ID of a volume", id)
	}
	return filepath.Join(v.root, id), nil
}

// InMemory is the driver of volumes that are kept in memory; their option "size" bounds them.
const InMemory = "memory"

// Driver has what a volume holds at a directory of this host.
type Driver interface {
	// Publish makes it so, unless it is; dir exists and is empty at first.
	Publish(ctx context.Context, v *model.Volume, dir string) error
	// Unpublish ends it. What is kept elsewhere stays as it is; what is kept at dir may be removed afterwards.
	Unpublish(ctx context.Context, dir string) error
}

func (v *Volumes) driver(vol *model.Volume) (Driver, error) {
	switch vol.Driver {
	case InMemory:
		return memory{}, nil
	case "", "local":
		return local{}, nil
	}
	return nil, fault.New(fault.Unsupported, "volume %s: driver %q is not supported; local is", vol.FullName(), vol.Driver)
}

// Ensure makes a volume, unless it is there, and returns its path on this host.
func (v *Volumes) Ensure(ctx context.Context, vol *model.Volume) (string, error) {
	d, err := v.driver(vol)
	if err != nil {
		return "", err
	}
	dir, err := v.dir(vol.ID)
	if err != nil {
		return "", err
	}
	data := filepath.Join(dir, "data")
	if err := os.MkdirAll(data, 0o755); err != nil {
		return "", fmt.Errorf("make volume %s: %w", vol.FullName(), err)
	}
	defer v.lock(data)()
	if err := d.Publish(ctx, vol, data); err != nil {
		return "", fmt.Errorf("volume %s: %w", vol.FullName(), err)
	}
	return data, nil
}

// Held is where a volume keeps what it has of its own on this host; fault.NotFound when it is not here.
func (v *Volumes) Held(id string) (string, error) {
	dir, err := v.dir(id)
	if err != nil {
		return "", err
	}
	data := filepath.Join(dir, "data")
	if _, err := os.Stat(data); err != nil {
		return "", fault.New(fault.NotFound, "volume %s is not on this node: %w", id, err)
	}
	return data, nil
}

// Replace puts what fill writes into a directory in place of what a volume holds: of one with a directory of its
// own as a whole, or, with an error, not at all.
func (v *Volumes) Replace(ctx context.Context, vol *model.Volume, fill func(dir string) error) error {
	data, err := v.Ensure(ctx, vol)
	if err != nil {
		return err
	}
	defer v.lock(data)()
	dir := filepath.Dir(data)
	if vol.Mounts() || vol.Driver == InMemory {
		if err := empty(data); err != nil {
			return fmt.Errorf("empty volume %s: %w", vol.FullName(), err)
		}
		return fill(data)
	}
	next, before := filepath.Join(dir, "next"), filepath.Join(dir, "before")
	if err := errors.Join(os.RemoveAll(next), os.RemoveAll(before), os.Mkdir(next, 0o755)); err != nil {
		return fmt.Errorf("make room for volume %s: %w", vol.FullName(), err)
	}
	if err := fill(next); err != nil {
		return errors.Join(err, os.RemoveAll(next))
	}
	if err := os.WriteFile(filepath.Join(dir, filledMark), nil, 0o600); err != nil {
		return err
	}
	if err := errors.Join(os.Rename(data, before), os.Rename(next, data)); err != nil {
		return fmt.Errorf("replace volume %s: %w", vol.FullName(), err)
	}
	return os.RemoveAll(before)
}

func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

const (
	fillingMark = "filling"
	filledMark  = "filled"
)

// lock lets one fill a volume while others, who share it, wait for the whole.
func (v *Volumes) lock(path string) (unlock func()) {
	v.mu.Lock()
	l := v.locks[path]
	if l == nil {
		l = new(sync.Mutex)
		v.locks[path] = l
	}
	v.mu.Unlock()
	l.Lock()
	return l.Unlock
}

// Fill copies what the image has at target into a volume that was never filled and is empty, with
// owners and modes, those of target itself included. What a crash cut short is done again. path is
// what Ensure returned, first the user who is 0 in the root file system.
func (v *Volumes) Fill(ctx context.Context, path, rootfs, target string, first uint32) error {
	defer v.lock(path)()
	filled, filling := filepath.Join(filepath.Dir(path), filledMark), filepath.Join(filepath.Dir(path), fillingMark)
	if _, err := os.Stat(filled); err == nil {
		return nil
	}
	if mounted, err := mountinfo.Mounted(path); err != nil || mounted {
		return err // what was mounted is as it is
	}
	if _, err := os.Stat(filling); err != nil {
		entries, err := os.ReadDir(path)
		if err != nil {
			return err
		}
		if len(entries) > 0 {
			return os.WriteFile(filled, nil, 0o600)
		}
		if err := os.WriteFile(filling, nil, 0o600); err != nil {
			return err
		}
	}
	if err := fill(ctx, path, rootfs, target, int(first)); err != nil {
		return err
	}
	return os.Rename(filling, filled)
}

func fill(ctx context.Context, path, rootfs, target string, first int) error {
	from, err := openWithin(rootfs, target)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil // the image has nothing there
	}
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenRoot(path)
	if err != nil {
		return err
	}
	defer to.Close()
	return (&copier{from, to, first}).dir(ctx, ".")
}

// copier copies below two roots, between which users differ by first.
type copier struct {
	from, to *os.Root
	first    int
}

// openWithin opens a directory as a task with that root file system would: symbolic links, absolute
// ones too, stay in it.
func openWithin(rootfs, target string) (*os.Root, error) {
	root, err := os.Open(rootfs)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	fd, err := unix.Openat2(int(root.Fd()), target, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: target, Err: err}
	}
	defer unix.Close(fd)
	return os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", fd))
}

func (c *copier) dir(ctx context.Context, name string) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	dir, err := c.from.Open(name)
	if err != nil {
		return err
	}
	entries, err := dir.ReadDir(-1)
	dir.Close()
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(name, e.Name())
		switch {
		case e.IsDir():
			if err := c.to.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
				return err
			}
			if err := c.dir(ctx, path); err != nil {
				return err
			}
		case e.Type()&os.ModeSymlink != 0:
			link, err := c.from.Readlink(path)
			if err != nil {
				return err
			}
			if err := unlink(c.to, path); err != nil {
				return err
			}
			if err := c.to.Symlink(link, path); err != nil {
				return err
			}
			if err := c.sameOwner(path); err != nil {
				return err
			}
		case e.Type().IsRegular():
			if err := c.file(path); err != nil {
				return err
			}
		default:
			continue // devices and sockets are not content
		}
	}
	return c.sameAttributes(name)
}

// unlink removes what an earlier attempt left of a file.
func unlink(to *os.Root, name string) error {
	if err := to.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (c *copier) file(name string) error {
	in, err := c.from.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := unlink(c.to, name); err != nil {
		return err
	}
	out, err := c.to.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err = errors.Join(err, out.Close()); err != nil {
		return err
	}
	return c.sameAttributes(name)
}

func (c *copier) sameOwner(name string) error {
	st, err := c.from.Lstat(name)
	if err != nil {
		return err
	}
	sys := st.Sys().(*syscall.Stat_t)
	return c.to.Lchown(name, int(sys.Uid)-c.first, int(sys.Gid)-c.first)
}

func (c *copier) sameAttributes(name string) error {
	if err := c.sameOwner(name); err != nil {
		return err
	}
	st, err := c.from.Lstat(name)
	if err != nil {
		return err
	}
	return c.to.Chmod(name, st.Mode())
}

// Remove deletes a volume with all that it holds.
func (v *Volumes) Remove(ctx context.Context, id string) error {
	dir, err := v.dir(id)
	if err != nil {
		return err
	}
	// What is mounted there is not the volume's to delete.
	if err := (local{}).Unpublish(ctx, filepath.Join(dir, "data")); err != nil {
		return fmt.Errorf("volume %s: %w", id, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		if errors.Is(err, unix.EBUSY) {
			return fault.New(fault.Conflict, "volume %s is still in use", id)
		}
		return fmt.Errorf("remove volume %s: %w", id, err)
	}
	return nil
}

// RemoveOf deletes the anonymous volumes of an instance, whose IDs begin with its own and a dash.
func (v *Volumes) RemoveOf(ctx context.Context, instance string) error {
	entries, err := os.ReadDir(v.root)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), instance+"-") {
			errs = append(errs, v.Remove(ctx, e.Name()))
		}
	}
	return errors.Join(errs...)
}
