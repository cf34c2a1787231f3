package docker_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/api/docker"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	roots "github.com/tutti-run/tutti/internal/trust"
	"github.com/tutti-run/tutti/internal/wire"
)

// house is the API over a store of its own; what the test does not play panics.
type house struct {
	t testing.TB
	core.Remote
	core.Images
	store *store.Store
	core  *core.Core
	api   *docker.API
	// layers are those of images, by digest, each with its size after a colon.
	layers map[string][]string
}

func newHouse(t testing.TB) *house {
	h := &house{t: t, layers: map[string][]string{}}
	h.store = store.New(slog.New(slog.DiscardHandler))
	h.store.SetProposer(h)
	h.answer(h)
	h.put(&model.Cluster{Meta: model.Meta{ID: model.ClusterID, Name: model.ClusterID}, AddressPool: "10.210.0.0/16", CACertificate: []byte("ca")})
	h.put(&model.Node{
		Meta: model.Meta{ID: "n1", Name: "node1"}, Server: true, Availability: model.Active,
		Capacity: model.Resources{NanoCPUs: 2e9, MemoryBytes: 4 << 30}, Status: model.NodeStatus{State: model.NodeReady},
	})
	h.put(&model.Image{Meta: model.Meta{ID: model.NewID(), Name: "docker.io/library/busybox:1", Created: time.Date(2023, 1, 1, 0, 0, 0, 0, time.UTC)}, Digest: "sha256:" + strings.Repeat("ab", 32)})
	return h
}

// answer makes the API, with what reaches into nodes.
func (h *house) answer(remote core.Remote) {
	log := slog.New(slog.DiscardHandler)
	h.core = core.New(core.Deps{Store: h.store, Trust: trust{}, Remote: remote, Images: h, Servers: quorum{}, NodeID: "n1", Log: log})
	h.api = docker.New(docker.Deps{
		Core: h.core, NodeName: "node1", NodeID: "n1", Version: "test", Log: log,
		Caller: func(context.Context) core.Caller { return core.Local("test", "docker") },
	})
}

func (h *house) Propose(_ context.Context, data []byte) (store.Result, error) {
	return h.store.Apply(data), nil
}

func (h *house) Ensure(_ context.Context, name, digest string, _ func(image.Progress)) (image.Info, error) {
	var labels map[string]string
	if strings.Contains(name, "/labelled:") {
		labels = map[string]string{"of": "labelled"}
	}
	return image.Info{Name: name, Digest: digest, Config: image.Settings{Labels: labels, Cmd: []string{"sh"}, Env: []string{"PATH=/bin"}, ExposedPorts: []string{"80/tcp"}}}, nil
}

func (h *house) Describe(_ context.Context, name, digest string) (image.Detail, error) {
	d := image.Detail{Info: image.Info{Name: name, Digest: digest}, Raw: []byte(`{"config":{"Cmd":["sh"]}}`)}
	for _, l := range h.layers[digest] {
		id, size, _ := strings.Cut(l, ":")
		bytes, err := strconv.ParseInt(size, 10, 64)
		if err != nil {
			return d, err
		}
		d.Layers = append(d.Layers, image.Layer{ID: id, SizeBytes: bytes})
	}
	return d, nil
}

func (h *house) Pull(_ context.Context, ref string, _ image.PullOptions) (image.Info, error) {
	return image.Info{}, fault.New(fault.NotFound, "image %s is in no registry of this test", ref)
}

func (h *house) Resolve(_ context.Context, ref string, _ image.Credentials) (image.Remote, error) {
	return image.Remote{}, fault.New(fault.NotFound, "image %s is in no registry of this test", ref)
}

func (h *house) Signatures(context.Context, string, string, image.Credentials) ([]image.Signature, error) {
	return nil, nil
}

// Sizes plays a node that does not know of volumes.
func (h *house) Sizes(_ context.Context, _ string, r wire.SizesRequest) (out wire.SizesReply, _ error) {
	for n := range r.Tasks {
		out.Tasks = append(out.Tasks, wire.TaskSize{Written: int64(5 + n), Total: 105})
	}
	for range r.Volumes {
		out.Volumes = append(out.Volumes, wire.UnknownSize)
	}
	return out, nil
}

func (h *house) Tag(context.Context, string, string, string) (image.Info, error) {
	return image.Info{}, fault.New(fault.Internal, "not played")
}

func (h *house) Import(context.Context, io.Reader, image.ImportOptions) ([]image.Info, error) {
	return nil, fault.New(fault.Invalid, "this is no archive")
}

// trust plays the cluster's keys.
type trust struct{ core.Trust }

func (trust) SecretKey() ([]byte, error)     { return make([]byte, 32), nil }
func (trust) JoinToken(bool) (string, error) { return "tutti1-token", nil }
func (trust) View() (roots.View, error)      { return roots.View{}, nil }
func (trust) RotateTokens(context.Context, bool, bool) error {
	return nil
}

// quorum plays the servers; what the test does not play panics.
type quorum struct{ core.Servers }

func (quorum) Leader() string { return "n1" }

func (h *house) put(o model.Object) {
	h.t.Helper()
	cs := &store.ChangeSet{}
	cs.Put(o)
	if _, err := h.store.Commit(context.Background(), cs); err != nil {
		h.t.Fatal(err)
	}
}

// ask makes a request and returns the status and the body.
func (h *house) ask(method, path, body string) (int, string) {
	h.t.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req := httptest.NewRequest(method, path, r)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	w := httptest.NewRecorder()
	h.api.ServeHTTP(w, req)
	return w.Code, w.Body.String()
}

func (h *house) want(method, path, body string, status int) string {
	h.t.Helper()
	code, text := h.ask(method, path, body)
	if code != status {
		h.t.Fatalf("%s %s: %d, want %d: %s", method, path, code, status, text)
	}
	return text
}

// documentation is where the module with the wire types has the API's documentation.
func documentation(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/moby/moby/api").Output()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "swagger.yaml")
}

// documented lists method and path of every route of the API's documentation, as the module with
// the wire types carries it.
func documented(t *testing.T) []string {
	t.Helper()
	f, err := os.Open(documentation(t))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var routes []string
	path := ""
	isPath, isMethod := regexp.MustCompile(`^  (/\S*):`), regexp.MustCompile(`^    (get|head|post|put|delete):`)
	for s := bufio.NewScanner(f); s.Scan(); {
		if m := isPath.FindStringSubmatch(s.Text()); m != nil {
			path = m[1]
		}
		if m := isMethod.FindStringSubmatch(s.Text()); m != nil && path != "" {
			routes = append(routes, strings.ToUpper(m[1])+" "+path)
		}
	}
	return routes
}

// TestEveryDocumentedRouteAnswers holds that no route of the documentation is unknown: each works,
// says what of the request it cannot find or read, or is refused with a name.
func TestEveryDocumentedRouteAnswers(t *testing.T) {
	routes := documented(t)
	if len(routes) < 100 {
		t.Fatalf("only %d routes were found in the documentation", len(routes))
	}
	refused := 0
	for _, route := range routes {
		method, path, _ := strings.Cut(route, " ")
		path = regexp.MustCompile(`\{\w+\}`).ReplaceAllString(path, "nosuch")
		if path == "/events" {
			path += "?until=1" // it would go on for ever
		}
		h := newHouse(t)
		code, body := h.ask(method, path, "")
		switch {
		case strings.Contains(body, "page not found"):
			t.Errorf("%s is unknown", route)
		case code == http.StatusNotImplemented:
			refused++
			if !strings.Contains(body, "not supported by Tutti") {
				t.Errorf("%s is refused without a name: %s", route, body)
			}
		case code >= 500 && code != http.StatusServiceUnavailable: // which is what the Engine says to `swarm init` in a swarm
			t.Errorf("%s answers %d: %s", route, code, body)
		}
	}
	t.Logf("%d documented routes: %d answered, %d refused by name", len(routes), len(routes)-refused, refused)
}

func TestVersions(t *testing.T) {
	h := newHouse(t)
	for path, want := range map[string]string{
		"/v1.23/version": "client version 1.23 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version",
		"/v1.99/version": "client version 1.99 is too new. Maximum supported API version is 1.50",
		"/v1...9/info":   "client version 1...9 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version",
	} {
		if got := h.want("GET", path, "", 400); !strings.Contains(got, want) {
			t.Errorf("%s: %s", path, got)
		}
	}
	h.want("GET", "/nosuch", "", 404)
	h.want("PATCH", "/version", "", 404)
	h.want("GET", "/v1.24/containers/json", "", 200)
}

// TestAContainerIsAWorkload holds that an inspection gives back what was put, and that the container
// is one of our workloads.
func TestAContainerIsAWorkload(t *testing.T) {
	h := newHouse(t)
	body := `{"Image":"busybox:1","Cmd":["sleep","9"],"Env":["A=b","constraint:node==node1"],"Labels":{"x":"y"},"Tty":true,"OpenStdin":true,
		"ExposedPorts":{"80/tcp":{}},"HostConfig":{"Memory":67108864,"NanoCpus":500000000,"Binds":["data:/data:ro","/etc:/host"],
		"PortBindings":{"80/tcp":[{"HostPort":"8080"}]},"RestartPolicy":{"Name":"on-failure","MaximumRetryCount":3},
		"CapAdd":["NET_ADMIN"],"Dns":["1.1.1.1"],"Ulimits":[{"Name":"nofile","Soft":10,"Hard":20}]}}`
	var made struct{ Id string }
	if err := json.Unmarshal([]byte(h.want("POST", "/containers/create?name=web", body, 201)), &made); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Id, Name string
		State    struct{ Status string }
		Config   struct {
			Image    string
			Cmd, Env []string
			Tty      bool
			Labels   map[string]string
		}
		HostConfig struct {
			Memory, NanoCpus int64
			Binds, CapAdd    []string
			Ulimits          []struct{ Soft int64 }
		}
		Mounts []struct{ Type, Name, Source, Destination string }
	}
	for _, ref := range []string{"web", made.Id, made.Id[:7]} {
		if err := json.Unmarshal([]byte(h.want("GET", "/v1.41/containers/"+ref+"/json", "", 200)), &got); err != nil {
			t.Fatal(err)
		}
		if got.Id != made.Id || got.Name != "/web" || got.State.Status != "created" {
			t.Errorf("by %s: %+v", ref, got)
		}
	}
	if s := fmt.Sprint(got.Config.Image, got.Config.Cmd, got.Config.Env, got.Config.Tty, got.Config.Labels); s != "busybox:1[sleep 9] [PATH=/bin A=b constraint:node==node1] true map[x:y]" {
		t.Errorf("config: %s", s)
	}
	if s := fmt.Sprint(got.HostConfig, got.Mounts); s != "{67108864 500000000 [data:/data:ro /etc:/host] [NET_ADMIN] [{10}]} [{volume data /var/lib/docker/volumes/data/_data /data} {bind  /etc /host}]" {
		t.Errorf("host: %s", s)
	}
	w, ok := store.ByName[*model.Workload](h.store.Snapshot(), model.DefaultNamespace, "containers", "web")
	if !ok {
		t.Fatal("there is no workload containers/web")
	}
	task := w.Template.Tasks[0]
	if !w.Suspended || w.Count != 1 || !w.Template.KeepEnded || task.Limit.MemoryBytes != 64<<20 || len(task.Env) != 1 ||
		w.Template.Restart != (model.RestartPolicy{Condition: model.RestartOnFailure, MaxAttempts: 3}) ||
		len(w.Template.Placement.Constraints) != 1 || w.Template.Placement.Constraints[0].Key != "node.name" {
		t.Errorf("workload: %+v", w)
	}
	s, ok := store.ByName[*model.Service](h.store.Snapshot(), model.DefaultNamespace, "containers", "web")
	if !ok || len(s.Ports) != 1 || s.Ports[0].Published != 8080 {
		t.Errorf("service: %+v", s)
	}
	h.want("POST", "/containers/create?name=web", body, 409)
	if text := h.want("POST", "/containers/create?name=other", body, 409); !strings.Contains(text, "8080") {
		t.Errorf("a port that is taken: %s", text)
	}
	h.want("POST", "/containers/web/rename?name=site", "", 204)
	h.want("GET", "/containers/web/json", "", 404)
	h.want("DELETE", "/containers/site", "", 204)
	h.want("GET", "/containers/"+made.Id+"/json", "", 404)
	h.want("DELETE", "/volumes/data", "", 204)
}

func TestWhatIsNotHonouredIsRefusedByName(t *testing.T) {
	h := newHouse(t)
	for _, c := range []struct{ body, name string }{
		{`{"Image":"busybox:1","HostConfig":{"CpuRealtimeRuntime":100}}`, "--cpu-rt-runtime"},
		{`{"Image":"busybox:1","HostConfig":{"StorageOpt":{"size":"1g"}}}`, "--storage-opt"},
		{`{"Image":"busybox:1","HostConfig":{"DeviceRequests":[{"Driver":"tpu","Count":-1}]}}`, "tpu"},
		{`{"Image":"busybox:1","HostConfig":{"LogConfig":{"Type":"syslog"}}}`, "--log-driver"},
		{`{"Image":"busybox:1","HostConfig":{"KernelMemory":4096}}`, "HostConfig.KernelMemory"},
		{`{"Image":"busybox:1","Sparkle":"much"}`, "Sparkle"},
		{`{"Image":"busybox:1","HostConfig":{"Mounts":[{"Type":"image","Target":"/x"}]}}`, "--mount type"},
	} {
		text := h.want("POST", "/containers/create", c.body, 501)
		if !strings.Contains(text, c.name) {
			t.Errorf("%s: %s", c.body, text)
		}
	}
	h.want("POST", "/containers/create", `{"Image":"nosuch"}`, 404)
	h.want("POST", "/containers/create", `{"Image":`, 400)
	h.want("POST", "/containers/create", `{"Image":"busybox:1"} more`, 400)
	h.want("POST", "/networks/create", `{"Name":"n","Driver":"weave"}`, 501)
	h.want("POST", "/networks/create", `{"Name":"n","Driver":"macvlan"}`, 400) // without a parent
	h.want("POST", "/volumes/create", `{"Name":"n","Driver":"nfs"}`, 501)
}

// TestAServiceIsAWorkload holds that a service is one of our workloads, in the application of its
// stack, that an inspection gives back what was put, and that updates are in sequence.
// TestAServiceOnItsNodesNetwork: the command line looks for what a service's --network names in the
// scope of the swarm first.
func TestAServiceOnItsNodesNetwork(t *testing.T) {
	h := newHouse(t)
	for _, name := range []string{"host", "bridge"} {
		var n struct{ ID, Name, Scope string }
		if err := json.Unmarshal([]byte(h.want("GET", "/networks/"+name+"?scope=swarm", "", 200)), &n); err != nil || n.Name != name || n.Scope != "swarm" {
			t.Errorf("%s in the scope of the swarm is %+v, %v", name, n, err)
		}
		h.want("POST", "/services/create", fmt.Sprintf(`{"Name":"on-%s","TaskTemplate":{"ContainerSpec":{"Image":"busybox:1"},"Networks":[{"Target":%q}]}}`, name, n.ID), 201)
	}
	h.want("GET", "/networks/none?scope=swarm", "", 404)
	w, ok := store.ByName[*model.Workload](h.store.Snapshot(), model.DefaultNamespace, "", "on-host")
	if !ok || !w.Template.HostNetwork {
		t.Errorf("on-host is %+v", w)
	}
}

func TestAServiceIsAWorkload(t *testing.T) {
	h := newHouse(t)
	h.want("POST", "/secrets/create", `{"Name":"key","Data":"YQ=="}`, 201)
	h.want("POST", "/secrets/create", `{"Name":"key","Data":"YQ=="}`, 409)
	h.want("POST", "/networks/create", `{"Name":"shop_back","Driver":"overlay","Labels":{"com.docker.stack.namespace":"shop"}}`, 201)
	spec := func(name, image string, replicas int) string {
		return fmt.Sprintf(`{"Name":%q,"Labels":{"com.docker.stack.namespace":"shop"},"TaskTemplate":{"ContainerSpec":{"Image":%q,"Args":["sleep","9"],"Env":["A=b"],
			"Secrets":[{"File":{"Name":"key","UID":"0","GID":"0","Mode":292},"SecretName":"key"}]},
			"RestartPolicy":{"Condition":"on-failure","MaxAttempts":2},"Placement":{"Constraints":["node.role==manager"]},
			"Networks":[{"Target":"shop_back","Aliases":["w"]}]},"Mode":{"Replicated":{"Replicas":%d}},
			"UpdateConfig":{"Parallelism":2,"FailureAction":"rollback","Order":"start-first","MaxFailureRatio":0},
			"EndpointSpec":{"Ports":[{"TargetPort":80,"PublishedPort":8081,"Protocol":"tcp"}]}}`, name, image, replicas)
	}
	var made struct{ ID string }
	if err := json.Unmarshal([]byte(h.want("POST", "/services/create", spec("shop_web", "busybox:1", 2), 201)), &made); err != nil {
		t.Fatal(err)
	}
	h.want("POST", "/services/create", spec("shop_web", "busybox:1", 2), 409)
	w, ok := store.ByName[*model.Workload](h.store.Snapshot(), model.DefaultNamespace, "shop", "web")
	if !ok || w.ID != made.ID || w.Count != 2 {
		t.Fatalf("workload shop/web: %+v", w)
	}
	want := model.UpdatePolicy{Parallelism: 2, Order: model.StartFirst, OnFailure: model.RollBackOnFailure}
	task := w.Template.Tasks[0]
	if w.Update != want || w.Template.Restart.MaxAttempts != 2 || len(w.Template.Networks) != 1 || len(task.Mounts) != 1 ||
		task.Mounts[0].Target != "/run/secrets/key" || w.Template.Placement.Constraints[0].Values[0] != "server" {
		t.Errorf("workload: %+v", w)
	}
	type service struct {
		Version struct{ Index uint64 }
		Spec    struct {
			Name string
			Mode struct {
				Replicated struct{ Replicas int }
			}
			TaskTemplate struct{ ContainerSpec struct{ Env []string } }
		}
		PreviousSpec *struct{ Name string }
	}
	inspect := func() (s service) {
		t.Helper()
		if err := json.Unmarshal([]byte(h.want("GET", "/services/shop_web", "", 200)), &s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := inspect()
	if s.Spec.Name != "shop_web" || s.Spec.Mode.Replicated.Replicas != 2 || fmt.Sprint(s.Spec.TaskTemplate.ContainerSpec.Env) != "[A=b]" {
		t.Errorf("service: %+v", s)
	}
	update := fmt.Sprintf("/services/shop_web/update?version=%d", s.Version.Index)
	h.want("POST", update, spec("shop_web", "busybox:1", 5), 200)
	if text := h.want("POST", update, spec("shop_web", "busybox:1", 6), 500); !strings.Contains(text, "update out of sequence") {
		t.Error(text)
	}
	if err := h.core.Scale(t.Context(), core.Local("test", "test"), "shop/web", 7); err != nil {
		t.Fatal(err)
	}
	if s = inspect(); s.Spec.Mode.Replicated.Replicas != 7 || s.PreviousSpec == nil {
		t.Errorf("scaled elsewhere: %+v", s)
	}
	h.want("POST", fmt.Sprintf("/services/shop_web/update?version=%d&rollback=previous", s.Version.Index), spec("shop_web", "busybox:1", 7), 200)
	if s = inspect(); s.Spec.Mode.Replicated.Replicas != 2 {
		t.Errorf("rolled back: %+v", s)
	}
	h.want("POST", fmt.Sprintf("/services/shop_web/update?version=%d", s.Version.Index), spec("other", "busybox:1", 2), 501)
	h.want("POST", "/services/create", `{"Name":"x","TaskTemplate":{"ContainerSpec":{"Image":"busybox:1","Hostname":"{{range $i := .Service.Labels}}{{end}}"}}}`, 501)
	h.want("DELETE", "/secrets/key", "", 400)
	h.want("DELETE", "/services/shop_web", "", 200)
	h.want("GET", "/services/shop_web", "", 404)
	h.want("DELETE", "/secrets/key", "", 204)
}

func FuzzCreate(f *testing.F) {
	paths := []string{"/containers/create", "/services/create", "/networks/create", "/volumes/create", "/secrets/create", "/configs/create"}
	for n, body := range []string{
		`{"Image":"busybox:1","HostConfig":{"Binds":["a:/b:ro"],"PortBindings":{"80/tcp":[{"HostPort":"1-2"}]},"Tmpfs":{"/x":"size=1m"}}}`,
		`{"Name":"s","TaskTemplate":{"ContainerSpec":{"Image":"busybox:1"},"Placement":{"Constraints":["node.role==manager"]}},"Mode":{"Replicated":{"Replicas":2}}}`,
		`{"Name":"n","IPAM":{"Config":[{"Subnet":"10.1.0.0/24"}]}}`, `{"Name":"v","Labels":{"a":"b"}}`, `{"Name":"v","Data":"YQ=="}`, `{"Name":"v","Data":"YQ=="}`,
	} {
		f.Add(uint8(n), body)
	}
	f.Add(uint8(0), `{"Image":"busybox:1","Healthcheck":{"Test":["CMD-SHELL","x"],"Interval":1000000},"HostConfig":{"Mounts":[{"Type":"volume","Source":"v","Target":"/x","VolumeOptions":{"Subpath":"a"}}],"Devices":[{"PathOnHost":"/dev/null"}],"RestartPolicy":{"Name":"on-failure"}},"NetworkingConfig":{"EndpointsConfig":{"bridge":{"Aliases":["a"]}}}}`)
	f.Add(uint8(1), `{"Name":"s","Labels":{"tutti.spread":"[node.name]"},"TaskTemplate":{"ContainerSpec":{"Image":"busybox:1","Mounts":[{"Type":"tmpfs","Target":"/x"}],"Hostname":"{{.Node.Hostname}}"},"Resources":{"Limits":{"NanoCPUs":1}},"RestartPolicy":{"Delay":1,"Window":1}},"Mode":{"ReplicatedJob":{"MaxConcurrent":1}},"EndpointSpec":{"Ports":[{"TargetPort":1,"PublishMode":"host"}]}}`)
	f.Fuzz(func(t *testing.T, which uint8, body string) {
		h := newHouse(t)
		path := paths[int(which)%len(paths)]
		if code, text := h.ask("POST", path, body); code >= 500 && code != 501 && code != 503 {
			t.Errorf("%s: %d %s", path, code, text)
		}
	})
}

// FuzzChange asks, of a container, a service, a network and a node that are there, for anything by any method.
func FuzzChange(f *testing.F) {
	f.Add("POST", "/v1.44/containers/web/update", "", `{"Memory":1,"RestartPolicy":{"Name":"on-failure","MaximumRetryCount":2}}`)
	f.Add("POST", "/networks/net/connect", "", `{"Container":"web","EndpointConfig":{"Aliases":["x"],"IPAMConfig":{"IPv4Address":"10.1.0.5"}}}`)
	f.Add("POST", "/networks/net/disconnect", "", `{"Container":"web","Force":true}`)
	f.Add("POST", "/containers/web/rename", "name=other", "")
	f.Add("POST", "/containers/web/exec", "", `{"Cmd":["true"],"DetachKeys":"ctrl-a"}`)
	f.Add("POST", "/containers/prune", `filters={"until":["1h"]}`, "")
	f.Add("POST", "/services/s/update", "version=1&rollback=previous", `{"Name":"s","TaskTemplate":{"ContainerSpec":{"Image":"busybox:1"}}}`)
	f.Add("POST", "/nodes/n1/update", "version=1", `{"Availability":"drain","Role":"manager"}`)
	f.Add("POST", "/commit", "container=web&changes=ENV+a=b&repo=x", `{}`)
	f.Add("DELETE", "/containers/web", "force=1&v=1", "")
	f.Add("GET", "/events", `until=1&filters={"event":["x"]}`, "")
	f.Add("GET", "/tasks", `filters={"desired-state":["running"]}`, "")
	f.Fuzz(func(t *testing.T, method, path, query, body string) {
		if strings.ContainsAny(method+path, " \x00\r\n%?#\"()<>@,;:\\[]={}\t") || !strings.HasPrefix(path, "/") || method == "" {
			return
		}
		h := newHouse(t)
		h.want("POST", "/containers/create?name=web", `{"Image":"busybox:1"}`, 201)
		h.want("POST", "/networks/create", `{"Name":"net"}`, 201)
		h.want("POST", "/services/create", `{"Name":"s","TaskTemplate":{"ContainerSpec":{"Image":"busybox:1"}}}`, 201)
		// Some requests wait for what only nodes and a leader would do; such a client has gone after a moment.
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, method, "http://docker/", strings.NewReader(body))
		if err != nil {
			return
		}
		req.URL.Path, req.URL.RawQuery = path, query
		req.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		h.api.ServeHTTP(w, req)
		if w.Code >= 500 && w.Code != 501 && w.Code != 503 && ctx.Err() == nil {
			t.Errorf("%s %s?%s: %d %s", method, path, query, w.Code, w.Body)
		}
	})
}

func FuzzFilters(f *testing.F) {
	f.Add(`{"status":{"running":true},"name":["x"]}`)
	f.Add(`{"name":{"x*[":true},"until":{"1.5":true}}`)
	f.Add(`{"publish":["1-65535/tcp"],"exited":["x"]}`)
	f.Fuzz(func(t *testing.T, text string) {
		h := newHouse(t)
		for _, path := range []string{"/containers/json", "/images/json", "/networks", "/volumes", "/services", "/tasks"} {
			req := httptest.NewRequest("GET", path, nil)
			req.URL.RawQuery = "filters=" + strings.NewReplacer("%", "%25", "&", "%26", "+", "%2B", "#", "%23", ";", "%3B").Replace(text)
			w := httptest.NewRecorder()
			h.api.ServeHTTP(w, req)
			if w.Code >= 500 && w.Code != 501 {
				t.Errorf("%s: %d %s", path, w.Code, w.Body)
			}
		}
	})
}
