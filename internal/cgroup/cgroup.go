// Package cgroup finds the machine's cgroup hierarchies, whichever version they are of, and
// removes what Tutti made in them. Making and limiting cgroups is libcontainer's work.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Hierarchies returns where cgroup hierarchies are mounted: one directory for version 2, one per
// controller for version 1, both on a hybrid host.
func Hierarchies() ([]string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("list cgroup hierarchies: %w", err)
	}
	var out []string
	for _, m := range mounts {
		out = append(out, m.Mountpoint)
	}
	return out, nil
}

// Has reports whether cgroups here have a controller.
func Has(controller string) bool {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return false
	}
	return slices.ContainsFunc(mounts, func(m *mountinfo.Info) bool {
		if m.FSType == "cgroup" {
			return slices.Contains(strings.Split(m.VFSOptions, ","), controller)
		}
		if m.Mountpoint != "/sys/fs/cgroup" { // those of a hybrid host are not used
			return false
		}
		text, err := os.ReadFile(filepath.Join(m.Mountpoint, "cgroup.controllers"))
		return err == nil && slices.Contains(strings.Fields(string(text)), controller)
	})
}

// Remove removes a cgroup, such as "/tutti", with all below it, in every hierarchy. What still
// runs in it is killed. A cgroup that does not exist is no error.
func Remove(cgroup string) error {
	if clean := filepath.Clean("/" + cgroup); clean == "/" || clean != cgroup {
		return fmt.Errorf("%q is no cgroup that could be removed", cgroup)
	}
	roots, err := Hierarchies()
	if err != nil {
		return err
	}
	var errs []error
	for _, root := range roots {
		errs = append(errs, removeTree(filepath.Join(root, cgroup)))
	}
	return errors.Join(errs...)
}

// Clear removes what is below a cgroup, like Remove, but for the part that this process is in.
func Clear(cgroup string) error {
	roots, err := Hierarchies()
	if err != nil {
		return err
	}
	self := strconv.Itoa(os.Getpid())
	var errs []error
	for _, root := range roots {
		children, err := os.ReadDir(filepath.Join(root, cgroup))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
		for _, c := range children {
			dir := filepath.Join(root, cgroup, c.Name())
			if members, err := os.ReadFile(filepath.Join(dir, "cgroup.procs")); !c.IsDir() || err == nil && slices.Contains(strings.Fields(string(members)), self) {
				continue
			}
			errs = append(errs, removeTree(dir))
		}
	}
	return errors.Join(errs...)
}

// tree lists a directory and those below it, from the inside out.
func tree(root string) (dirs []string, err error) {
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			dirs = append(dirs, path)
		}
		return nil // what went away meanwhile is as it should be
	})
	slices.Reverse(dirs)
	return dirs, err
}

// Kill kills what runs in a cgroup and below it, or what is frozen there alone. What is frozen does not end before it is
// thawed, even if its process namespace does. What is below a frozen cgroup is killed before that is thawed.
func Kill(cgroup string, frozen bool) error {
	roots, err := Hierarchies()
	if err != nil {
		return err
	}
	for _, root := range roots {
		dirs, err := tree(filepath.Join(root, cgroup))
		if err != nil {
			return fmt.Errorf("find what is in cgroup %s: %w", cgroup, err)
		}
		for _, dir := range dirs {
			if !frozen || isFrozen(dir) {
				killMembers(dir)
			}
		}
	}
	return nil
}

func removeTree(root string) error {
	dirs, err := tree(root)
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := removeDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// removeDir tries for two seconds: processes that were killed need a moment to be gone.
func removeDir(dir string) error {
	var err error
	for range 100 {
		err = unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		killMembers(dir)
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("remove cgroup %s: %w", dir, err)
}

// The files that freeze a cgroup, by version, and what they hold then and otherwise.
var freezers = []struct{ file, frozen, thawed string }{{"freezer.state", "FROZEN", "THAWED"}, {"cgroup.freeze", "1", "0"}}

func isFrozen(dir string) bool {
	for _, f := range freezers {
		if text, err := os.ReadFile(filepath.Join(dir, f.file)); err == nil && strings.TrimSpace(string(text)) == f.frozen {
			return true
		}
	}
	return false
}

func killMembers(dir string) {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return
	}
	for field := range strings.FieldsSeq(string(data)) {
		var pid int
		if _, err := fmt.Sscan(field, &pid); err == nil && pid > 1 && pid != os.Getpid() {
			_ = syscall.Kill(pid, syscall.SIGKILL) // gone already is as good
		}
	}
	for _, f := range freezers { // who is frozen dies when it is thawed
		if file, err := os.OpenFile(filepath.Join(dir, f.file), os.O_WRONLY, 0); err == nil {
			_, _ = file.WriteString(f.thawed) // the topmost one of version 1 takes nothing
			file.Close()
		}
	}
}
