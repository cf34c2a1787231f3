package volume

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// memory keeps volumes in memory.
type memory struct{}

func (memory) Publish(_ context.Context, vol *model.Volume, data string) error {
	mounted, err := mountinfo.Mounted(data)
	if err != nil || mounted {
		return err
	}
	options := "mode=0755"
	if size := vol.Options["size"]; size != "" {
		options += ",size=" + size
	}
	return unix.Mount("tutti-volume", data, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options)
}

func (memory) Unpublish(ctx context.Context, data string) error {
	return local{}.Unpublish(ctx, data)
}

// local keeps volumes in a directory of their own, or mounts what their options say in its place.
type local struct{}

// flags are the options of mounting that are not the file system's own.
var flags = map[string]struct {
	set   uintptr
	clear uintptr
}{
	"ro": {unix.MS_RDONLY, 0}, "rw": {0, unix.MS_RDONLY}, "nosuid": {unix.MS_NOSUID, 0}, "suid": {0, unix.MS_NOSUID}, "nodev": {unix.MS_NODEV, 0}, "dev": {0, unix.MS_NODEV},
	"noexec": {unix.MS_NOEXEC, 0}, "exec": {0, unix.MS_NOEXEC}, "sync": {unix.MS_SYNCHRONOUS, 0}, "async": {0, unix.MS_SYNCHRONOUS}, "noatime": {unix.MS_NOATIME, 0}, "atime": {0, unix.MS_NOATIME},
	"nodiratime": {unix.MS_NODIRATIME, 0}, "relatime": {unix.MS_RELATIME, 0}, "strictatime": {unix.MS_STRICTATIME, 0}, "bind": {unix.MS_BIND, 0}, "rbind": {unix.MS_BIND | unix.MS_REC, 0}, "defaults": {},
}

func (local) Publish(ctx context.Context, vol *model.Volume, data string) error {
	if !vol.Mounts() {
		return nil
	}
	if err := vol.Check(); err != nil {
		return err
	}
	mounted, err := mountinfo.Mounted(data)
	if err != nil || mounted {
		return err
	}
	var flag uintptr
	var rest []string
	for o := range strings.SplitSeq(vol.Options[model.VolumeOptions], ",") {
		f, ok := flags[o]
		switch {
		case ok:
			flag = flag&^f.clear | f.set
		case o != "":
			rest = append(rest, o)
		}
	}
	kind, device := vol.Options[model.VolumeType], vol.Options[model.VolumeDevice]
	if flag&unix.MS_BIND != 0 {
		if _, err := os.Stat(device); err != nil {
			return fault.New(fault.Unavailable, "device %s is not on this node: %w", device, err)
		}
		if err := unix.Mount(device, data, "", flag&(unix.MS_BIND|unix.MS_REC), ""); err != nil {
			return fmt.Errorf("mount %s: %w", device, err)
		}
		if other := flag &^ (unix.MS_BIND | unix.MS_REC); other != 0 {
			if err := unix.Mount("", data, "", unix.MS_REMOUNT|unix.MS_BIND|other, ""); err != nil {
				return errors.Join(fmt.Errorf("mount %s with %s: %w", device, vol.Options[model.VolumeOptions], err), unix.Unmount(data, unix.MNT_DETACH))
			}
		}
		return nil
	}
	if known, err := kernelHas(kind); err != nil || !known {
		return errors.Join(err, fault.New(fault.Unsupported, "the kernel of this node has no file system %s (it is not in /proc/filesystems)", kind))
	}
	if vol.Shared() {
		if device, rest, err = atAddress(ctx, kind, device, rest); err != nil {
			return err
		}
	}
	if err := unix.Mount(device, data, kind, flag, strings.Join(rest, ",")); err != nil {
		return fault.New(fault.Unavailable, "mount %s %s (%s): %w", kind, device, strings.Join(rest, ","), err)
	}
	return nil
}

// atAddress completes what the kernel has to be told of a file system of the network: the server's address in numbers.
func atAddress(ctx context.Context, kind, device string, options []string) (string, []string, error) {
	host := ""
	for i, o := range options {
		if a, ok := strings.CutPrefix(o, "addr="); ok {
			host = a
			options = append(options[:i:i], options[i+1:]...)
			break
		}
	}
	if host == "" && strings.HasPrefix(kind, "nfs") {
		host, _, _ = strings.Cut(device, ":/")
	}
	if host == "" && (kind == "cifs" || kind == "smb3") {
		host, _, _ = strings.Cut(strings.TrimLeft(device, "/"), "/")
	}
	if host == "" {
		return device, options, nil
	}
	ip := net.ParseIP(host)
	if ip == nil {
		found, err := net.DefaultResolver.LookupIP(ctx, "ip", host)
		if err != nil {
			return "", nil, fault.New(fault.Unavailable, "find the address of %s: %w", host, err)
		}
		ip = found[0]
	}
	option := "addr="
	if kind == "cifs" || kind == "smb3" {
		option = "ip="
	}
	return device, append(options, option+ip.String()), nil
}

// kernelHas reports whether a file system can be mounted here.
func kernelHas(kind string) (bool, error) {
	f, err := os.Open("/proc/filesystems")
	if err != nil {
		return false, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 0 && fields[len(fields)-1] == kind {
			return true, nil
		}
	}
	return false, nil
}

func (local) Unpublish(_ context.Context, data string) error {
	mounted, err := mountinfo.Mounted(data)
	if errors.Is(err, os.ErrNotExist) || err == nil && !mounted {
		return nil
	}
	if err != nil {
		return err
	}
	if err := unix.Unmount(data, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", data, err)
	}
	return nil
}
