package userns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/fault"
)

// Bind mounts source at target so that what there is of user 0 is of u's first user, and so on.
func (u *Users) Bind(source, target string, recursive bool) error {
	tree, err := u.clone(source, recursive)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS); err != nil {
		return fmt.Errorf("mount %s: %w", source, err)
	}
	return nil
}

// Translates tells why what is at a path, and mounted below it if recursive, cannot be shown with u's users.
func (u *Users) Translates(source string, recursive bool) error {
	tree, err := u.clone(source, recursive)
	if err != nil {
		return err
	}
	return unix.Close(tree)
}

// clone returns a mount of source that translates, and is nowhere yet.
func (u *Users) clone(source string, recursive bool) (int, error) {
	ns, err := os.Open(u.Path)
	if err != nil {
		return -1, err
	}
	defer ns.Close()
	flags, below := uint(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC), uint(0)
	if recursive {
		flags, below = flags|unix.AT_RECURSIVE, unix.AT_RECURSIVE
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, flags)
	if err != nil {
		return -1, fmt.Errorf("mount %s: %w", source, err)
	}
	err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|below, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())})
	if err != nil {
		unix.Close(tree)
		return -1, fault.New(fault.Unsupported, "the file system of %s cannot be shown with the users of a user namespace: %w", source, err)
	}
	return tree, nil
}

// Overlay mounts an overlay file system at target whose layers are in directories below base, as its
// options say by relative paths. Layers and what is written have the users that the namespace shows;
// scratch is an empty directory that is used meanwhile.
func (u *Users) Overlay(base, scratch, options, target string) (err error) {
	if err := u.Bind(base, scratch, false); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.NewSyscallError("umount", unix.Unmount(scratch, unix.MNT_DETACH))) }()
	return u.As(func() error {
		// Paths are short this way: all of them have to fit into a page.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		if err := unix.Chdir(scratch); err != nil {
			return os.NewSyscallError("chdir", err)
		}
		return os.NewSyscallError("mount", unix.Mount("overlay", target, "overlay", 0, options))
	})
}

// As calls fn on a thread that is user 0 of the namespace to file systems, and able to do all that this process
// is. Whoever mounts an overlay or writes to it has to be one of those users: it does the same to its layers, and
// on those there are no others.
func (u *Users) As(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: what is changed of the thread ends with it
		if err := become(int(u.First)); err != nil {
			done <- fmt.Errorf("become another user: %w", err)
			return
		}
		done <- fn()
	}()
	return <-done
}

// become changes who this thread is to file systems, and keeps its capabilities.
func become(id int) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return err
	}
	if err := errors.Join(unix.Setfsgid(id), unix.Setfsuid(id)); err != nil {
		return err
	}
	return unix.Capset(&header, &caps[0])
}

// Works tries, in a directory on the file system that layers will be on, all that users of their own need.
func Works(dir string) (err error) {
	at, err := os.MkdirTemp(dir, ".users-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(at)) }()
	for _, d := range []string{"layers/lower", "layers/upper", "layers/work", "scratch", "root"} {
		if err := os.MkdirAll(filepath.Join(at, d), 0o755); err != nil {
			return err
		}
	}
	path := filepath.Join(at, nsFile)
	if err := begin(lowest+spaces*Size, 0, func(pid int) error { return bind(pid, "user", path) }); err != nil {
		return fmt.Errorf("make a user namespace: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(path, unix.MNT_DETACH)) }()
	u, root := &Users{Path: path, First: lowest + spaces*Size}, filepath.Join(at, "root")
	if err := u.Overlay(filepath.Join(at, "layers"), filepath.Join(at, "scratch"), "lowerdir=lower,upperdir=upper,workdir=work", root); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Unmount(root, unix.MNT_DETACH)) }()
	made := filepath.Join(root, "made")
	err = u.As(func() error {
		return errors.Join(os.Mkdir(made, 0o755), os.Chown(made, int(u.First)+7, int(u.First)+7))
	})
	if err != nil {
		return fmt.Errorf("write through translated layers: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(at, "layers/upper/made"), &st); err != nil || st.Uid != 7 {
		return fmt.Errorf("a directory of user 7 became one of user %d: %w", st.Uid, err)
	}
	return nil
}

// Relative rewrites the options of an overlay whose layers are all below base for Users.Overlay.
func Relative(base string, options []string) (string, error) {
	prefix := strings.TrimSuffix(base, "/") + "/"
	var out []string
	for _, o := range options {
		name, value, _ := strings.Cut(o, "=")
		switch name {
		case "lowerdir", "upperdir", "workdir":
			dirs := strings.Split(value, ":")
			for i, d := range dirs {
				rel, ok := strings.CutPrefix(d, prefix)
				if !ok {
					return "", fmt.Errorf("layer %s is not below %s", d, base)
				}
				dirs[i] = rel
			}
			o = name + "=" + strings.Join(dirs, ":")
		}
		out = append(out, o)
	}
	return strings.Join(out, ","), nil
}
