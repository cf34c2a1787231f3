package oci

import (
	"strings"

	"github.com/opencontainers/runc/libcontainer/configs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// rlimitNumbers are the kernel's numbers of process limits.
var rlimitNumbers = map[string]int{
	"cpu": 0, "fsize": 1, "data": 2, "stack": 3, "core": 4, "rss": 5, "nproc": 6, "nofile": 7, "memlock": 8, "as": 9,
	"locks": 10, "sigpending": 11, "msgqueue": 12, "nice": 13, "rtprio": 14, "rttime": 15,
}

// posixLimits are the same limits in the terms of the OCI runtime specification.
func posixLimits(list []model.Ulimit) ([]specs.POSIXRlimit, error) {
	var out []specs.POSIXRlimit
	for _, l := range list {
		if _, ok := rlimitNumbers[strings.ToLower(l.Name)]; !ok {
			return nil, fault.New(fault.Invalid, "there is no process limit %q", l.Name)
		}
		out = append(out, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(l.Name), Soft: uint64(l.Soft), Hard: uint64(l.Hard)})
	}
	return out, nil
}

// rlimits are the limits of a container's processes: libcontainer takes them from each process, not
// from the container's configuration. A negative limit is none.
func rlimits(list []model.Ulimit) ([]configs.Rlimit, error) {
	var out []configs.Rlimit
	for _, l := range list {
		n, ok := rlimitNumbers[strings.ToLower(l.Name)]
		if !ok {
			return nil, fault.New(fault.Invalid, "there is no process limit %q", l.Name)
		}
		out = append(out, configs.Rlimit{Type: n, Soft: uint64(l.Soft), Hard: uint64(l.Hard)})
	}
	return out, nil
}
