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
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/fault"
)

// The names by which layers of images say that something of the layers below is gone.
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// PackLayer writes a root that is the upper directory of an overlayfs as a layer of an image.
func (r *Root) PackLayer(ctx context.Context, w io.Writer) error { return r.packBelow(ctx, w, true) }

// PackAll writes all that is below the root.
func (r *Root) PackAll(ctx context.Context, w io.Writer) error { return r.packBelow(ctx, w, false) }

func (r *Root) packBelow(ctx context.Context, w io.Writer, layer bool) error {
	f, err := r.open("/", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer f.Close()
	k := &packer{ctx: ctx, tw: tar.NewWriter(w), links: map[inode]string{}, layer: layer, users: r.Users}
	if err := k.entries(f, "", "/"); err != nil {
		return err
	}
	if err := k.tw.Close(); err != nil {
		return fault.New(fault.Unavailable, "write the archive: %w", err)
	}
	return nil
}

// isWhiteout reports whether overlayfs says by this that a file of the layers below is gone.
func isWhiteout(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && info.Mode()&fs.ModeCharDevice != 0 && st.Rdev == 0
}

// isOpaque reports whether a directory hides what the layers below have in it.
func isOpaque(f *os.File) bool {
	buf := make([]byte, 2)
	n, err := unix.Getxattr(fdPath(f), "trusted.overlay.opaque", buf)
	return err == nil && n == 1 && buf[0] == 'y'
}

func (k *packer) mark(name string) error {
	if err := k.tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600, Format: tar.FormatPAX}); err != nil {
		return fault.New(fault.Unavailable, "write the layer: %w", err)
	}
	return nil
}

// Change is what became of a file.
type Change int

// The changes.
const (
	Changed Change = iota
	Added
	Deleted
)

// ChangesSince tells what a root that is the upper directory of an overlayfs changed of its base, in
// order of paths. A directory counts as changed when something in it was.
func (r *Root) ChangesSince(ctx context.Context, base *Root, yield func(path string, c Change)) error {
	f, err := r.open("/", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer f.Close()
	return changesIn(ctx, f, "/", base, yield)
}

func changesIn(ctx context.Context, dir *os.File, at string, base *Root, yield func(string, Change)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return children(dir, at, func(f *os.File, name string) error {
		return changeOf(ctx, f, path.Join(at, name), base, yield)
	})
}

func changeOf(ctx context.Context, f *os.File, name string, base *Root, yield func(string, Change)) error {
	info, err := f.Stat()
	if err != nil {
		return pathError(name, err)
	}
	before, err := base.Stat(name)
	there := err == nil
	switch {
	case isWhiteout(info):
		if there {
			yield(name, Deleted)
		}
		return nil
	case !there:
		yield(name, Added)
	default:
		yield(name, Changed)
	}
	if !info.IsDir() {
		return nil
	}
	if there && before.Mode.IsDir() && isOpaque(f) { // it was made anew: what it does not have any more is gone
		if err := deletedOf(f, name, base, yield); err != nil {
			return err
		}
	}
	return changesIn(ctx, f, name, base, yield)
}

func deletedOf(now *os.File, name string, base *Root, yield func(string, Change)) error {
	before, err := base.open(name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer before.Close()
	names, err := before.Readdirnames(-1)
	if err != nil {
		return pathError(name, err)
	}
	slices.Sort(names)
	for _, n := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(int(now.Fd()), n, &st, unix.AT_SYMLINK_NOFOLLOW); errors.Is(err, unix.ENOENT) {
			yield(path.Join(name, n), Deleted)
		}
	}
	return nil
}
