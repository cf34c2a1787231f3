package files

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/fault"
)

// UnpackOptions change how Unpack writes.
type UnpackOptions struct {
	// KeepKind refuses to put a file where a directory is, or a directory where there is a file.
	KeepKind bool
	// Owner owns everything instead of those that the archive names.
	Owner *Owner
}

// Owner is a user and a group by number.
type Owner struct{ UID, GID int }

// Unpack writes an archive, compressed with nothing, into the directory that a path names. What is
// there under the same names is replaced; directories are merged.
func (r *Root) Unpack(ctx context.Context, in io.Reader, p string, o UnpackOptions) error {
	if r.Users != nil {
		return r.Users.As(func() error { return r.unpack(ctx, in, p, o) })
	}
	return r.unpack(ctx, in, p, o)
}

func (r *Root) unpack(ctx context.Context, in io.Reader, p string, o UnpackOptions) error {
	name, _ := clean(p)
	dir, err := r.open(name, unix.O_PATH)
	if err != nil {
		return err
	}
	defer dir.Close()
	if info, err := dir.Stat(); err != nil || !info.IsDir() {
		return fault.New(fault.Invalid, "extraction point is not a directory: %s", name)
	}
	at, ok := r.within(dir)
	if !ok {
		at = name
	}
	u := &unpacker{root: r, at: at, options: o, ctx: ctx}
	tr := tar.NewReader(in)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			if kind := fault.KindOf(err); kind != fault.Internal {
				return err
			}
			return fault.New(fault.Invalid, "read the archive: %w", err)
		}
		if err := u.entry(h, tr); err != nil {
			return err
		}
	}
	return u.finish()
}

type unpacker struct {
	root    *Root
	at      string // the directory, as a path of the root
	options UnpackOptions
	ctx     context.Context
	dirs    []dirTime
}

// dirTime is when a directory was changed, to be set once nothing is written into it any more.
type dirTime struct {
	name string
	time time.Time
}

// inside turns a name of the archive into a path of the root.
func (u *unpacker) inside(name string) string { return path.Join(u.at, path.Clean("/"+name)) }

// parent opens the directory that an entry goes into; it is made if need be.
func (u *unpacker) parent(name string) (*os.File, error) {
	dir := path.Dir(name)
	f, err := u.root.open(dir, unix.O_PATH|unix.O_DIRECTORY)
	if err == nil || !fault.Is(err, fault.NotFound) || dir == "/" {
		return f, err
	}
	above, err := u.parent(dir)
	if err != nil {
		return nil, err
	}
	defer above.Close()
	if err := unix.Mkdirat(int(above.Fd()), path.Base(dir), 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, pathError(dir, err)
	}
	return u.root.open(dir, unix.O_PATH|unix.O_DIRECTORY)
}

func (u *unpacker) entry(h *tar.Header, body io.Reader) error {
	name := u.inside(h.Name)
	if name == u.at || name == "/" { // the directory itself stays as it is
		return nil
	}
	dir, err := u.parent(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	base, at := path.Base(name), int(dir.Fd())
	if err := u.clear(at, base, name, h.Typeflag == tar.TypeDir); err != nil {
		return err
	}
	mode := uint32(h.Mode & 0o7777)
	switch h.Typeflag {
	case tar.TypeDir:
		if err := unix.Mkdirat(at, base, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
			return pathError(name, err)
		}
		u.dirs = append(u.dirs, dirTime{name, h.ModTime})
	case tar.TypeReg:
		return u.file(at, base, name, h, body)
	case tar.TypeSymlink:
		if err := unix.Symlinkat(h.Linkname, at, base); err != nil {
			return pathError(name, err)
		}
	case tar.TypeLink:
		return u.link(at, base, name, h.Linkname)
	case tar.TypeFifo:
		err = unix.Mknodat(at, base, unix.S_IFIFO|0o600, 0)
	case tar.TypeChar:
		err = unix.Mknodat(at, base, unix.S_IFCHR|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	case tar.TypeBlock:
		err = unix.Mknodat(at, base, unix.S_IFBLK|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	case tar.TypeXGlobalHeader:
		return nil
	default:
		return fault.New(fault.Unsupported, "the archive's entry %s is of type %q, which cannot be unpacked", h.Name, h.Typeflag)
	}
	if err != nil {
		return pathError(name, err)
	}
	return u.attributes(at, base, name, h, mode)
}

// clear makes room for an entry: all but directories make way for what takes their name.
func (u *unpacker) clear(at int, base, name string, forDir bool) error {
	var st unix.Stat_t
	err := unix.Fstatat(at, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return pathError(name, err)
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	switch {
	case isDir && forDir:
		return nil
	case isDir && u.options.KeepKind:
		return fault.New(fault.Invalid, "cannot overwrite directory %q with non-directory", name)
	case forDir && u.options.KeepKind:
		return fault.New(fault.Invalid, "cannot overwrite non-directory %q with directory", name)
	case isDir:
		err = unix.Unlinkat(at, base, unix.AT_REMOVEDIR)
		if errors.Is(err, unix.ENOTEMPTY) {
			return fault.New(fault.Conflict, "%s is a directory that is not empty: remove it first", name)
		}
	default:
		err = unix.Unlinkat(at, base, 0)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return pathError(name, err)
	}
	return nil
}

func (u *unpacker) file(at int, base, name string, h *tar.Header, body io.Reader) error {
	fd, err := unix.Openat(at, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return pathError(name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if _, err := io.Copy(f, contextReader{u.ctx, body}); err != nil {
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			return pathError(name, err)
		}
		return fault.New(fault.Unavailable, "write %s: %w", name, err)
	}
	owner, err := u.owner(name, h)
	if err != nil {
		return err
	}
	if err := unix.Fchown(fd, owner.UID, owner.GID); err != nil {
		return pathError(name, err)
	}
	if err := unix.Fchmod(fd, uint32(h.Mode&0o7777)); err != nil {
		return pathError(name, err)
	}
	if value, ok := h.PAXRecords[paxCapability]; ok {
		if err := unix.Fsetxattr(fd, xattrCapability, []byte(value), 0); err != nil {
			return fmt.Errorf("set the capabilities of %s: %w", name, err)
		}
	}
	return times(at, base, name, h.ModTime)
}

// link gives a file that was unpacked before, or is there, a further name.
func (u *unpacker) link(at int, base, name, to string) error {
	target := u.inside(to)
	dir, err := u.root.open(path.Dir(target), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Linkat(int(dir.Fd()), path.Base(target), at, base, 0); err != nil {
		return pathError(name, err)
	}
	return nil
}

// owner is whose an entry becomes, as the node counts users.
func (u *unpacker) owner(name string, h *tar.Header) (Owner, error) {
	o := Owner{h.Uid, h.Gid}
	if u.options.Owner != nil {
		o = *u.options.Owner
	}
	var uerr, gerr error
	o.UID, uerr = u.root.Users.Outside(o.UID)
	o.GID, gerr = u.root.Users.Outside(o.GID)
	if err := cmp.Or(uerr, gerr); err != nil {
		return o, fmt.Errorf("%s: %w", name, err)
	}
	return o, nil
}

func (u *unpacker) attributes(at int, base, name string, h *tar.Header, mode uint32) error {
	owner, err := u.owner(name, h)
	if err != nil {
		return err
	}
	if err := unix.Fchownat(at, base, owner.UID, owner.GID, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return pathError(name, err)
	}
	if h.Typeflag == tar.TypeSymlink {
		return times(at, base, name, h.ModTime)
	}
	fd, err := unix.Openat(at, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return pathError(name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if err := unix.Chmod(fdPath(f), mode); err != nil { // of the very file: chmod of a name would follow a link
		return pathError(name, err)
	}
	return times(at, base, name, h.ModTime)
}

// fdPath names an open file, whatever has its name now.
func fdPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

func times(at int, base, name string, t time.Time) error {
	if t.IsZero() || t.Unix() == 0 {
		return nil
	}
	ts := unix.NsecToTimespec(t.UnixNano())
	if err := unix.UtimesNanoAt(at, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return pathError(name, err)
	}
	return nil
}

func (u *unpacker) finish() error {
	for i := len(u.dirs) - 1; i >= 0; i-- {
		d := u.dirs[i]
		dir, err := u.root.open(path.Dir(strings.TrimSuffix(d.name, "/")), unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		err = times(int(dir.Fd()), path.Base(d.name), d.name, d.time)
		dir.Close()
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	return nil
}
