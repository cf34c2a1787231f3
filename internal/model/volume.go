package model

import (
	"path/filepath"
	"slices"
	"strings"

	"github.com/tutti-run/tutti/internal/fault"
)

// The options of local volumes are those of mounting: what is mounted in place of a directory of the node.
const (
	VolumeType    = "type"   // of the file system; none, or nothing, with o=bind is a directory of the node
	VolumeDevice  = "device" // what is mounted: a directory, a device, or HOST:/PATH
	VolumeOptions = "o"      // separated by commas
)

// networked are the file systems that every node can mount alike.
var networked = []string{"nfs", "nfs4", "cifs", "smb3", "ceph", "9p"}

// Shared reports whether the volume is on every node the same, so that it lives on none.
func (v *Volume) Shared() bool { return slices.Contains(networked, v.Options[VolumeType]) }

// Mounts reports whether something is mounted for the volume in place of a directory of its own.
func (v *Volume) Mounts() bool {
	return v.Options[VolumeType] != "" || v.Options[VolumeDevice] != "" || v.Options[VolumeOptions] != ""
}

// Check refuses options that mean nothing.
func (v *Volume) Check() error {
	if v.Driver != "" && v.Driver != "local" {
		return fault.New(fault.Unsupported, "volume %s: driver %q is not supported; local is", v.Name, v.Driver)
	}
	for key := range v.Options {
		if key != VolumeType && key != VolumeDevice && key != VolumeOptions {
			return fault.New(fault.Unsupported, "volume %s: option %q is not supported; type, device and o are", v.Name, key)
		}
	}
	if !v.Mounts() {
		return nil
	}
	kind, device := v.Options[VolumeType], v.Options[VolumeDevice]
	bind := slices.ContainsFunc(strings.Split(v.Options[VolumeOptions], ","), func(o string) bool { return o == "bind" || o == "rbind" })
	switch {
	case device == "":
		return fault.New(fault.Invalid, "volume %s: the option device is missing: what is to be mounted", v.Name)
	case (kind == "" || kind == "none") && !bind:
		return fault.New(fault.Invalid, "volume %s: the option type is missing: a file system such as nfs or tmpfs, or none with o=bind", v.Name)
	case bind && !filepath.IsAbs(device):
		return fault.New(fault.Invalid, "volume %s: device %q: an absolute path of the node is accepted with o=bind", v.Name, device)
	}
	return nil
}
