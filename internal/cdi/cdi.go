// Package cdi knows the devices that this host offers by name, as the Container Device Interface
// describes them in files below /etc/cdi and /var/run/cdi: VENDOR/CLASS=NAME. It tells which there are,
// and what a container's specification has to have for one of them. The files are read when they
// are asked about; whoever makes or changes them needs to tell nobody.
package cdi

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// Dirs are where the files are, unless people say otherwise; later ones take precedence.
var Dirs = []string{"/etc/cdi", "/var/run/cdi"}

// Host is what a host offers.
type Host struct {
	dirs []string
}

// Open returns the devices that the files in the directories describe.
func Open(dirs []string) *Host { return &Host{dirs: dirs} }

// read reads the files. Those that are wrong are left out, and told of by the error.
func (h *Host) read() (*cdi.Cache, error) {
	cache, err := cdi.NewCache(cdi.WithSpecDirs(h.dirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return nil, fmt.Errorf("read what devices there are: %w", err)
	}
	var problems []error
	all := cache.GetErrors()
	for _, path := range slices.Sorted(maps.Keys(all)) {
		for _, err := range all[path] {
			problems = append(problems, fmt.Errorf("%s: %w", path, err))
		}
	}
	return cache, errors.Join(problems...)
}

// Kind are the devices of a kind, such as nvidia.com/gpu.
type Kind struct {
	Names []string // all of them
	// Distinct are those that can be given out one by one: without one that stands for all, and without
	// further names of the same device.
	Distinct []string
}

// Kinds returns what there is. An error names the files that could not be used; the rest counts.
func (h *Host) Kinds() (map[string]Kind, error) {
	cache, err := h.read()
	if cache == nil {
		return nil, err
	}
	out := map[string]Kind{}
	same := map[string]bool{}
	for _, qualified := range cache.ListDevices() {
		kind, name, ok := model.CDIName(qualified)
		d := cache.GetDevice(qualified)
		if !ok || d == nil {
			continue
		}
		k := out[kind]
		k.Names = append(k.Names, name)
		edits, _ := json.Marshal(d.ContainerEdits) // plain data
		if key := kind + " " + string(edits); name != "all" && !same[key] {
			same[key] = true
			k.Distinct = append(k.Distinct, name)
		}
		out[kind] = k
	}
	for kind, k := range out {
		slices.SortFunc(k.Names, byNumber)
		slices.SortFunc(k.Distinct, byNumber)
		out[kind] = k
	}
	return out, err
}

// byNumber has 2 before 10.
func byNumber(a, b string) int {
	digits := func(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }
	if digits(a) && digits(b) && len(a) != len(b) {
		return len(a) - len(b)
	}
	return strings.Compare(a, b)
}

// Has reports whether there is a device.
func (h *Host) Has(device string) bool {
	cache, _ := h.read() // what could not be used is told of elsewhere
	return cache != nil && cache.GetDevice(device) != nil
}

// Inject returns what a container's specification needs for devices.
func (h *Host) Inject(devices []string) (*specs.Spec, error) {
	cache, problems := h.read()
	if cache == nil {
		return nil, problems
	}
	s := &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{Resources: &specs.LinuxResources{}}}
	if unknown, err := cache.InjectDevices(s, devices...); len(unknown) > 0 {
		return nil, errors.Join(fault.New(fault.Unsupported, "there is no device %s here, as files in %s say", strings.Join(unknown, ", "), strings.Join(h.dirs, " and ")), problems)
	} else if err != nil {
		return nil, fault.New(fault.Unsupported, "devices %s: %w", strings.Join(devices, ", "), err)
	}
	return s, nil
}
