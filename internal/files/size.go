package files

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Size adds up what the files below the root hold, in bytes: as long as they are, whatever they take on disk. A file
// with several names counts once, directories not at all, and what goes meanwhile is left out.
func (r *Root) Size(ctx context.Context) (int64, error) {
	f, err := r.open("/", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	m := &measure{ctx: ctx, seen: map[inode]bool{}}
	err = m.dir(f, "/")
	return m.bytes, err
}

// measure is one look at the files of a root.
type measure struct {
	ctx   context.Context
	seen  map[inode]bool // those of several names
	bytes int64
}

// atATime is how many names of a directory are read together: one may have millions.
const atATime = 1024

func (m *measure) dir(d *os.File, at string) error {
	for {
		if err := m.ctx.Err(); err != nil {
			return err
		}
		names, err := d.Readdirnames(atATime)
		if len(names) == 0 {
			return nil // the end, or a directory that is gone
		}
		for _, name := range names {
			if err := m.entry(d, name, at+name); err != nil {
				return err
			}
		}
		if err != nil {
			return nil
		}
	}
}

func (m *measure) entry(d *os.File, name, shown string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(d.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return left(shown, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		id := inode{uint64(st.Dev), st.Ino}
		if st.Nlink > 1 && m.seen[id] {
			return nil
		}
		if st.Nlink > 1 {
			m.seen[id] = true
		}
		m.bytes += st.Size
		return nil
	}
	fd, err := unix.Openat(int(d.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return left(shown, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	return m.dir(f, shown+"/")
}

// left is nil for what went, or became something else, between two looks.
func left(shown string, err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	return pathError(shown, err)
}
