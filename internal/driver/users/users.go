// Package users looks users and groups up by name, in the files of whatever root they belong to.
package users

import (
	"fmt"
	"os"
	"strings"

	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/fault"
)

// Lookup resolves "name", "uid", "name:group" and so on by the files of that root.
func Lookup(rootfs, spec string, groups []string) (*specs.User, error) {
	root, err := os.Open(rootfs)
	if err != nil {
		return nil, fmt.Errorf("open root file system: %w", err)
	}
	defer root.Close()
	passwd := openOrEmpty(root, "etc/passwd")
	defer passwd.Close()
	group := openOrEmpty(root, "etc/group")
	defer group.Close()
	u, err := user.GetExecUser(spec, &user.ExecUser{}, passwd, group)
	if err != nil {
		return nil, fault.New(fault.Invalid, "user %q: %w", spec, err)
	}
	out := &specs.User{UID: uint32(u.Uid), GID: uint32(u.Gid)}
	for _, g := range u.Sgids {
		out.AdditionalGids = append(out.AdditionalGids, uint32(g))
	}
	if len(groups) > 0 {
		again := openOrEmpty(root, "etc/group")
		defer again.Close()
		gids, err := user.GetAdditionalGroups(groups, again)
		if err != nil {
			return nil, fault.New(fault.Invalid, "groups %s: %w", strings.Join(groups, ", "), err)
		}
		for _, g := range gids {
			out.AdditionalGids = append(out.AdditionalGids, uint32(g))
		}
	}
	return out, nil
}

// Home returns the home directory of a user by the files of that root, "/" for one who is not in them.
func Home(rootfs string, uid uint32) string {
	root, err := os.Open(rootfs)
	if err != nil {
		return "/"
	}
	defer root.Close()
	passwd := openOrEmpty(root, "etc/passwd")
	defer passwd.Close()
	list, err := user.ParsePasswdFilter(passwd, func(u user.User) bool { return u.Uid == int(uid) })
	if err != nil || len(list) == 0 {
		return "/"
	}
	return list[0].Home
}

// openOrEmpty opens a regular file of the image as the image means it: symbolic links, absolute
// ones too, stay within.
func openOrEmpty(root *os.File, name string) *os.File {
	fd, err := unix.Openat2(int(root.Fd()), name, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK, Resolve: unix.RESOLVE_IN_ROOT})
	if err == nil {
		f := os.NewFile(uintptr(fd), name)
		if st, err := f.Stat(); err == nil && st.Mode().IsRegular() {
			return f
		}
		f.Close()
	}
	f, _ := os.Open(os.DevNull) // an image without users has only numbers
	return f
}
