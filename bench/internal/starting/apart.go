package starting

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/bench/internal/report"
	"github.com/tutti-run/tutti/internal/cgroup"
)

// Roles in which this program is started by itself.
const (
	initArg = "bench-init" // first process of the namespaces
	workArg = "bench-work" // measures
)

const (
	// cgroupParent is above the cgroups of everything that is started here.
	cgroupParent = "/tutti-bench"
	hostAddress  = "10.250.0.1"
)

// job is what the process in the namespaces is to do.
type job struct {
	Group string `json:"group"`
	Brief bool   `json:"brief"`
	Dir   string `json:"dir"`   // on a disk; removed afterwards
	Tutti string `json:"tutti"` // the program
	Shop  *shop  `json:"shop,omitempty"`
}

// apart does a job in namespaces of its own for processes, mounts, networks, names and System V
// objects, and takes away everything that it left: when the first process ends, the kernel ends
// all others, and with the last one mounts and networks go.
func apart(ctx context.Context, sheet *report.Sheet, j job) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("containers and namespaces need root")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if j.Dir, err = os.MkdirTemp("/var/tmp", "tutti-bench-"); err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	defer func() { err = errors.Join(err, cgroup.Remove(cgroupParent), os.RemoveAll(j.Dir)) }()
	if err := build(ctx, j.Dir); err != nil {
		return err
	}
	text, err := json.Marshal(j)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, initArg, string(text))
	cmd.Stdout, cmd.Stderr = sheet.Streams()
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL, Setpgid: true,
	}
	runtime.LockOSThread() // the end of this thread would count as the parent's
	defer runtime.UnlockOSThread()
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("measure in namespaces of its own: %w", err)
	}
	return nil
}

// Reexec does what this program was started for by itself; it returns false when it was started
// by somebody else.
func Reexec(args []string) bool {
	if len(args) != 3 || args[1] != initArg && args[1] != workArg {
		return false
	}
	code, err := 0, error(nil)
	var j job
	if err = json.Unmarshal([]byte(args[2]), &j); err == nil {
		if args[1] == initArg {
			code, err = beInit(j, args[2])
		} else {
			err = work(context.Background(), report.New(os.Stdout, os.Stderr), j)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		code = 1
	}
	os.Exit(code)
	return true
}

// beInit sets the namespaces up, starts the work and collects what ends until the work has ended.
func beInit(j job, text string) (int, error) {
	if err := setUpMounts(j.Dir); err != nil {
		return 1, err
	}
	if err := setUpNetwork(); err != nil {
		return 1, fmt.Errorf("set up the network: %w", err)
	}
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"bench", workArg, text}, &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 1, fmt.Errorf("start the work: %w", err)
	}
	for {
		var status syscall.WaitStatus
		ended, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 1, fmt.Errorf("wait for the work: %w", err)
		case ended == pid && status.Signaled():
			return 1, fmt.Errorf("the work was ended by signal %s", status.Signal())
		case ended == pid:
			return status.ExitStatus(), nil
		}
	}
}

// setUpMounts keeps what is mounted or written here from the rest of the machine.
func setUpMounts(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	// Docker Engine and containerd write into these whatever they are told.
	for _, lower := range []string{"/etc", "/opt"} {
		name := strings.ReplaceAll(lower, "/", "over-")
		upper, workDir := filepath.Join(dir, name), filepath.Join(dir, name+"-work")
		if err := errors.Join(os.MkdirAll(upper, 0o755), os.MkdirAll(workDir, 0o755)); err != nil {
			return err
		}
		options := "lowerdir=" + lower + ",upperdir=" + upper + ",workdir=" + workDir
		if err := unix.Mount("overlay", lower, "overlay", 0, options); err != nil {
			return fmt.Errorf("mount an overlay over %s: %w", lower, err)
		}
	}
	return nil
}

// setUpNetwork makes a network that leads nowhere, with an address to be reached under.
func setUpNetwork() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "bench0"}, PeerName: "bench1"}
	if err := netlink.LinkAdd(link); err != nil {
		return err
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(hostAddress), Mask: net.CIDRMask(24, 32)}}
	if err := netlink.AddrAdd(link, address); err != nil {
		return err
	}
	peer, err := netlink.LinkByName("bench1")
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetUp(lo), netlink.LinkSetUp(link), netlink.LinkSetUp(peer))
}
