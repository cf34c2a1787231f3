package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/cgroups/systemd"

	"github.com/tutti-run/tutti/internal/cdi"
	"github.com/tutti-run/tutti/internal/driver/oci"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/overlay"
	"github.com/tutti-run/tutti/internal/overlay/wireguard"
)

// features are what this host has for some workloads only: runtimes, and devices with names. They come and
// go while the node runs.
type features struct {
	runtimes oci.Runtimes
	devices  *cdi.Host
	users    func() error // why instances cannot have users of their own; found out once

	sealed    *wireguard.Tunnel // for encrypted networks; nil: this host can have none
	tunnelKey string            // by which others know it

	mu       sync.Mutex
	versions map[string]string // of programs, by path and time of change
	seen     string            // what was told last
	problem  string            // with the files about devices
}

// describe adds them to what is said of this node.
func (f *features) describe(n *model.Node) (problem error) {
	for name, path := range f.runtimes.All() {
		n.Attributes[model.RuntimeAttribute+name] = f.version(path)
	}
	if systemd.IsRunningSystemd() {
		n.Attributes[model.RuntimeAttribute+model.UnitRuntime] = strings.Trim(f.version("/lib/systemd/systemd"), "()")
	}
	if f.users() == nil {
		n.Attributes[model.UsersAttribute] = "true"
	}
	if f.sealed != nil {
		n.Attributes[model.WireGuardAttribute], n.Attributes[model.WireGuardKeyAttribute] = f.sealed.Way, f.tunnelKey
	}
	if parents := overlay.Parents(); len(parents) > 0 {
		n.Attributes[model.DriverMacvlan] = strings.Join(parents, ",")
	}
	kinds, problem := f.devices.Kinds()
	for kind, k := range kinds {
		n.Attributes[model.CDIAttribute+kind] = strings.Join(k.Names, ",")
		if len(k.Distinct) == 0 {
			continue
		}
		if n.Capacity.Custom == nil {
			n.Capacity.Custom = map[string]int64{}
		}
		if n.Devices == nil {
			n.Devices = map[string][]string{}
		}
		n.Capacity.Custom[kind], n.Devices[kind] = int64(len(k.Distinct)), k.Distinct
	}
	return problem
}

func (f *features) version(path string) string {
	key := path
	if st, err := os.Stat(path); err == nil {
		key = fmt.Sprint(path, " ", st.ModTime().UnixNano(), " ", st.Size())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	v, ok := f.versions[key]
	if !ok {
		if f.versions == nil {
			f.versions = map[string]string{}
		}
		v = oci.VersionOf(path)
		f.versions[key] = v
	}
	return v
}

// featuresEvery is how often it is looked whether something came or went.
const featuresEvery = 10 * time.Second

// watch calls changed when something came or went, until ctx is done.
func (f *features) watch(ctx context.Context, cfg *Config, changed func()) error {
	for {
		n := &model.Node{Attributes: map[string]string{}}
		problem := errors.Join(f.describe(n))
		var all []string
		for _, key := range slices.Sorted(maps.Keys(n.Attributes)) {
			all = append(all, key+"="+n.Attributes[key])
		}
		now, text := strings.Join(all, " "), ""
		if problem != nil {
			text = problem.Error()
		}
		f.mu.Lock()
		news, bad := now != f.seen, text != f.problem && text != ""
		f.seen, f.problem = now, text
		f.mu.Unlock()
		if bad {
			cfg.Log.Warn("some files that describe devices cannot be used", "problem", text)
		}
		if news {
			changed()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(featuresEvery):
		}
	}
}
