package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/moby/moby/client"
)

func on(method string, args ...any) step { return step{method: method, args: args} }

func (s step) saying(text string) step { s.says = text; return s }
func (s step) not(text string) step    { s.refuses = text; return s }

// all makes every call: of the host, of images, of a container's life, and of Swarm mode.
func (w *walk) all() {
	w.host()
	w.images()
	w.container()
	w.swarm()
	for _, name := range []string{"PluginCreate", "PluginInspect", "PluginRemove", "PluginEnable", "PluginDisable", "PluginUpgrade", "PluginPush", "PluginSet", "PluginInstall"} {
		args := []any{"nosuch"}
		switch name {
		case "PluginCreate":
			args = []any{archive("config.json", "{}"), `{"RepoName":"nosuch"}`}
		case "PluginInstall":
			args = []any{"nosuch", `{"RemoteRef":"nosuch","AcceptAllPermissions":true}`}
		case "PluginUpgrade":
			args = []any{"nosuch", `{"RemoteRef":"nosuch","AcceptAllPermissions":true}`}
		}
		w.call(on(name, args...).not(notYet))
	}
	w.call(on("PluginList"))
	for name, says := range map[string]string{"CheckpointCreate": "page not found", "CheckpointList": "page not found", "CheckpointRemove": "No such container"} { // of the Engine's experiments
		w.call(on(name, "nosuch", `{"CheckpointID":"x"}`).not(says))
	}
}

func (w *walk) host() {
	w.call(on("Ping").saying("APIVersion"))
	w.call(on("ServerVersion").saying("Tutti"))
	w.call(on("Info").saying(`"LocalNodeState":"active"`))
	w.call(on("DiskUsage", `{"Images":true,"Containers":true,"Volumes":true}`))
	w.call(on("RegistryLogin", `{"Username":"someone","Password":"x","ServerAddress":"127.0.0.1:1"}`).not("127.0.0.1:1"))
}

func (w *walk) images() {
	w.call(on("ImageList").saying("IMAGE"))
	w.call(on("ImageInspect", "IMAGE").saying("linux"))
	w.call(on("ImageHistory", "IMAGE"))
	w.call(on("ImageTag", `{"Source":"IMAGE","Target":"walked:go"}`))
	w.call(step{method: "ImageSave", args: []any{[]string{"walked:go"}}, says: "manifest.json"})
	saved := w.last
	w.call(on("ImageRemove", "walked:go").saying("walked:go"))
	w.call(step{method: "ImageLoad", args: []any{strings.NewReader(saved)}, says: "walked:go"})
	w.call(step{method: "ImageImport", args: []any{client.ImageImportSource{Source: archive("etc/hello", "hello\n"), SourceName: "-"}, "walked:import"}})
	w.call(on("ImagePull", "127.0.0.1:1/nosuch:1").not("127.0.0.1:1"))
	w.call(on("ImagePush", "127.0.0.1:1/nosuch:1").not("nosuch"))
	w.call(on("ImagePrune"))
	w.call(on("DistributionInspect", "IMAGE").saying("sha256:"))
	w.call(on("ImageAttestations", "IMAGE").not("requires API version 1.55")) // which the client finds out by itself
	w.call(on("ImageSearch", "busybox").not(notYet))
	w.call(step{method: "ImageBuild", args: []any{archive("Dockerfile", "FROM "+w.image)}, refuses: notYet})
	w.call(on("BuildCachePrune").not(notYet))
	w.call(on("BuildCancel", "x").not(notYet))
}

func (w *walk) container() {
	w.call(on("VolumeCreate", `{"Name":"gowalk","Labels":{"walk":"go"}}`).saying("gowalk"))
	w.call(on("VolumeList", `{"Filters":{"label":{"walk":true}}}`).saying("gowalk"))
	w.call(on("VolumeInspect", "gowalk").saying("local"))
	w.call(on("VolumeUpdate", "gowalk", `{"Spec":{}}`).not(notYet))
	w.call(on("NetworkCreate", "gowalk", `{"Labels":{"walk":"go"}}`))
	w.call(on("NetworkList", `{"Filters":{"name":{"gowalk":true}}}`).saying("gowalk"))
	w.until("its subnet", on("NetworkInspect", "gowalk"), "Subnet")
	w.call(on("NetworkInspect", "gowalk").saying("Subnet"))
	w.call(on("ContainerCreate", `{"Name":"gowalk","Config":{"Image":"IMAGE","Cmd":["sh","-c","echo out; sleep 1000"],"Env":["A=b"],"Labels":{"walk":"go"},"ExposedPorts":{"80/tcp":{}}},
		"HostConfig":{"Binds":["gowalk:/data"],"Memory":67108864,"NetworkMode":"gowalk","PortBindings":{"80/tcp":[{"HostPort":"18096"}]}}}`))
	w.call(on("ContainerStart", "gowalk"))
	w.call(on("ContainerInspect", "gowalk").saying(`"Running":true`))
	w.call(on("ContainerList", `{"Filters":{"label":{"walk=go":true}}}`).saying("/gowalk"))
	w.until("the first line of its log", step{method: "ContainerLogs", args: []any{"gowalk", `{"ShowStdout":true}`}}, "out")
	w.call(on("ContainerLogs", "gowalk", `{"ShowStdout":true}`).saying("out"))
	w.call(on("ContainerTop", "gowalk").saying("sleep"))
	w.call(on("ContainerStats", "gowalk", `{}`).saying("memory_stats"))
	w.call(step{method: "CopyToContainer", args: []any{"gowalk", client.CopyToContainerOptions{DestinationPath: "/tmp", Content: archive("in", "given\n")}}})
	w.call(on("ContainerStatPath", "gowalk", `{"Path":"/tmp/in"}`).saying(`"name":"in"`))
	w.call(on("CopyFromContainer", "gowalk", `{"SourcePath":"/tmp/in"}`).saying("given"))
	w.call(on("ContainerDiff", "gowalk").saying("/tmp/in"))
	w.call(on("ContainerExport", "gowalk").saying("given"))
	w.call(on("ExecCreate", "gowalk", `{"Cmd":["cat","/tmp/in"],"AttachStdout":true}`).saying("ID"))
	id := w.id()
	w.call(on("ExecAttach", id).saying("given"))
	w.call(on("ExecInspect", id).saying(`"ExitCode":0`))
	w.call(on("ExecCreate", "gowalk", `{"Cmd":["sleep","1000"],"TTY":true}`).saying("ID"))
	id = w.id()
	w.call(on("ExecStart", id, `{"Detach":true,"TTY":true}`))
	w.call(on("ExecResize", id, `{"Height":20,"Width":80}`))
	w.call(on("ContainerResize", "gowalk", `{"Height":20,"Width":80}`))
	w.call(on("ContainerPause", "gowalk"))
	w.call(on("ContainerUnpause", "gowalk"))
	w.call(on("ContainerRename", "gowalk", `{"NewName":"gowalked"}`))
	w.call(on("ContainerRename", "gowalked", `{"NewName":"gowalk"}`))
	w.call(on("ContainerUpdate", "gowalk", `{"RestartPolicy":{"Name":"no"}}`))
	w.call(on("ContainerCommit", "gowalk", `{"Reference":"walked:commit","Changes":["CMD [\"true\"]"]}`).saying("sha256:"))
	w.call(on("NetworkCreate", "goother"))
	w.call(on("NetworkConnect", "goother", `{"Container":"gowalk"}`))
	w.call(on("NetworkDisconnect", "gowalk", `{"Container":"gowalk"}`))
	w.call(on("ContainerRestart", "gowalk", `{"Timeout":0}`))
	w.call(on("ContainerKill", "gowalk", `{"Signal":"SIGUSR1"}`))
	w.call(on("ContainerStop", "gowalk", `{"Timeout":0}`))
	w.call(on("ContainerWait", "gowalk").saying("exit code 137"))
	w.call(on("ContainerRemove", "gowalk", `{"Force":true}`))
	w.call(on("ContainerCreate", `{"Name":"gotalk","Config":{"Image":"IMAGE","Cmd":["echo","said"],"AttachStdout":true},"HostConfig":{"NetworkMode":"none"}}`))
	go func() { // the one that attaches waits for the start
		time.Sleep(500 * time.Millisecond)
		_, _ = w.client.ContainerStart(context.Background(), "gotalk", client.ContainerStartOptions{}) // what it says is looked for below
	}()
	w.call(on("ContainerAttach", "gotalk", `{"Stream":true,"Stdout":true,"Logs":true}`).saying("said"))
	w.call(on("ContainerPrune").saying("ContainersDeleted"))
	w.call(on("NetworkRemove", "gowalk"))
	w.call(on("NetworkPrune").saying("goother"))
	w.call(on("VolumeRemove", "gowalk"))
	w.call(on("VolumePrune"))
	w.call(on("Events", fmt.Sprintf(`{"Since":"1","Until":"%d"}`, time.Now().Unix())).saying("container die"))
	for _, tag := range []string{"walked:go", "walked:import", "walked:commit"} {
		w.call(on("ImageRemove", tag))
	}
}

func (w *walk) swarm() {
	w.call(on("SwarmInspect").saying("JoinTokens"))
	w.call(on("SwarmInit").not("already part of a swarm"))
	w.call(on("SwarmJoin").not("already part of a swarm"))
	w.call(on("SwarmLeave").not(notYet))
	w.call(on("SwarmGetUnlockKey").saying("Key"))
	w.call(on("SwarmUnlock", `{"Key":"x"}`).not("not locked"))
	version, spec := w.versioned("SwarmInspect", "Swarm")
	w.call(on("SwarmUpdate", fmt.Sprintf(`{"Version":%s,"Spec":%s,"RotateWorkerToken":true}`, version, spec)))
	w.call(on("NodeList").saying("ready"))
	w.call(on("NodeInspect", "self").saying("manager"))
	version, spec = w.versioned("NodeInspect", "Node", "self")
	w.call(on("NodeUpdate", "self", fmt.Sprintf(`{"Version":%s,"Spec":%s}`, version, spec)))
	w.call(on("NodeRemove", "self").not("not down"))
	for _, kind := range []string{"Secret", "Config"} {
		w.call(on(kind+"Create", `{"Spec":{"Name":"gowalk","Data":"aGlkZGVu"}}`))
		w.call(on(kind+"List", `{"Filters":{"name":{"gowalk":true}}}`).saying("gowalk"))
		w.call(on(kind+"Inspect", "gowalk").saying("gowalk"))
		version, _ = w.versioned(kind+"Inspect", kind, "gowalk")
		w.call(on(kind+"Update", "gowalk", fmt.Sprintf(`{"Version":%s,"Spec":{"Name":"gowalk","Labels":{"a":"b"}}}`, version)))
		defer func() { w.call(on(kind+"Remove", "gowalk")) }()
	}
	w.call(on("ServiceCreate", `{"Spec":{"Name":"gowalk","TaskTemplate":{"ContainerSpec":{"Image":"IMAGE","Command":["sh","-c","echo served; sleep 1000"]}},"Mode":{"Replicated":{"Replicas":2}}}}`))
	w.call(on("ServiceList", `{"Filters":{"name":{"gowalk":true}},"Status":true}`).saying("gowalk"))
	w.until("two tasks that run", on("TaskList", `{"Filters":{"service":{"gowalk":true},"desired-state":{"running":true}}}`), `"State":"running"`)
	w.call(on("TaskList", `{"Filters":{"service":{"gowalk":true}}}`).saying("served"))
	var tasks struct{ Items []struct{ ID string } }
	if json.Unmarshal([]byte(w.last), &tasks) == nil && len(tasks.Items) > 0 {
		w.call(on("TaskInspect", tasks.Items[0].ID).saying("ContainerStatus"))
		w.until("what a task says", on("TaskLogs", tasks.Items[0].ID, `{"ShowStdout":true}`), "served")
	}
	w.until("what the service says", on("ServiceLogs", "gowalk", `{"ShowStdout":true}`), "served")
	w.call(on("ServiceInspect", "gowalk").saying(`"Replicas":2`))
	version, spec = w.versioned("ServiceInspect", "Service", "gowalk")
	w.call(on("ServiceUpdate", "gowalk", fmt.Sprintf(`{"Version":%s,"Spec":%s}`, version, strings.Replace(spec, `"Replicas":2`, `"Replicas":1`, 1))))
	w.call(on("ServiceRemove", "gowalk"))
	w.until("the end of its containers", on("ContainerList", `{"All":true,"Filters":{"label":{"com.docker.swarm.service.name=gowalk":true}}}`), `"Items":[]`)
	// The connection for BuildKit.
	w.call(on("DialHijack", "/session", "h2c").not("501"))
}

// id is the ID that the last answer told of.
func (w *walk) id() string {
	var answer struct{ ID string }
	_ = json.Unmarshal([]byte(w.last), &answer) // without one the next call says so
	return answer.ID
}

// versioned inspects something, and tells its version and specification, both in JSON.
func (w *walk) versioned(method, key string, args ...any) (version, spec string) {
	w.call(on(method, args...))
	answer := map[string]struct{ Version, Spec json.RawMessage }{}
	_ = json.Unmarshal([]byte(w.last), &answer) // without one the next call says so
	return string(answer[key].Version), string(answer[key].Spec)
}

// until makes a call again and again, until it says something.
func (w *walk) until(what string, s step, says string) {
	for until := time.Now().Add(patience); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
		if said, err := w.invoke(s); err == nil && strings.Contains(said, says) {
			w.walked[s.method] = true
			return
		}
	}
	w.wrong = append(w.wrong, fmt.Sprintf("%s: %s does not come about", s.method, what))
}
