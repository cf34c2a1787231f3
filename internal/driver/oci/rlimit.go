package oci

import (
	"strings"

	"github.com/opencontainers/runc/libcontainer/configs"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// rlimitNumbers are the kernel's numbers of process limits.
var rlimitNumbers = map[string]int{
	"cpu": 0, "fsize": 1, "data": 2, "stack": 3, "core": 4, "rss": 5, "nproc": 6, "nofile": 7, "memlock": 8, "as": 9,
	"locks": 10, "sigpending": 11, "msgqueue": 12, "nice": 13, "rtprio": 14, "rttime": 15,
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
