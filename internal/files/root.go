package files

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/userns"
)

// Root is a directory beyond which nothing is reached.
type Root struct {
	dir *os.File
	// Users are those whose files these are, nil the host's own. In archives they are as they are to themselves.
	Users *userns.Users
}

// Open opens a root; the directory itself is trusted.
func Open(dir string) (*Root, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open root %s: %w", dir, err)
	}
	return &Root{dir: os.NewFile(uintptr(fd), dir)}, nil
}

// Close frees the root.
func (r *Root) Close() error { return r.dir.Close() }

// Stat tells of a file.
type Stat struct {
	Name    string // the last element of the path
	Size    int64
	Mode    fs.FileMode
	ModTime time.Time
	// LinkTarget is where a symbolic link leads, as an absolute path of the root.
	LinkTarget string
}

// clean makes a path absolute and keeps what its end says: "/" or "/." means what is behind a link.
func clean(p string) (name string, behind bool) {
	behind = p == "" || strings.HasSuffix(p, "/") || strings.HasSuffix(p, "/.") || p == "."
	return path.Clean("/" + p), behind
}

// open resolves a path within the root; flags as of open(2).
func (r *Root) open(name string, flags uint64) (*os.File, error) {
	name = strings.TrimPrefix(name, "/")
	if name == "" {
		name = "."
	}
	fd, err := unix.Openat2(int(r.dir.Fd()), name, &unix.OpenHow{
		Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, pathError("/"+strings.TrimPrefix(name, "."), err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func pathError(name string, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return fault.New(fault.NotFound, "no such file or directory: %s", name)
	case errors.Is(err, unix.ENOTDIR):
		return fault.New(fault.Invalid, "not a directory: %s", name)
	case errors.Is(err, unix.ELOOP):
		return fault.New(fault.Invalid, "too many symbolic links: %s", name)
	case errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.EINVAL):
		return fault.New(fault.Invalid, "no usable path: %q", name)
	case errors.Is(err, unix.EROFS):
		return fault.New(fault.Forbidden, "read-only file system: %s", name)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fault.New(fault.Exhausted, "no space left: %s", name)
	}
	return fmt.Errorf("%s: %w", name, err)
}

// lookup opens what a path names, without following a link at its end unless the path says so.
func (r *Root) lookup(p string) (*os.File, string, error) {
	name, behind := clean(p)
	flags := uint64(unix.O_PATH)
	if !behind {
		flags |= unix.O_NOFOLLOW
	}
	f, err := r.open(name, flags)
	return f, name, err
}

// Stat tells of the file that a path names. A link at its end is told of itself, unless the path ends
// with a slash.
func (r *Root) Stat(p string) (Stat, error) {
	f, name, err := r.lookup(p)
	if err != nil {
		return Stat{}, err
	}
	defer f.Close()
	return r.stat(f, name)
}

func (r *Root) stat(f *os.File, name string) (Stat, error) {
	info, err := f.Stat()
	if err != nil {
		return Stat{}, pathError(name, err)
	}
	out := Stat{Name: path.Base(name), Size: info.Size(), Mode: info.Mode(), ModTime: info.ModTime()}
	if info.Mode()&fs.ModeSymlink != 0 {
		if out.LinkTarget, err = readlink(f); err != nil {
			return out, pathError(name, err)
		}
		if behind, err := r.open(name, unix.O_PATH); err == nil { // where it ends, links on the way included
			if at, ok := r.within(behind); ok {
				out.LinkTarget = at
			}
			behind.Close()
		} else if !path.IsAbs(out.LinkTarget) {
			out.LinkTarget = path.Join(path.Dir(name), out.LinkTarget)
		}
	}
	return out, nil
}

// Resolve follows all links of a path and says where that is below the root.
func (r *Root) Resolve(p string) (string, error) {
	name, _ := clean(p)
	f, err := r.open(name, unix.O_PATH)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if at, ok := r.within(f); ok {
		return at, nil
	}
	return name, nil
}

// within says where below the root an open file is, as far as the kernel tells.
func (r *Root) within(f *os.File) (string, bool) {
	at, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	root, rerr := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", r.dir.Fd()))
	if err != nil || rerr != nil {
		return "", false
	}
	if root == "/" {
		return at, strings.HasPrefix(at, "/")
	}
	rest, ok := strings.CutPrefix(at, root)
	return path.Clean("/" + rest), ok && (rest == "" || rest[0] == '/')
}

func readlink(f *os.File) (string, error) {
	for size := 256; ; size *= 2 {
		buf := make([]byte, size)
		n, err := unix.Readlinkat(int(f.Fd()), "", buf)
		if err != nil {
			return "", err
		}
		if n < size {
			return string(buf[:n]), nil
		}
	}
}
