package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/balance"
	"github.com/tutti-run/tutti/internal/cgroup"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/overlay"
	"github.com/tutti-run/tutti/internal/overlay/wireguard"
)

// stopPatience is how long tasks have to end by themselves when their host is taken down.
const stopPatience = 10 * time.Second

// Teardown ends everything that a node of this host runs and removes what it made: tasks, links,
// rules, mounts, cgroups, the run directory. The node's own process must have ended before. What
// the data directory holds stays, apart from runs. It is safe to call again, also after a crash.
func Teardown(ctx context.Context, cfg Config) error { return teardown(ctx, cfg, false) }

// teardown is Teardown; from within, it leaves what belongs to this process: its cgroup, and the Docker socket.
func teardown(ctx context.Context, cfg Config, within bool) error {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	var errs []error
	note := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	if _, err := os.Stat(filepath.Join(cfg.DataDir, "tasks")); err == nil {
		note("stop tasks", stopTasks(ctx, cfg))
	}
	note("stop the names responder", namesProcess(&cfg).Remove(ctx))
	note("stop the ingress", ingressProcess(&cfg, "").Remove(ctx))
	if _, err := os.Stat(filepath.Join(cfg.RunDir, "netns")); err == nil {
		links := &overlay.Overlay{Config: overlay.Config{RunDir: cfg.RunDir, Sealed: wireguard.New(cfg.tunnelDir(), "", "", cfg.Log), Log: cfg.Log}}
		note("remove links", links.Remove(ctx))
		note("remove rules", balance.New(balance.Config{Log: cfg.Log}).Remove(ctx))
	}
	note("unmount", unmountBelow(cfg.RunDir))
	note("unmount", unmountBelow(cfg.DataDir))
	note("forget assignments", os.RemoveAll(filepath.Join(cfg.DataDir, "agent")))
	note("remove sandboxes", os.RemoveAll(cfg.sandboxDir()))
	if !within {
		note("remove cgroups", cgroup.Remove(cfg.Cgroup))
		note("remove the run directory", os.RemoveAll(cfg.RunDir))
		return errors.Join(errs...)
	}
	note("remove cgroups", cgroup.Clear(cfg.Cgroup))
	entries, err := os.ReadDir(cfg.RunDir)
	note("empty the run directory", err)
	for _, e := range entries {
		if path := filepath.Join(cfg.RunDir, e.Name()); path != DockerSocket(cfg.RunDir) {
			note("empty the run directory", os.RemoveAll(path))
		}
	}
	return errors.Join(errs...)
}

// stopTasks asks all tasks to end, then makes them, and drops their runs.
func stopTasks(ctx context.Context, cfg Config) error {
	drivers, err := openDrivers(&cfg)
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range drivers {
		errs = append(errs, stopTasksOf(ctx, d))
	}
	return errors.Join(errs...)
}

func stopTasksOf(ctx context.Context, d driver.Driver) error {
	runs, err := d.List(ctx)
	if err != nil {
		return err
	}
	errs := make([]error, len(runs))
	var wg sync.WaitGroup
	for i, r := range runs {
		wg.Go(func() {
			if r.State != driver.Exited {
				wait, cancel := context.WithTimeout(ctx, stopPatience)
				if d.Signal(wait, r.ID, int(syscall.SIGTERM)) == nil {
					_, _ = d.Wait(wait, r.ID) // whatever it answers, Remove comes next
				}
				cancel()
			}
			errs[i] = d.Remove(ctx, r.ID)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// unmountBelow detaches every mount below a directory, the deepest first.
func unmountBelow(dir string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	slices.SortFunc(mounts, func(a, b *mountinfo.Info) int { return len(b.Mountpoint) - len(a.Mountpoint) })
	var errs []error
	for _, m := range mounts {
		if m.Mountpoint == dir {
			continue // the operator's own
		}
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m.Mountpoint, err))
		}
	}
	return errors.Join(errs...)
}
