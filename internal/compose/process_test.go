package compose

import (
	"os"
	"slices"
	"testing"

	"github.com/tutti-run/tutti/internal/model"
)

// processEffects are effects of the keys of plain processes.
var processEffects = map[string]struct{ with, without string }{
	ours + "process":          {with: "services:\n  some: {command: x, x-tutti: {process: true}}"},
	ours + "umask":            {with: "services:\n  some: {command: x, x-tutti: {process: true, umask: '027'}}", without: "services:\n  some: {command: x, x-tutti: {process: true}}"},
	ours + "artifacts.source": {with: "services:\n  some: {command: x, x-tutti: {process: true, artifacts: [{source: https://a.example/b, sha256: " + digestOfNothing + "}]}}", without: "services:\n  some: {command: x, x-tutti: {process: true}}"},
	ours + "artifacts.sha256": {with: "services:\n  some: {command: x, x-tutti: {process: true, artifacts: [{source: https://a.example/b, sha256: " + digestOfNothing + "}]}}", without: "services:\n  some: {command: x, x-tutti: {process: true}}"},
	ours + "artifacts.target": {with: "services:\n  some: {command: x, x-tutti: {process: true, artifacts: [{source: https://a.example/b, sha256: " + digestOfNothing + ", target: bin/}]}}", without: "services:\n  some: {command: x, x-tutti: {process: true, artifacts: [{source: https://a.example/b, sha256: " + digestOfNothing + "}]}}"},
	ours + "artifacts.as":     {with: "services:\n  some: {command: x, x-tutti: {process: true, artifacts: [{source: https://a.example/b, sha256: " + digestOfNothing + ", as: zip}]}}", without: "services:\n  some: {command: x, x-tutti: {process: true, artifacts: [{source: https://a.example/b, sha256: " + digestOfNothing + "}]}}"},
	ours + "artifacts.mode":   {with: "services:\n  some: {command: x, x-tutti: {process: true, artifacts: [{source: https://a.example/b, sha256: " + digestOfNothing + ", mode: '0700'}]}}", without: "services:\n  some: {command: x, x-tutti: {process: true, artifacts: [{source: https://a.example/b, sha256: " + digestOfNothing + "}]}}"},
}

const digestOfNothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestProcessKeysAreRefusedByLine(t *testing.T) {
	for line, want := range map[string]string{
		"x-tutti: {process: true}":                                     "compose.yaml:3: services.some.image: a process of the host cannot have it; remove it, or run a container",
		"runtime: runc\n    x-tutti: {process: true}":                  `compose.yaml:4: services.some.runtime: "runc" makes containers; for a process of the host systemd is accepted, which makes it a unit`,
		"x-tutti: {umask: '022'}":                                      "compose.yaml:4: services.some.x-tutti.umask: only a process has it: write process: true beside it",
		"x-tutti: {process: true, umask: '9'}":                         `compose.yaml:4: services.some.x-tutti.umask: "9" is not an octal number up to 777`,
		"x-tutti: {process: true, artifacts: [{source: 'ftp://a/b'}]}": `compose.yaml:4: services.some.x-tutti.artifacts: source "ftp://a/b" is not a URL that begins with https://, http:// or file:///`,
		"x-tutti: {process: true, artifacts: [{url: 'http://a/b'}]}":   "compose.yaml:4: services.some.x-tutti.artifacts.0.url: there is no such key",
	} {
		t.Chdir(t.TempDir())
		if err := os.WriteFile("compose.yaml", []byte("services:\n  some:\n    image: a\n    "+line+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := Load(t.Context(), Options{Files: []string{"compose.yaml"}, Name: "shop"})
		if err == nil || !slices.Contains(sentences(err), want) {
			t.Errorf("%s: error is\n %v\nwant\n %s", line, err, want)
		}
	}
}

func TestProcessesOfTheHost(t *testing.T) {
	t.Chdir(t.TempDir())
	text := `services:
  plain:
    command: ["./server", "-v"]
    user: daemon
    working_dir: data
    runtime: systemd
    x-tutti:
      process: true
      umask: "027"
      artifacts:
        - {source: "https://files.example/server.tar.gz", sha256: ` + digestOfNothing + `}
        - {source: "file:///opt/server.conf", sha256: "sha256:` + digestOfNothing + `", target: conf/, mode: "0640"}
  member:
    command: [server]
    networks: [default]
    ports: ["8080:80"]
    x-tutti: {process: true}
  box: {image: a}
`
	if err := os.WriteFile("compose.yaml", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	p := mustLoad(t, Options{Files: []string{"compose.yaml"}, Name: "shop"})
	plain := workload(t, &p.Deployment, "plain").Template
	task := plain.Tasks[0]
	if task.Driver != "process" || task.Runtime != model.UnitRuntime || !plain.HostNetwork || len(plain.Networks) != 0 || task.User != "daemon" || task.WorkingDir != "data" || task.Umask == nil || *task.Umask != 0o027 {
		t.Errorf("the process is %+v in %+v", task, plain)
	}
	want := []model.Artifact{
		{Source: "https://files.example/server.tar.gz", Digest: "sha256:" + digestOfNothing},
		{Source: "file:///opt/server.conf", Digest: "sha256:" + digestOfNothing, Target: "conf/", Mode: 0o640},
	}
	if !slices.Equal(task.Artifacts, want) {
		t.Errorf("its artifacts are %+v, want %+v", task.Artifacts, want)
	}
	member := workload(t, &p.Deployment, "member").Template
	if member.HostNetwork || len(member.Networks) != 1 || member.Tasks[0].Driver != "process" {
		t.Errorf("a process with networks is %+v", member)
	}
	if svc := service(&p.Deployment, "member"); svc == nil || len(svc.Ports) != 1 {
		t.Errorf("its service is %+v", svc)
	}
	if box := workload(t, &p.Deployment, "box").Template; box.Tasks[0].Driver != "" || box.HostNetwork {
		t.Errorf("a container beside it is %+v", box)
	}
}
