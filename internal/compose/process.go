package compose

import (
	"encoding/hex"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

type artifactEntry struct {
	Source string `json:"source"`
	SHA256 string `json:"sha256"`
	Target string `json:"target"`
	As     string `json:"as"`
	Mode   string `json:"mode"`
}

var artifactRules = keys{"source": well, "sha256": well, "target": well, "as": well, "mode": well}

// process makes the service's task a plain process of the host, where it is to be one.
func (o *one) process(x *extras) {
	at := func(key, format string, args ...any) { o.invalid(tuttiKey+"."+key, format, args...) }
	if !x.Process {
		if len(x.Artifacts) > 0 {
			at("artifacts", "only a process has them: write process: true beside it, or put it into the image")
		}
		if x.Umask != "" {
			at("umask", "only a process has it: write process: true beside it")
		}
		return
	}
	o.isProcess = true
	t := &o.w.Template.Tasks[0]
	t.Driver = "process"
	if len(x.HugePages) > 0 || x.Clocks != nil {
		at("hugepages", "neither it nor clocks are for a process of the host; remove them, or run a container")
	}
	if len(o.Entrypoint)+len(o.Command) == 0 {
		o.invalid("", "a process has no image that says what to run; give command")
	}
	o.onlyContainers()
	if o.Runtime != "" && o.Runtime != model.UnitRuntime {
		o.invalid("runtime", "%q makes containers; for a process of the host %s is accepted, which makes it a unit", o.Runtime, model.UnitRuntime)
	}
	if x.Umask != "" {
		if n, ok := permissions(x.Umask); ok {
			t.Umask = &n
		} else {
			at("umask", "%q is not an octal number up to 777", x.Umask)
		}
	}
	for _, a := range x.Artifacts {
		t.Artifacts = append(t.Artifacts, o.artifact(&a))
	}
	// The host's network is a process's own, unless networks are chosen.
	if o.NetworkMode == "" && len(o.src.places[o.sub("networks")]) == 0 {
		o.NetworkMode, o.Networks = "host", nil
		if len(o.Ports) > 0 {
			o.invalid("ports", "a process is on its node's own network, where its ports are open as they are; remove them, or give it networks")
			o.Ports = nil
		}
	}
}

// onlyContainers refuses what a process of the host cannot have.
func (o *one) onlyContainers() {
	given := map[string]bool{
		"image": o.Image != "", "build": o.Build != nil, "cap_add": len(o.CapAdd) > 0, "cap_drop": len(o.CapDrop) > 0, "privileged": o.Privileged,
		"pid": o.Pid != "", "ipc": o.Ipc != "", "uts": o.Uts != "", "cgroup": o.Cgroup != "", "gpus": len(o.Gpus) > 0,
		"cpuset": o.CPUSet != "", "cpu_shares": o.CPUShares != 0, "memswap_limit": o.MemSwapLimit != 0, "mem_swappiness": o.MemSwappiness != 0,
		"oom_kill_disable": o.OomKillDisable, "device_cgroup_rules": len(o.DeviceCgroupRules) > 0, "blkio_config": o.BlkioConfig != nil,
		"read_only": o.ReadOnly, "devices": len(o.Devices) > 0, "init": o.Init != nil && *o.Init, "shm_size": o.ShmSize > 0,
		"hostname": o.Hostname != "", "domainname": o.DomainName != "", "extra_hosts": len(o.ExtraHosts) > 0 && len(o.src.places[o.sub("networks")]) == 0,
	}
	for _, key := range slices.Sorted(maps.Keys(given)) {
		if given[key] {
			o.invalid(key, "a process of the host cannot have it; remove it, or run a container")
		}
	}
	for name := range o.Sysctls {
		if !isNetworkSysctl(name) {
			o.at(fault.Invalid, "sysctls", []string{name}, "%s would be the node's own: a process has no other", name)
		}
	}
}

func (o *one) artifact(a *artifactEntry) model.Artifact {
	bad := func(word, format string, args ...any) {
		o.at(fault.Invalid, tuttiKey+".artifacts", []string{word}, format, args...)
	}
	out := model.Artifact{Source: a.Source, Digest: "sha256:" + strings.ToLower(strings.TrimPrefix(a.SHA256, "sha256:")), Target: a.Target, As: a.As}
	u, err := url.Parse(a.Source)
	if err != nil || !slices.Contains([]string{"http", "https", "file"}, u.Scheme) || u.Scheme == "file" && (u.Host != "" || !filepath.IsAbs(u.Path)) || u.Scheme != "file" && u.Host == "" {
		bad(a.Source, "source %q is not a URL that begins with https://, http:// or file:///", a.Source)
	}
	if raw, err := hex.DecodeString(strings.TrimPrefix(out.Digest, "sha256:")); err != nil || len(raw) != 32 {
		bad(a.Source, "%s needs sha256, 64 hexadecimal digits, so that what is fetched can be verified", a.Source)
	}
	if a.Target != "" && !filepath.IsLocal(strings.TrimSuffix(a.Target, "/")) {
		bad(a.Source, "target %q does not lie below the process's directory", a.Target)
	}
	if a.As != "" && !slices.Contains(model.ArtifactFormats, a.As) {
		bad(a.Source, "as %q is none of %s", a.As, listed(model.ArtifactFormats))
	}
	if a.Mode != "" {
		var ok bool
		if out.Mode, ok = permissions(a.Mode); !ok {
			bad(a.Source, "mode %q is not an octal number up to 777", a.Mode)
		}
	}
	return out
}

// permissions reads an octal number of three digits.
func permissions(text string) (uint32, bool) {
	n, err := strconv.ParseUint(text, 8, 32)
	return uint32(n), err == nil && n <= 0o777
}
