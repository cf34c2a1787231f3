package docker_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// TestHowAContainerIsMade holds what becomes of the options about namespaces, the kernel and devices.
func TestHowAContainerIsMade(t *testing.T) {
	h := newHouse(t)
	make := func(name, host string) *model.Template {
		t.Helper()
		h.want("POST", "/containers/create?name="+name, `{"Image":"busybox:1","HostConfig":`+host+`}`, 201)
		w, _ := store.ByName[*model.Workload](h.store.Snapshot(), model.DefaultNamespace, "containers", name)
		return &w.Template
	}
	if tpl := make("plain", `{}`); tpl.Sharing != nil || tpl.Tasks[0].Tuning != nil || tpl.Tasks[0].Runtime != "" {
		t.Errorf("what asks for nothing is %+v", tpl)
	}
	if tpl := make("host", `{"PidMode":"host","IpcMode":"host","UTSMode":"host","CgroupnsMode":"host"}`); !tpl.HostPIDs || !tpl.HostIPC || *tpl.Sharing != (model.Sharing{HostNames: true, HostCgroups: true}) || tpl.Hostname != "" {
		t.Errorf("the node's namespaces: %+v", tpl)
	}
	make("offers", `{"IpcMode":"shareable"}`)
	if tpl := make("joins", `{"PidMode":"container:offers","IpcMode":"container:offers"}`); *tpl.Sharing != (model.Sharing{PIDsOf: "containers/offers", IPCOf: "containers/offers"}) ||
		len(tpl.Placement.Near) != 1 || tpl.Placement.Near[0].Workloads[0] != "containers/offers" {
		t.Errorf("another container's namespaces: %+v, placed %+v", tpl.Sharing, tpl.Placement.Near)
	}
	tuned := make("tuned", `{"Memory":67108864,"MemorySwap":-1,"MemorySwappiness":5,"CpusetCpus":"0-1","CpuShares":512,"BlkioWeight":300,"OomKillDisable":true,
		"BlkioDeviceReadBps":[{"Path":"/dev/sda","Rate":1000}],"BlkioDeviceWriteIOps":[{"Path":"/dev/sda","Rate":7}],"DeviceCgroupRules":["c 13:* rwm"],"MaskedPaths":[],"ReadonlyPaths":[],
		"SecurityOpt":["seccomp={}","apparmor=mine","no-new-privileges"],"Tmpfs":{"/t":"exec,uid=5"}}`)
	got, err := json.Marshal(tuned.Tasks[0].Tuning)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"cpus":"0-1","cpuShares":512,"swapBytes":-1,"swappiness":5,"noOOMKill":true,"ioWeight":300,` +
		`"io":[{"device":"/dev/sda","readBytes":1000,"writeCounts":7}],"deviceRules":["c 13:* rwm"],"paths":{}}`
	if string(got) != want {
		t.Errorf("tuning is %s\nwant      %s", got, want)
	}
	if opts := strings.Join(tuned.Tasks[0].SecurityOpts, " "); opts != "seccomp={} apparmor=mine no-new-privileges" || tuned.Tasks[0].Mounts[0].Options != "exec,uid=5" {
		t.Errorf("security options are %q, mounts %+v", opts, tuned.Tasks[0].Mounts)
	}
	for body, text := range map[string]string{
		`{"PidMode":"container:nobody"}`:                                  "No such container: nobody",
		`{"IpcMode":"container:plain"}`:                                   "does not share its IPC",
		`{"DeviceRequests":[{"Count":2,"Capabilities":[["gpu"]]}]}`:       "nvidia.com/gpu",
		`{"DeviceRequests":[{"Driver":"cdi","DeviceIDs":["v.com/c=0"]}]}`: "have no device v.com/c=0",
		`{"Runtime":"nonesuch"}`:                                          "have no runtime nonesuch",
		`{"UTSMode":"mine"}`:                                              "invalid UTS mode",
		`{"UsernsMode":"mine"}`:                                           "invalid USER mode",
		`{"UsernsMode":"private"}`:                                        "cannot give instances users of their own",
		`{"UsernsMode":"private","NetworkMode":"host"}`:                   "the node's network",
		`{"SecurityOpt":["userns=private"],"Privileged":true}`:            "all privileges",
		`{"MemorySwap":5}`:                                                "always set the Memory limit",
		`{"BlkioWeight":5}`:                                               "between 10 and 1000",
		`{"DeviceCgroupRules":["x"]}`:                                     "c 13:* rwm",
		`{"DeviceRequests":[{"Driver":"cdi","DeviceIDs":["x"]}]}`:         "invalid CDI device name",
		`{"SecurityOpt":["label=type:x"]}`:                                "--security-opt",
	} {
		status, resp := h.ask("POST", "/containers/create", `{"Image":"busybox:1","HostConfig":`+body+`}`)
		if status < 400 || !strings.Contains(resp, text) {
			t.Errorf("%s: %s, want %q in it", body, resp, text)
		}
	}
}
