package oci

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/fault"
)

// Runtimes are the OCI runtimes of this host that people named, name → path of the program. Those that
// are known by name are found where programs usually are.
type Runtimes map[string]string

// known are the runtimes that are looked for, name → name of the program. Nothing else is: a
// workload must not choose any program of the host.
var known = map[string]string{"runc": "runc", "crun": "crun", "youki": "youki", "runsc": "runsc", "kata": "kata-runtime"}

// programDirs are where programs are looked for, whatever the environment of this process says.
var programDirs = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", "/opt/kata/bin"}

// Find returns the program of a runtime.
func (r Runtimes) Find(name string) (string, error) {
	if path := r.find(name); path != "" {
		return path, nil
	}
	if path := r[name]; path != "" {
		return "", fault.New(fault.Unsupported, "OCI runtime %q is to be %s, which is no program here", name, path)
	}
	there := "there is none but the built-in one"
	if names := slices.Sorted(maps.Keys(r.All())); len(names) > 0 {
		there = "there are the built-in one and " + strings.Join(names, ", ")
	}
	return "", fault.New(fault.Unsupported, "there is no OCI runtime %q here; %s", name, there)
}

func (r Runtimes) find(name string) string {
	if path := r[name]; path != "" {
		if executable(path) {
			return path
		}
		return ""
	}
	if program := known[name]; program != "" {
		for _, dir := range programDirs {
			if path := filepath.Join(dir, program); executable(path) {
				return path
			}
		}
	}
	return ""
}

// All returns the runtimes that there are, name → path.
func (r Runtimes) All() map[string]string {
	out := map[string]string{}
	for _, names := range []map[string]string{known, r} {
		for name := range names {
			if path := r.find(name); path != "" {
				out[name] = path
			}
		}
	}
	return out
}

func executable(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && unix.Access(path, unix.X_OK) == nil
}

// VersionOf asks the program of a runtime for its version: "unknown" when it does not tell.
func VersionOf(path string) string {
	out, err := exec.Command(path, "--version").Output()
	line, _, _ := strings.Cut(string(out), "\n")
	if f := strings.Fields(line); err == nil && len(f) > 0 {
		return f[len(f)-1]
	}
	return "unknown"
}
