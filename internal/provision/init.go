package provision

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/cgroup"
)

const (
	initArg = "tutti-host-init"
	// shutdownPatience is how long a host's processes have to end when it shuts down.
	shutdownPatience = 8 * time.Second
	// respawnAfter is how long a node that ended stays down, so that it is back before others take it for
	// lost; longer when it ended soon after its start more often than that.
	respawnAfter, respawnSlowly = 100 * time.Millisecond, time.Second
	settled                     = 10 * time.Second
	soonMost                    = 5
)

// Reexec runs a virtual host's first process when this program was started for that; main calls
// it first, and ends when it returns true.
func Reexec(args []string) bool {
	if len(args) != 3 || args[1] != initArg {
		return false
	}
	told := os.NewFile(4, "told")
	config, err := setUpHost(args[2])
	if err != nil {
		fmt.Fprint(told, err)
		os.Exit(1)
	}
	fmt.Fprint(told, "ok")
	told.Close()
	runInit(config)
	return true
}

// setUpHost makes the host's inside: mounts, name, network.
func setUpHost(path string) (*initConfig, error) {
	if _, err := io.ReadAll(os.NewFile(3, "wait")); err != nil { // until the link is there
		return nil, err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	c := &initConfig{}
	if err := json.Unmarshal(data, c); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return nil, fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Sethostname([]byte(c.Name)); err != nil {
		return nil, fmt.Errorf("set the host name: %w", err)
	}
	return c, setUpNetwork(c)
}

func setUpNetwork(c *initConfig) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find the loopback device: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring the loopback device up: %w", err)
	}
	eth, err := netlink.LinkByName(insideLink)
	if err != nil {
		return fmt.Errorf("find the link: %w", err)
	}
	address, err := netip.ParseAddr(c.Address)
	if err != nil {
		return err
	}
	gateway, err := netip.ParseAddr(c.Gateway)
	if err != nil {
		return err
	}
	if err := netlink.AddrReplace(eth, &netlink.Addr{IPNet: &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(c.Bits, 32)}}); err != nil {
		return fmt.Errorf("add the address: %w", err)
	}
	if err := netlink.LinkSetUp(eth); err != nil {
		return fmt.Errorf("bring the link up: %w", err)
	}
	if err := netlink.RouteReplace(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: gateway.AsSlice()}); err != nil {
		return fmt.Errorf("add the default route: %w", err)
	}
	return nil
}

// runInit keeps the node running and collects what ended, as the first process of a host must.
// It returns, and the host with it ends, after a request to shut down.
func runInit(c *initConfig) {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	node, since := spawn(c), time.Now()
	var respawn <-chan time.Time
	soon := 0 // ends in a row that came soon after the start
	for {
		select {
		case <-respawn:
			respawn, node, since = nil, spawn(c), time.Now()
		case s := <-signals:
			if s != syscall.SIGCHLD {
				shutDown(c, node)
				return
			}
		}
		if ended := reap(node); ended || node == 0 {
			node = 0
			if respawn == nil {
				if soon++; time.Since(since) > settled {
					soon = 0
				}
				delay := respawnAfter
				if soon > soonMost {
					delay = respawnSlowly
				}
				respawn = time.After(delay)
			}
		}
	}
}

// spawn starts the node and returns its process, 0 when that failed.
func spawn(c *initConfig) int {
	out, err := os.OpenFile(c.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		fmt.Fprintln(os.Stderr, "open the node's log:", err)
		return 0
	}
	defer out.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		fmt.Fprintln(os.Stderr, "start the node:", err)
		return 0
	}
	defer null.Close()
	pid, err := syscall.ForkExec(c.Args[0], c.Args, &syscall.ProcAttr{
		Dir: "/", Env: os.Environ(), Files: []uintptr{null.Fd(), out.Fd(), out.Fd()},
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "start the node:", err)
		return 0
	}
	return pid
}

// reap collects every process that ended and reports whether the node was among them.
func reap(node int) (ended bool) {
	for {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return ended
		}
		ended = ended || pid == node
	}
}

// shutDown ends the node, then asks everything else to end, and waits for that a while. The
// kernel kills what is left when the first process ends.
func shutDown(c *initConfig, node int) {
	deadline := time.Now().Add(shutdownPatience)
	if node > 0 {
		_ = syscall.Kill(node, syscall.SIGTERM) // gone already is as good
		for alive(node) && time.Now().Before(deadline.Add(-shutdownPatience/2)) {
			reap(0)
			time.Sleep(10 * time.Millisecond)
		}
	}
	if err := cgroup.Kill(c.Cgroup(), true); err != nil { // which could not end by itself
		fmt.Fprintln(os.Stderr, "kill what is frozen:", err)
	}
	_ = syscall.Kill(-1, syscall.SIGTERM) // all but this process; none is as good
	for time.Now().Before(deadline) {
		reap(0)
		if err := syscall.Kill(-1, 0); errors.Is(err, syscall.ESRCH) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }
