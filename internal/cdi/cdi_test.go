package cdi

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tutti-run/tutti/internal/fault"
)

const nulls = `
cdiVersion: "0.6.0"
kind: example.com/null
devices:
- name: "0"
  containerEdits: {env: [NULL=zero], deviceNodes: [{path: /dev/null0, hostPath: /dev/null}]}
- name: "10"
  containerEdits: {env: [NULL=ten], deviceNodes: [{path: /dev/null10, hostPath: /dev/null}]}
- name: "2"
  containerEdits: {deviceNodes: [{path: /dev/null2, hostPath: /dev/null}]}
- name: NULL-4711
  containerEdits: {deviceNodes: [{path: /dev/null2, hostPath: /dev/null}]}
- name: all
  containerEdits: {deviceNodes: [{path: /dev/null0, hostPath: /dev/null}, {path: /dev/null2, hostPath: /dev/null}]}
containerEdits:
  env: [NULLS=yes]
  mounts: [{hostPath: /usr/lib/null, containerPath: /usr/lib/null, options: [ro, bind]}]
`

func TestDevicesByName(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	h := Open([]string{filepath.Join(dir, "missing"), dir})
	if kinds, err := h.Kinds(); err != nil || len(kinds) != 0 {
		t.Fatalf("an empty directory has %v, %v", kinds, err)
	}
	write("nulls.yaml", nulls)
	write("broken.json", `{"kind": 5}`)
	kinds, err := h.Kinds()
	if err == nil || !strings.Contains(err.Error(), "broken.json") {
		t.Errorf("error is %v, want the file named that cannot be used", err)
	}
	k := kinds["example.com/null"]
	if len(kinds) != 1 || !slices.Equal(k.Names, []string{"0", "2", "10", "NULL-4711", "all"}) || !slices.Equal(k.Distinct, []string{"0", "2", "10"}) {
		t.Errorf("there is %+v", kinds)
	}
	s, err := h.Inject([]string{"example.com/null=10", "example.com/null=0"})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(s.Process.Env, []string{"NULLS=yes", "NULL=zero"}) { // the last value counts
		t.Errorf("environment is %q", s.Process.Env)
	}
	if len(s.Linux.Devices) != 2 || s.Linux.Devices[0].Path != "/dev/null10" || s.Linux.Devices[0].Major != 1 || s.Linux.Devices[0].Minor != 3 || len(s.Mounts) != 1 {
		t.Errorf("devices are %+v, mounts %+v", s.Linux.Devices, s.Mounts)
	}
	if len(s.Linux.Resources.Devices) != 2 || !s.Linux.Resources.Devices[0].Allow {
		t.Errorf("rules are %+v", s.Linux.Resources.Devices)
	}
	if _, err := h.Inject([]string{"example.com/null=3"}); !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "example.com/null=3") {
		t.Errorf("error is %v, want the device named that there is not", err)
	}
	if !h.Has("example.com/null=all") || h.Has("example.com/null=3") || h.Has("null") {
		t.Error("a device is where there is none, or the other way round")
	}
}
