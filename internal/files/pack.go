package files

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/userns"
)

// Pack writes the file or the tree that a path names. Names in the archive begin with the path's
// last element; those below "dir/." with ".". File systems of the kernel's own, such as /proc, are
// left empty, and so are sockets.
func (r *Root) Pack(ctx context.Context, w io.Writer, p string) error {
	f, name, err := r.lookup(p)
	if err != nil {
		return err
	}
	defer f.Close()
	top := path.Base(name)
	if strings.HasSuffix(p, "/.") || p == "." {
		top = "."
	}
	k := &packer{ctx: ctx, tw: tar.NewWriter(w), links: map[inode]string{}, users: r.Users}
	if err := k.add(f, top, name); err != nil {
		return err
	}
	if err := k.tw.Close(); err != nil {
		return fault.New(fault.Unavailable, "write the archive: %w", err)
	}
	return nil
}

type inode struct{ dev, ino uint64 }

type packer struct {
	ctx   context.Context
	tw    *tar.Writer
	links map[inode]string // files with several names, by the first
	layer bool             // of an image: see PackLayer
	users *userns.Users
}

// add writes an open (O_PATH) file under a name of the archive; shown is for messages.
func (k *packer) add(f *os.File, name, shown string) error {
	if err := k.ctx.Err(); err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return pathError(shown, err)
	}
	mode := info.Mode()
	if k.layer && isWhiteout(info) {
		return k.mark(path.Join(path.Dir(name), whiteout+path.Base(name)))
	}
	if mode&fs.ModeSocket != 0 {
		return nil
	}
	link := ""
	if mode&fs.ModeSymlink != 0 {
		if link, err = readlink(f); err != nil {
			return pathError(shown, err)
		}
	}
	var body *os.File
	if mode.IsRegular() {
		if body, err = reopen(f, unix.O_RDONLY|unix.O_NONBLOCK); err != nil {
			return pathError(shown, err)
		}
		defer body.Close()
		if info, err = body.Stat(); err != nil {
			return pathError(shown, err)
		}
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return fault.New(fault.Invalid, "%s cannot be put into an archive: %w", shown, err)
	}
	h.Name, h.Uname, h.Gname, h.Format = name, "", "", tar.FormatPAX
	h.Uid, h.Gid = k.users.Inside(h.Uid), k.users.Inside(h.Gid)
	h.ModTime, h.AccessTime, h.ChangeTime = h.ModTime.Truncate(time.Second), time.Time{}, time.Time{}
	if info.IsDir() {
		h.Name = strings.TrimSuffix(name, "/") + "/"
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && mode.IsRegular() {
		id := inode{uint64(st.Dev), st.Ino}
		if first, seen := k.links[id]; seen {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			body = nil
		} else if st.Nlink > 1 {
			k.links[id] = h.Name
		}
	}
	if body != nil {
		if value := capability(body); value != nil {
			h.PAXRecords = map[string]string{paxCapability: string(value)}
		}
	}
	if err := k.tw.WriteHeader(h); err != nil {
		return fault.New(fault.Unavailable, "write the archive: %w", err)
	}
	switch {
	case body != nil:
		return k.content(body, h.Size, shown)
	case info.IsDir() && !kernels(f):
		if k.layer && isOpaque(f) {
			if err := k.mark(path.Join(name, opaque)); err != nil {
				return err
			}
		}
		return k.entries(f, strings.TrimSuffix(name, "/"), shown)
	}
	return nil
}

// content copies what the header promised: a file that grows meanwhile is cut, one that shrinks
// filled up with zeros.
func (k *packer) content(body *os.File, size int64, shown string) error {
	n, err := io.Copy(k.tw, io.LimitReader(contextReader{k.ctx, body}, size))
	if err != nil {
		return fault.New(fault.Unavailable, "copy %s: %w", shown, err)
	}
	if n < size {
		if _, err := io.CopyN(k.tw, zeros{}, size-n); err != nil {
			return fault.New(fault.Unavailable, "copy %s: %w", shown, err)
		}
	}
	return nil
}

func (k *packer) entries(dir *os.File, name, shown string) error {
	return children(dir, shown, func(f *os.File, n string) error {
		err := k.add(f, strings.TrimPrefix(name+"/"+n, "/"), path.Join(shown, n))
		if errors.Is(err, unix.ENOENT) {
			return nil // gone meanwhile
		}
		return err
	})
}

// children calls fn with what a directory holds, found (O_PATH) without following links, in the order
// of names; what is gone meanwhile is left out. at is the directory's path, for errors.
func children(dir *os.File, at string, fn func(f *os.File, name string) error) error {
	d, err := reopen(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return pathError(at, err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return pathError(at, err)
	}
	slices.Sort(names)
	for _, n := range names {
		fd, err := unix.Openat(int(d.Fd()), n, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return pathError(path.Join(at, n), err)
		}
		f := os.NewFile(uintptr(fd), n)
		err = fn(f, n)
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// reopen opens a file that was found (O_PATH) for use: the same one, whatever has its name now.
func reopen(f *os.File, flags int) (*os.File, error) {
	var fd int
	var err error
	if flags&unix.O_DIRECTORY != 0 {
		fd, err = unix.Openat(int(f.Fd()), ".", flags|unix.O_CLOEXEC, 0)
	} else {
		fd, err = unix.Open(fdPath(f), flags|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// kernels reports whether a directory is of a file system whose files are not kept anywhere.
func kernels(f *os.File) bool {
	var st unix.Statfs_t
	if unix.Fstatfs(int(f.Fd()), &st) != nil {
		return false
	}
	switch int64(st.Type) {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEVPTS_SUPER_MAGIC,
		unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.BPF_FS_MAGIC, 0x19800202: // the last is mqueue's
		return true
	}
	return false
}

const (
	xattrCapability = "security.capability"
	paxCapability   = "SCHILY.xattr." + xattrCapability
)

func capability(f *os.File) []byte {
	buf := make([]byte, 64)
	n, err := unix.Fgetxattr(int(f.Fd()), xattrCapability, buf)
	if err != nil || n == 0 {
		return nil
	}
	return buf[:n]
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// contextReader ends a long copy with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
