package compose

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

func mustLoad(t *testing.T, o Options) *Project {
	t.Helper()
	p, err := Load(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func workload(t *testing.T, d *core.Deployment, name string) *model.Workload {
	t.Helper()
	i := slices.IndexFunc(d.Workloads, func(w *model.Workload) bool { return w.Name == name })
	if i < 0 {
		t.Fatalf("there is no workload %s", name)
	}
	return d.Workloads[i]
}

func service(d *core.Deployment, name string) *model.Service {
	i := slices.IndexFunc(d.Services, func(s *model.Service) bool { return s.Name == name })
	if i < 0 {
		return nil
	}
	return d.Services[i]
}

func equal(t *testing.T, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s:\n got %+v\nwant %+v", what, got, want)
	}
}

func TestEveryHonouredKeyArrives(t *testing.T) {
	p := mustLoad(t, Options{Files: []string{"testdata/works/full/compose.yaml"}})
	d := &p.Deployment
	equal(t, "application", d.Application, "full")
	equal(t, "source", d.Source, "compose")

	w := workload(t, d, "api")
	task := w.Template.Tasks[0]
	mounts := task.Mounts
	task.Mounts = nil
	equal(t, "task", task, model.TaskSpec{
		Name: "api", Image: "registry.example.com/api:1.2", Entrypoint: []string{}, Args: []string{"serve", "--port", "80 80"},
		Env: []string{"A=1", "B=two", "EMPTY="}, User: "1000:1000", Groups: []string{"audio", "44"}, WorkingDir: "/srv",
		Labels: map[string]string{"tier": "back"}, Init: true, StopSignal: "SIGQUIT", CapAdd: []string{"NET_ADMIN"}, CapDrop: []string{"ALL"},
		Privileged: true, ReadOnlyRoot: true, SecurityOpts: []string{"no-new-privileges", "seccomp=unconfined"},
		Ulimits: []model.Ulimit{{Name: "memlock", Soft: -1, Hard: -1}, {Name: "nofile", Soft: 20000, Hard: 40000}, {Name: "nproc", Soft: 65535, Hard: 65535}},
		Devices: []model.Device{{Host: "/dev/fuse", Container: "/dev/fuse1", Permissions: "rw"}},
		TTY:     true, Stdin: true, ShmBytes: 128 << 20, OOMScoreAdjust: -500,
		Limit:   model.Resources{NanoCPUs: 100_000_000, MemoryBytes: 64 << 20, Pids: 50},
		Reserve: model.Resources{NanoCPUs: 50_000_000, MemoryBytes: 32 << 20, Custom: map[string]int64{"ssd": 2}},
		Health: &model.Probe{
			Exec: []string{"curl", "-f", "localhost"}, Interval: 10 * time.Second, Timeout: 3 * time.Second,
			StartPeriod: 40 * time.Second, StartInterval: time.Second, Retries: 5,
		},
	})
	equal(t, "mounts", mounts, []model.Mount{
		{Type: model.MountVolume, Source: "data", Target: "/data", ReadOnly: true},
		{Type: model.MountBind, Source: "/var/lib/thing", Target: "/thing", Propagation: "rslave", CreateHostPath: true},
		{Type: model.MountVolume, Target: "/scratch"},
		{Type: model.MountVolume, Source: "/media", Target: "/media", NoCopy: true, SubPath: "films"},
		{Type: model.MountTmpfs, Target: "/fast", SizeBytes: 10 << 20, Mode: 0o700},
		{Type: model.MountBind, Source: "/etc/ssl", Target: "/ssl"},
		{Type: model.MountTmpfs, Target: "/run"},
		{Type: model.MountTmpfs, Target: "/cache", SizeBytes: 1 << 20, Mode: 0o755, ReadOnly: true},
		{Type: model.MountSecret, Source: "token", Target: "/run/secrets/token", Mode: 0o444, ReadOnly: true},
		{Type: model.MountSecret, Source: "the-key", Target: "/etc/key", UID: "10", GID: "20", Mode: 0o400, ReadOnly: true},
		{Type: model.MountSecret, Source: "/outside", Target: "/run/secrets/renamed", Mode: 0o444, ReadOnly: true},
		{Type: model.MountConfig, Source: "motd", Target: "/motd", Mode: 0o444, ReadOnly: true},
		{Type: model.MountConfig, Source: "motd", Target: "/etc/motd", Mode: 0o440, ReadOnly: true},
	})
	template := w.Template
	template.Tasks = nil
	equal(t, "template", template, model.Template{
		Hostname: "api", Domainname: "example.com", Sysctls: map[string]string{"net.core.somaxconn": "1024"}, Labels: map[string]string{"tier": "back"},
		Networks:   []model.Attachment{{Network: "backbone"}, {Network: "front"}, {Network: "/common"}},
		DNS:        model.DNSConfig{Servers: []string{"9.9.9.9"}, Search: []string{"example.com"}, Options: []string{"ndots:2"}},
		ExtraHosts: []model.HostEntry{{Name: "db.local", Address: "10.0.0.5"}, {Name: "host.internal", Address: "host-gateway"}},
		StopGrace:  90 * time.Second,
		Restart:    model.RestartPolicy{Condition: model.RestartOnFailure, Delay: 2 * time.Second, MaxAttempts: 4, Window: time.Minute},
		Placement: model.Placement{
			Constraints: []model.Constraint{
				{Key: "node.role", Operator: model.Equal, Values: []string{"server"}},
				{Key: "node.labels.zone", Operator: model.NotEqual, Values: []string{"west"}},
				{Key: "node.platform.arch", Operator: model.Equal, Values: []string{"amd64"}},
				{Key: "node.hostname", Operator: model.Equal, Values: []string{"n1"}},
			},
			Spread: []string{"node.labels.zone"}, MaxPerNode: 2, Platforms: []string{"linux/arm64"},
		},
	})
	equal(t, "labels", w.Labels, map[string]string{"team": "one"})
	equal(t, "update", w.Update, model.UpdatePolicy{
		Delay: time.Second, Monitor: 20 * time.Second, MaxFailureRatio: float64(float32(0.3)), Order: model.StopFirst, OnFailure: model.PauseOnFailure,
	})
	equal(t, "rollback", w.Rollback, model.UpdatePolicy{Parallelism: 2, Monitor: 5 * time.Second, Order: model.StopFirst, OnFailure: model.ContinueOnFailure})
	equal(t, "dependencies", w.DependsOn, []model.Dependency{
		{Workload: "db", Condition: model.DependencyHealthy}, {Workload: "extra", Condition: model.DependencyStarted, Optional: true},
		{Workload: "setup", Condition: model.DependencyCompleted},
	})
	equal(t, "service", service(d, "api"), &model.Service{
		Meta: model.Meta{Name: "api", Labels: map[string]string{"team": "one"}}, WorkloadID: "api", DNSRoundRobin: true,
		Networks: []string{"backbone", "front", "/common"},
		Aliases:  map[string][]string{"front": {"api2", "the-api", "www"}, "backbone": {"the-api"}, "/common": {"the-api"}},
		Ports: []model.ServicePort{
			{Protocol: "tcp", Target: 80, Published: 8080}, {Protocol: "udp", Target: 9000, Published: 8000}, {Protocol: "udp", Target: 9001, Published: 8001},
			{Name: "https", Protocol: "tcp", Target: 443, Published: 8443, HostMode: true},
		},
	})
	equal(t, "networks", d.Networks, []*model.Network{
		{
			Meta:   model.Meta{Name: "backbone"},
			Driver: "overlay", Internal: true, MTU: 1400, Subnet: "10.50.0.0/16",
		},
		{Meta: model.Meta{Name: "default"}, Driver: "overlay"},
		{Meta: model.Meta{Name: "front", Labels: map[string]string{"a": "b"}}, Driver: "overlay", Attachable: true},
	})
	equal(t, "volumes", d.Volumes, []*model.Volume{{Meta: model.Meta{Name: "data", Labels: map[string]string{"c": "d"}}, Driver: "local"}})
	equal(t, "secrets", d.Secrets, []core.SecretData{
		{Meta: model.Meta{Name: "the-key"}, Data: []byte("secret\n")}, {Meta: model.Meta{Name: "token"}, Data: []byte("from dot env")},
	})
	equal(t, "configs", d.Configs, []*model.Config{{Meta: model.Meta{Name: "motd"}, Data: []byte("hello world")}})
	compare(t, "warning", map[string]int{"testdata/works/full/compose.yaml:37: services.api.container_name: the instance is called full/api.1": 1}, p.Warnings)
}

func TestKindsAndDefaults(t *testing.T) {
	p := mustLoad(t, Options{Files: []string{"testdata/works/full/compose.yaml"}})
	d := &p.Deployment

	w := workload(t, d, "setup")
	equal(t, "a service that others wait for to complete", []any{w.Type, w.Count, w.Template.Restart.Condition}, []any{model.JobWorkload, 1, model.RestartOnFailure})
	equal(t, "its attachment", w.Template.Networks, []model.Attachment{{Network: "backbone", Aliases: []string{"once"}}})
	equal(t, "its update", w.Update, model.UpdatePolicy{})
	if service(d, "setup") != nil {
		t.Error("a job without ports has a service")
	}

	w = workload(t, d, "batch")
	equal(t, "a job", []any{w.Type, w.Count}, []any{model.JobWorkload, 4})
	if s := service(d, "batch"); s == nil || len(s.Ports) != 1 {
		t.Error("a job with a published port needs its service")
	}

	w = workload(t, d, "plain")
	equal(t, "a service", []any{w.Type, w.Count, w.Template.Tasks[0].NoHealth, w.Template.StopGrace}, []any{model.ServiceWorkload, 2, true, 10 * time.Second})
	equal(t, "its restarts", w.Template.Restart, model.RestartPolicy{Condition: model.RestartAlways})
	equal(t, "its update", w.Update, model.UpdatePolicy{Parallelism: 1, Monitor: 5 * time.Second, Order: model.StartFirst, OnFailure: model.RollBackOnFailure})
	equal(t, "its rollback", w.Rollback, model.UpdatePolicy{Parallelism: 1, Monitor: 5 * time.Second, Order: model.StartFirst, OnFailure: model.PauseOnFailure})
	equal(t, "its networks", service(d, "plain").Networks, []string{"default"})

	w = workload(t, d, "db")
	equal(t, "a service with a volume is stopped first", w.Update.Order, model.StopFirst)
	equal(t, "its limits", w.Template.Tasks[0].Limit, model.Resources{NanoCPUs: 1_500_000_000, MemoryBytes: 1 << 30, Pids: 100})
	equal(t, "its probe", w.Template.Tasks[0].Health, &model.Probe{Shell: "pg_isready", Interval: 30 * time.Second, Timeout: 30 * time.Second, Retries: 3})

	w = workload(t, d, "silent")
	equal(t, "a service without a network", []any{w.Template.NoNetwork, w.Template.Tasks[0].NoHealth, w.Template.Restart.Condition}, []any{true, true, model.RestartNever})
	w = workload(t, d, "monitor")
	equal(t, "a global service", []any{w.Type, w.Count, w.Template.HostNetwork, w.Update.Order}, []any{model.GlobalWorkload, 0, true, model.StopFirst})
	if service(d, "silent") != nil || service(d, "monitor") != nil {
		t.Error("nobody reaches a service without a network of the application's")
	}
}

func TestOverridesMergeInOrder(t *testing.T) {
	base := "testdata/works/override/compose.yaml"
	_, err := Load(t.Context(), Options{Files: []string{base}})
	if !fault.Is(err, fault.Unsupported) || !strings.HasPrefix(err.Error(), base+":4: services.web.build: ") {
		t.Fatalf("the base alone builds, but: %v", err)
	}
	p := mustLoad(t, Options{Files: []string{base, "testdata/works/override/prod.yaml"}})
	w := workload(t, &p.Deployment, "web")
	equal(t, "image", w.Template.Tasks[0].Image, "web:2")
	equal(t, "environment", w.Template.Tasks[0].Env, []string{"A=base", "B=prod"})
	equal(t, "count", w.Count, 3)
	equal(t, "ports", service(&p.Deployment, "web").Ports, []model.ServicePort{{Protocol: "tcp", Target: 80, Published: 81}})
	equal(t, "name", p.Deployment.Application, "override")
}

func TestOverrideTakesARefusedValueBack(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for name, text := range map[string]string{
		"compose.yaml": "services: { a: { image: a, ipc: host } }\nnetworks: { default: { driver: weave } }\n",
		"ours.yaml":    "services: { a: { ipc: private } }\nnetworks: { default: { driver: overlay } }\n",
	} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	mustLoad(t, Options{Files: []string{"compose.yaml", "ours.yaml"}})
	if _, err := Load(t.Context(), Options{Files: []string{"ours.yaml", "compose.yaml"}}); !fault.Is(err, fault.Unsupported) {
		t.Errorf("the other way round it is refused, but: %v", err)
	}
}

func TestExtends(t *testing.T) {
	p := mustLoad(t, Options{Files: []string{"testdata/works/extends/compose.yaml"}})
	w := workload(t, &p.Deployment, "web")
	equal(t, "environment", w.Template.Tasks[0].Env, []string{"A=base", "B=own", "FROM_FILE=yes"})
	equal(t, "restart", w.Template.Restart.Condition, model.RestartNever)
	equal(t, "mount", w.Template.Tasks[0].Mounts[0].Source, absolute("testdata/works/extends/common/files"))
	w = workload(t, &p.Deployment, "other")
	equal(t, "labels", w.Template.Tasks[0].Labels, map[string]string{"who": "other"})
	for _, text := range p.Warnings {
		if !strings.HasPrefix(text, "common/base.yaml:4: services.web.volumes: it means") && !strings.HasPrefix(text, "common/base.yaml:4: services.other.volumes: ") {
			t.Errorf("unexpected warning: %s", text)
		}
	}
}

func TestIncludeHasItsOwnDirectoryAndVariables(t *testing.T) {
	p := mustLoad(t, Options{Files: []string{"testdata/works/include/compose.yaml"}})
	equal(t, "image", workload(t, &p.Deployment, "web").Template.Tasks[0].Image, "web:2")
	equal(t, "included image", workload(t, &p.Deployment, "cache").Template.Tasks[0].Image, "cache:2")
	equal(t, "config", p.Deployment.Configs[0].Data, []byte("tuned\n"))
	equal(t, "warnings", p.Warnings, []string(nil))
}

func TestProfilesDecideWhatCounts(t *testing.T) {
	file := "testdata/works/profiles/compose.yaml"
	p := mustLoad(t, Options{Files: []string{file}})
	equal(t, "workloads", len(p.Deployment.Workloads), 1)
	equal(t, "warnings", p.Warnings, []string(nil))
	for _, o := range []Options{
		{Files: []string{file}, Profiles: []string{"dev"}},
		{Files: []string{file}, Environment: []string{"COMPOSE_PROFILES=other, dev"}},
	} {
		_, err := Load(t.Context(), o)
		if err == nil {
			t.Fatal("the enabled service was not looked at")
		}
		compare(t, "problem", map[string]int{file + ":8: services.debug.build: ": 1, file + ":11: volumes.src.driver: ": 1}, sentences(err))
	}
}

func TestHarmlessValuesAndExtensionsAreSilent(t *testing.T) {
	p := mustLoad(t, Options{Files: []string{"testdata/works/quiet/compose.yaml"}})
	equal(t, "warnings", p.Warnings, []string(nil))
	equal(t, "environment", workload(t, &p.Deployment, "x-ray").Template.Tasks[0].Env, []string{"x-odd=1", "y=2"})
}

func TestFilesOfVariablesAndLabels(t *testing.T) {
	p := mustLoad(t, Options{Files: []string{"testdata/works/files/compose.yaml"}, Environment: []string{"HOME_GROWN=yes"}})
	task := workload(t, &p.Deployment, "web").Template.Tasks[0]
	equal(t, "environment", task.Env, []string{"HOME_GROWN=yes", "MIX=1own", "ONE=1", "RAW=${ONE}", "TWO=own"})
	equal(t, "labels", task.Labels, map[string]string{"tier": "front"})
	compare(t, "warning", map[string]int{"testdata/works/files/compose.yaml:9: services.web.environment: variable NOWHERE has no value here": 1}, p.Warnings)
}

func TestNameAndFilesAreFound(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("My_App/compose.yaml", "services: { web: { image: 'web:${TAG}' } }\n")
	write("My_App/compose.override.yaml", "services: { web: { user: x } }\n")
	write("My_App/below/deep/keep", "")
	write("My_App/.env", "TAG=dotenv\nCOMPOSE_PROJECT_NAME=${NAME:-}\n")
	write("other.env", "TAG=other\n")
	write("named.yaml", "name: named\nservices: { web: { image: web } }\n")

	t.Chdir(filepath.Join(dir, "My_App/below/deep"))
	p := mustLoad(t, Options{})
	equal(t, "name by directory", p.Deployment.Application, "my_app")
	task := workload(t, &p.Deployment, "web").Template.Tasks[0]
	equal(t, "found with its override and .env", []string{task.Image, task.User}, []string{"web:dotenv", "x"})

	main := filepath.Join(dir, "My_App/compose.yaml")
	for name, o := range map[string]Options{
		"by option":      {Files: []string{main}, Name: "chosen", Environment: []string{"COMPOSE_PROJECT_NAME=no"}},
		"by environment": {Files: []string{main}, Environment: []string{"COMPOSE_PROJECT_NAME=chosen"}},
		"by .env":        {Files: []string{main}, Environment: []string{"NAME=chosen"}},
		"by file":        {WorkingDir: dir, Environment: []string{"COMPOSE_FILE=" + main, "TAG=1"}},
	} {
		if p := mustLoad(t, o); p.Deployment.Application != "chosen" && name != "by file" {
			t.Errorf("%s: name is %s", name, p.Deployment.Application)
		}
	}
	p = mustLoad(t, Options{Files: []string{filepath.Join(dir, "named.yaml")}})
	equal(t, "name by file", p.Deployment.Application, "named")
	p = mustLoad(t, Options{Files: []string{main}, EnvFiles: []string{filepath.Join(dir, "other.env")}})
	equal(t, "chosen variables", workload(t, &p.Deployment, "web").Template.Tasks[0].Image, "web:other")
	p = mustLoad(t, Options{Files: []string{main}, Environment: []string{"TAG=process"}})
	equal(t, "the process's variables count first", workload(t, &p.Deployment, "web").Template.Tasks[0].Image, "web:process")

	for _, c := range []struct {
		o    Options
		kind fault.Kind
		text string
	}{
		{Options{WorkingDir: "/proc/self/fd"}, fault.NotFound, "there is no compose.yaml in /proc/self/fd or above; name the file"},
		{Options{Files: []string{main}, Name: "Bad Name"}, fault.Invalid, `project name "Bad Name" is not valid`},
		{Options{Files: []string{dir + "/none.yaml"}}, fault.Invalid, "cannot read " + dir + "/none.yaml: no such file or directory"},
		{Options{Files: []string{main}, EnvFiles: []string{dir + "/none.env"}}, fault.Invalid, "read variables: couldn't find env file: " + dir + "/none.env"},
	} {
		if _, err := Load(t.Context(), c.o); !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("error is %v, want %s", err, c.text)
		}
	}
}

func TestTheSameFilesGiveTheSameDeployment(t *testing.T) {
	o := Options{Files: []string{"testdata/works/full/compose.yaml"}}
	first := mustLoad(t, o)
	for range 10 {
		again := mustLoad(t, o)
		if !reflect.DeepEqual(first, again) {
			t.Fatal("two readings differ")
		}
		for i, w := range again.Deployment.Workloads {
			if w.Template.Hash() != first.Deployment.Workloads[i].Template.Hash() {
				t.Fatal("two readings would be two revisions")
			}
		}
	}
}

func TestProblemsInOtherFilesHaveTheirPlacesToo(t *testing.T) {
	t.Chdir("testdata/works/problems")
	s, err := settle(Options{Files: []string{"compose.yaml"}})
	if err != nil {
		t.Fatal(err)
	}
	notes := load(t.Context(), s).notes
	compare(t, "problem", map[string]int{
		"sub/compose.yaml:5: services.helper.links: ":    1,
		"sub/base.yaml:4: services.base.cgroup_parent: ": 1,
	}, sentences(failure(notes)))
	compare(t, "warning", map[string]int{
		"sub/compose.yaml:1: version: ignored: ":               1,
		"sub/.env uses the variable MISSING, which is not set": 1,
	}, warnings(notes))
}

func TestTypoInAnIncludedFileIsSaidOnce(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for name, text := range map[string]string{
		"compose.yaml": "include: [other.yaml]\nservices: { a: { image: a, build: . } }\n",
		"other.yaml":   "services:\n  b:\n    imgae: b\n",
	} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	_, err := Load(t.Context(), Options{Files: []string{"compose.yaml"}})
	if err == nil {
		t.Fatal("no error")
	}
	compare(t, "problem", map[string]int{
		"other.yaml:3: services.b.imgae: there is no such key; did you mean image?": 1, "compose.yaml:2: services.a.build: ": 1,
	}, sentences(err))
}

func TestFileThatStandsForTooMuchIsRefused(t *testing.T) {
	var b strings.Builder
	b.WriteString("x-0: &a0 [a, a, a, a, a, a, a, a, a, a]\n")
	for i := range 8 {
		n := i + 1
		fmt.Fprintf(&b, "x-%d: &a%d [%s]\n", n, n, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i), 10), ", "))
	}
	b.WriteString("services: { web: { image: a, command: *a8 } }\n")
	path := filepath.Join(t.TempDir(), "compose.yaml")
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(t.Context(), Options{Files: []string{path}}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "the file stands for too much") {
		t.Fatalf("error is %v", err)
	}
	if err := os.WriteFile(path, []byte("services: { web: &w { image: a, labels: { again: *w } } }\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(t.Context(), Options{Files: []string{path}}); !fault.Is(err, fault.Invalid) {
		t.Fatalf("error is %v", err)
	}
}

func TestSeveralDocumentsAreOneFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "compose.yaml")
	if err := os.WriteFile(path, []byte("services: { web: { image: a } }\n---\nservices:\n  web: { image: b, pid: mine }\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := Load(t.Context(), Options{Files: []string{path}})
	if err == nil || !strings.HasPrefix(err.Error(), path+":4: services.web.pid: ") {
		t.Fatalf("error is %v", err)
	}
}

func TestTheShop(t *testing.T) {
	const dir = "../../examples/shop/"
	p := mustLoad(t, Options{Files: []string{dir + "compose.yaml"}})
	equal(t, "warnings", p.Warnings, []string(nil))
	d := &p.Deployment
	equal(t, "application", d.Application, "shop")
	reach := map[string][]string{}
	for _, s := range d.Services {
		reach[s.Name] = s.Networks
	}
	front, both, back := []string{"front"}, []string{"back", "front"}, []string{"back"}
	equal(t, "networks", reach, map[string][]string{
		"web": front, "catalogue": both, "cart": both, "orders": both, "worker": back, "redis": back, "postgres": back,
	})
	web := workload(t, d, "web")
	equal(t, "front end", []any{web.Count, web.Update.Order, web.Update.OnFailure, web.Template.StopGrace},
		[]any{3, model.StartFirst, model.RollBackOnFailure, 15 * time.Second})
	equal(t, "published", service(d, "web").Ports, []model.ServicePort{{Protocol: "tcp", Target: 8080, Published: 8080}})
	equal(t, "migration", workload(t, d, "migrate").Type, model.JobWorkload)
	equal(t, "database", workload(t, d, "postgres").Update.Order, model.StopFirst)
	equal(t, "secret", string(d.Secrets[0].Data), "change-me-in-production\n")
	if !json.Valid(d.Configs[0].Data) {
		t.Errorf("config is %q", d.Configs[0].Data)
	}
	for _, w := range d.Workloads {
		equal(t, w.Name+" sets memory aside", w.Template.Tasks[0].Reserve.MemoryBytes > 0 && w.Template.Tasks[0].Limit.MemoryBytes > 0, true)
		equal(t, w.Name+" is probed", w.Template.Tasks[0].Health != nil, w.Type != model.JobWorkload)
	}

	for tag, file := range map[string]string{"v2": "compose.v2.yaml", "bad": "compose.bad.yaml"} {
		next := mustLoad(t, Options{Files: []string{dir + "compose.yaml", dir + file}, Environment: []string{"SHOP_PORT=80"}})
		w := workload(t, &next.Deployment, "web")
		equal(t, "image", w.Template.Tasks[0].Image, "shop/web:"+tag)
		equal(t, "chosen port", service(&next.Deployment, "web").Ports[0].Published, 80)
		w.Template.Tasks[0].Image = "shop/web:v1"
		for i, other := range next.Deployment.Workloads {
			equal(t, other.Name+" stays", other.Template.Hash(), d.Workloads[i].Template.Hash())
		}
	}
}
