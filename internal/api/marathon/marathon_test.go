package marathon_test

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/api/marathon"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// house is the API over a store of its own; what the test does not play panics.
type house struct {
	t testing.TB
	core.Remote
	core.Images
	store *store.Store
	core  *core.Core
	api   *marathon.API
	who   core.Caller
}

func newHouse(t testing.TB) *house {
	h := &house{t: t, who: core.Local("test", "marathon")}
	h.store = store.New(slog.New(slog.DiscardHandler))
	h.store.SetProposer(h)
	h.core = core.New(core.Deps{Store: h.store, Trust: trust{}, Remote: h, Images: h, Servers: quorum{}, NodeID: "n1", Log: slog.New(slog.DiscardHandler)})
	h.api = marathon.New(marathon.Deps{
		Core: h.core, NodeName: "node1", NodeID: "n1", Address: "10.0.0.1", Version: "test", Log: slog.New(slog.DiscardHandler),
		Caller: func(context.Context) core.Caller { return h.who },
	})
	h.put(&model.Cluster{Meta: model.Meta{ID: model.ClusterID, Name: model.ClusterID}, AddressPool: "10.210.0.0/16", CACertificate: []byte("ca")})
	for n, name := range []string{"n1", "n2"} {
		h.put(&model.Node{
			Meta: model.Meta{ID: name, Name: "node" + name[1:], Labels: map[string]string{"zone": []string{"a", "b"}[n]}}, Server: true, Availability: model.Active, HostAddress: "10.0.0." + name[1:],
			Capacity:   model.Resources{NanoCPUs: 8e9, MemoryBytes: 64 << 30, DiskBytes: 1 << 40, Custom: map[string]int64{"gpus": 4}},
			Attributes: map[string]string{"os": "linux", "arch": "amd64"}, Status: model.NodeStatus{State: model.NodeReady},
		})
	}
	return h
}

func (h *house) Propose(_ context.Context, data []byte) (store.Result, error) {
	return h.store.Apply(data), nil
}

func (h *house) Ensure(_ context.Context, name, _ string, _ func(image.Progress)) (image.Info, error) {
	if strings.Contains(name, "missing") {
		return image.Info{}, fault.New(fault.NotFound, "image %s is in no registry of this test", name)
	}
	normal, err := image.Normalize(name)
	return image.Info{Name: normal, Digest: "sha256:" + strings.Repeat("ab", 32)}, err
}

func (h *house) Pull(ctx context.Context, name string, o image.PullOptions) (image.Info, error) {
	return h.Ensure(ctx, name, "", o.Progress)
}

func (h *house) Resolve(context.Context, string, image.Credentials) (image.Remote, error) {
	return image.Remote{}, fault.New(fault.NotFound, "not played")
}

func (h *house) Signatures(context.Context, string, string, image.Credentials) ([]image.Signature, error) {
	return nil, nil
}

func (h *house) EnsureImage(context.Context, string, string, string) error { return nil }

// trust plays the cluster's keys.
type trust struct{ core.Trust }

func (trust) SecretKey() ([]byte, error) { return make([]byte, 32), nil }

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

func (h *house) ask(method, path, body string) (int, string) {
	h.t.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	w := httptest.NewRecorder()
	h.api.ServeHTTP(w, httptest.NewRequest(method, path, r))
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

// read is want with the answer decoded.
func (h *house) read(method, path, body string, status int) map[string]any {
	h.t.Helper()
	var out map[string]any
	text := h.want(method, path, body, status)
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		h.t.Fatalf("%s %s: %v: %s", method, path, err, text)
	}
	return out
}

// at walks into decoded JSON.
func at(v any, path ...any) any {
	for _, p := range path {
		switch p := p.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[p]
		case int:
			l, _ := v.([]any)
			if p >= len(l) {
				return nil
			}
			v = l[p]
		}
	}
	return v
}

func (h *house) workload(application, name string) *model.Workload {
	h.t.Helper()
	w, ok := store.ByName[*model.Workload](h.store.Snapshot(), model.DefaultNamespace, application, name)
	if !ok {
		h.t.Fatalf("there is no workload %s/%s", application, name)
	}
	return w
}

// play makes every workload as it is wanted, as control and the agents would.
func (h *house) play() {
	h.t.Helper()
	cs := &store.ChangeSet{}
	snap := h.store.Snapshot()
	wanted := map[string]bool{}
	for w := range store.List[*model.Workload](snap) {
		wanted[w.ID] = true
		n := 0
		for i := range store.InstancesOfWorkload(snap, w.ID) {
			if i.RevisionID == w.RevisionID && i.Desired == model.DesiredRun && n < w.Count {
				n++
				continue
			}
			cs.Delete(model.KindInstance, i.ID)
		}
		for ; n < w.Count; n++ {
			i := &model.Instance{
				Meta:       model.Meta{ID: model.NewID(), Namespace: w.Namespace, Application: w.Application, Name: w.Name, Created: time.Now()},
				WorkloadID: w.ID, RevisionID: w.RevisionID, Slot: n + 1, NodeID: []string{"n1", "n2"}[n%2], Desired: model.DesiredRun,
			}
			for k, p := range w.Template.Ports {
				number := p.Host
				if number == 0 {
					number = 21000 + k
				}
				i.HostPorts = append(i.HostPorts, model.HostPort{Protocol: p.Protocol, Published: number, Target: max(p.Target, 1)})
			}
			cs.Put(i)
			c := i.Clone()
			c.Status = model.InstanceStatus{State: model.InstanceRunning, Ready: true, Started: time.Now(), ReadySince: time.Now(), Tasks: []model.TaskStatus{{Name: "main", Run: 1, State: "running"}}}
			cs.PutStatus(c)
		}
		c := w.Clone()
		c.Status.Generation, c.Status.Released = w.Generation, w.RevisionID
		cs.PutStatus(c)
	}
	for i := range store.List[*model.Instance](snap) {
		if !wanted[i.WorkloadID] {
			cs.Delete(model.KindInstance, i.ID)
		}
	}
	if _, err := h.store.Commit(context.Background(), cs); err != nil {
		h.t.Fatal(err)
	}
	h.api.Settle(context.Background())
}

func TestAnAppLives(t *testing.T) {
	h := newHouse(t)
	made := h.read("POST", "/v2/apps", `{"id":"/shop/web","cmd":"sleep $PORT0","instances":2,"cpus":0.1,"mem":32}`, 201)
	if at(made, "version") == "" || at(made, "portDefinitions", 0, "port") != 10000.0 || at(made, "deployments", 0, "id") == nil || at(made, "networks", 0, "mode") != "host" {
		t.Errorf("it was answered with %v", made)
	}
	w := h.workload("shop", "web")
	task := w.Template.Tasks[0]
	if w.Count != 2 || task.Driver != "process" || task.Entrypoint[2] != "sleep $PORT0" || !w.Template.HostNetwork || len(w.Template.Ports) != 1 {
		t.Errorf("the workload is %+v", w)
	}
	if list := h.want("GET", "/v2/deployments", "", 200); !strings.Contains(list, `"affectedApps":["/shop/web"]`) || !strings.Contains(list, "ScaleApplication") {
		t.Errorf("deployments are %s", list)
	}
	h.want("PUT", "/v2/apps/shop/web", `{"instances":3}`, 409)
	h.play()
	if list := h.want("GET", "/v2/deployments", "", 200); strings.TrimSpace(list) != "[]" {
		t.Errorf("deployments are %s", list)
	}
	app := h.read("GET", "/v2/apps//shop/web", "", 200)
	if at(app, "app", "tasksRunning") != 2.0 || at(app, "app", "tasks", 0, "state") != "TASK_RUNNING" || at(app, "app", "tasks", 0, "ports", 0) != 21000.0 || at(app, "app", "tasks", 0, "servicePorts", 0) != 10000.0 {
		t.Errorf("the app is %v", app)
	}
	before := h.workload("shop", "web").RevisionID
	h.want("PUT", "/v2/apps/shop/web", `{"instances":3}`, 200)
	if w := h.workload("shop", "web"); w.Count != 3 || w.RevisionID != before {
		t.Errorf("scaling gave %d of revision %s, not of %s", w.Count, w.RevisionID, before)
	}
	h.play()
	h.want("PATCH", "/v2/apps/shop/web", `{"env":{"A":"b"}}`, 200)
	if w := h.workload("shop", "web"); w.RevisionID == before {
		t.Error("a change of the environment is no new revision")
	}
	h.play()
	versions := h.read("GET", "/v2/apps/shop/web/versions", "", 200)
	if list, _ := versions["versions"].([]any); len(list) != 3 {
		t.Errorf("versions are %v", versions)
	}
	first := at(versions, "versions", 2).(string)
	if got := h.read("GET", "/v2/apps/shop/web/versions/"+first, "", 200); at(got, "instances") != 2.0 || at(got, "env") != nil {
		t.Errorf("the first version is %v", got)
	}
	h.want("PUT", "/v2/apps/shop/web", `{"version":"`+first+`"}`, 200)
	if w := h.workload("shop", "web"); w.Count != 2 || len(w.Template.Tasks[0].Env) == 0 || strings.Contains(strings.Join(w.Template.Tasks[0].Env, " "), "A=b") {
		t.Errorf("returning gave %+v", w.Template.Tasks[0].Env)
	}
	h.play()
	tasks := h.read("GET", "/v2/apps/shop/web/tasks", "", 200)
	id := at(tasks, "tasks", 0, "id").(string)
	h.want("DELETE", "/v2/apps/shop/web/tasks/"+id+"?scale=true", "", 200)
	if w := h.workload("shop", "web"); w.Count != 1 {
		t.Errorf("a kill with scale=true left %d", w.Count)
	}
	h.play()
	h.want("POST", "/v2/apps/shop/web/restart", "", 200)
	h.play()
	h.want("DELETE", "/v2/apps/shop/web", "", 200)
	h.want("GET", "/v2/apps/shop/web", "", 404)
	if list := h.want("GET", "/v2/deployments", "", 200); !strings.Contains(list, "StopApplication") {
		t.Errorf("deployments are %s", list)
	}
	h.play()
	if list := h.want("GET", "/v2/deployments", "", 200); strings.TrimSpace(list) != "[]" {
		t.Errorf("deployments are %s", list)
	}
}

func TestWhatIsWrongIsSaidInMarathonsShape(t *testing.T) {
	h := newHouse(t)
	for _, c := range []struct{ body, path, sentence string }{
		{`{"id":"/a_b","cmd":"x"}`, "/id", "regular expression"},
		{`{"id":"/a"}`, "/", "'cmd' or 'args'"},
		{`{"id":"/a","cmd":"x","args":["y"]}`, "/", "'cmd' or 'args'"},
		{`{"id":"/a","cmd":"x","instances":-1}`, "/instances", "greater than or equal to 0"},
		{`{"id":"/a","cmd":"x","instances":"two"}`, "/instances", "expected a number, not a string"},
		{`{"id":"/a","cmd":"x","memm":5}`, "/memm", "there is no such field"},
		{`{"id":"/a","cmd":"x","Mem":5}`, "/Mem", "did you mean mem?"},
		{`{"id":"/a","cmd":"x","constraints":[["hostname","NEAR"]]}`, "/constraints(0)", "must be one of"},
		{`{"id":"/a","cmd":"x","constraints":[["hostname","LIKE","("]]}`, "/constraints(0)", "not a valid regular expression"},
		{`{"id":"/a","cmd":"x","constraints":[["rack","MAX_PER"]]}`, "/constraints(0)", "numeric value"},
		{`{"id":"/a","cmd":"x","healthChecks":[{"protocol":"HTTP","portIndex":3}]}`, "/healthChecks(0)", "port indices"},
		{`{"id":"/a","cmd":"x","healthChecks":[{"protocol":"COMMAND"}]}`, "/healthChecks(0)/command", "not defined"},
		{`{"id":"/a","cmd":"x","upgradeStrategy":{"minimumHealthCapacity":2}}`, "/upgradeStrategy/minimumHealthCapacity", "between 0.0 and 1.0"},
		{`{"id":"/a","cmd":"x","networks":[{"mode":"container"}],"container":{"type":"MESOS"}}`, "/networks(0)/name", "no default network"},
		{`{"id":"/a","cmd":"x","container":{"type":"MESOS","portMappings":[{"containerPort":80}]}}`, "/", "not allowed with host-networking"},
		{`{"id":"/a","cmd":"x","container":{"type":"MESOS","volumes":[{"containerPath":"d","mode":"RW","external":{"name":"v","provider":"dvdi"}}]}}`, "/container/volumes(0)/external", "not supported by Tutti yet"},
		{`{"id":"/a","cmd":"x","unreachableStrategy":{"inactiveAfterSeconds":9,"expungeAfterSeconds":3}}`, "/unreachableStrategy", "less than or equal"},
		{`{"id":"/a","cmd":"x","executor":"/opt/mine"}`, "/executor", "not supported by Tutti yet"},
		{`{"id":"/a","cmd":"x","dependencies":["/a b"]}`, "/dependencies(0)", "regular expression"},
		{`{"id":"/a","cmd":"x","cpus":1000}`, "/", "can run on no node"},
		{`{"id":"/a","container":{"docker":{"image":"missing"}}}`, "/container/docker/image", "in no registry"},
	} {
		got := h.read("POST", "/v2/apps", c.body, 422)
		text, _ := json.Marshal(got["details"])
		if got["message"] != "Object is not valid" || !strings.Contains(string(text), `"path":"`+c.path+`"`) || !strings.Contains(string(text), c.sentence) {
			t.Errorf("%s is refused with %v", c.body, got)
		}
	}
	h.want("POST", "/v2/apps", `{"id":`, 400)
	h.want("POST", "/v2/apps", `[]`, 400)
	h.want("GET", "/v2/apps/nosuch", "", 404)
	h.want("GET", "/v2/nosuch", "", 404)
	h.want("PUT", "/v2/info", "{}", 405)
	h.want("POST", "/v2/apps", `{"id":"/a","cmd":"x"}`, 201)
	h.want("POST", "/v2/apps", `{"id":"a","cmd":"x"}`, 409)
	h.want("POST", "/v2/apps", `{"id":"/a/b","cmd":"x"}`, 422)
	h.who = core.Caller{Name: "nobody"}
	h.want("GET", "/v2/apps", "", 403)
}

func TestWhatOtherAPIsMade(t *testing.T) {
	h := newHouse(t)
	_, err := h.core.Deploy(context.Background(), h.who, core.Deployment{Application: "shop", Workloads: []*model.Workload{{
		Meta: model.Meta{Name: "Front_End"}, Type: model.ServiceWorkload, Count: 2, Template: model.Template{Tasks: []model.TaskSpec{{Name: "main", Image: "busybox"}}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	h.play()
	app := h.read("GET", "/v2/apps/shop/front-end", "", 200)
	if at(app, "app", "tasksRunning") != 2.0 || at(app, "app", "container", "docker", "image") != "busybox" {
		t.Errorf("it is %v", app)
	}
	h.want("PUT", "/v2/apps/shop/front-end", `{"instances":5}`, 200)
	if w := h.workload("shop", "Front_End"); w.Count != 5 {
		t.Errorf("it has %d", w.Count)
	}
	h.want("PUT", "/v2/apps/shop/front-end", `{"mem":77}`, 422)
	h.want("POST", "/v2/apps/shop/front-end/restart", "", 200)
	h.want("DELETE", "/v2/apps/shop/front-end", "", 200)
	h.want("GET", "/v2/apps/shop/front-end", "", 404)

	h.want("POST", "/v2/apps", `{"id":"/one","cmd":"x"}`, 201)
	if err := h.core.Scale(context.Background(), h.who, "one", 4); err != nil {
		t.Fatal(err)
	}
	if app := h.read("GET", "/v2/apps/one", "", 200); at(app, "app", "instances") != 4.0 {
		t.Errorf("scaled elsewhere, it says %v", at(app, "app", "instances"))
	}
}

func TestGroups(t *testing.T) {
	h := newHouse(t)
	body := `{"id":"/prod","dependencies":[],"groups":[{"id":"db","apps":[{"id":"pg","cmd":"a","instances":1}]},
		{"id":"web","dependencies":["/prod/db"],"apps":[{"id":"front","cmd":"b","instances":2},{"id":"/prod/web/back","cmd":"c","dependencies":["front"]}]}]}`
	dry := h.read("PUT", "/v2/groups?dryRun=true", body, 200)
	if steps, _ := dry["steps"].([]any); len(steps) != 2 {
		t.Errorf("the dry run says %v", dry)
	}
	h.want("GET", "/v2/groups/prod", "", 404)
	h.want("POST", "/v2/groups", body, 201)
	h.want("POST", "/v2/groups", body, 409)
	w := h.workload("prod", "web_back")
	if len(w.DependsOn) != 2 || w.DependsOn[0].Workload != "prod/db_pg" || w.DependsOn[1].Workload != "prod/web_front" || w.DependsOn[0].Condition != model.DependencyReady {
		t.Errorf("it depends on %+v", w.DependsOn)
	}
	h.play()
	g := h.read("GET", "/v2/groups/prod", "", 200)
	if at(g, "groups", 1, "apps", 0, "id") != "/prod/web/back" || at(g, "groups", 1, "dependencies", 0) != "/prod/db" {
		t.Errorf("the group is %v", g)
	}
	h.want("PUT", "/v2/groups/prod", `{"scaleBy":2}`, 200)
	if w := h.workload("prod", "web_front"); w.Count != 4 {
		t.Errorf("scaled by 2, there are %d", w.Count)
	}
	h.play()
	h.want("PUT", "/v2/groups/prod", `{"id":"/prod","groups":[{"id":"db","apps":[{"id":"pg","cmd":"a"}]}]}`, 200)
	h.want("GET", "/v2/apps/prod/web/front", "", 404)
	h.play()
	var versions []string
	if err := json.Unmarshal([]byte(h.want("GET", "/v2/groups/prod/versions", "", 200)), &versions); err != nil || len(versions) != 3 {
		t.Fatalf("versions are %v, %v", versions, err)
	}
	h.want("PUT", "/v2/groups/prod/versions/"+versions[2], "", 200)
	if w := h.workload("prod", "web_front"); w.Count != 2 {
		t.Errorf("returned, there are %d", w.Count)
	}
	h.play()
	h.want("PUT", "/v2/groups/prod", `{"apps":[{"id":"x","cmd":"a","dependencies":["y"]},{"id":"y","cmd":"b","dependencies":["x"]}]}`, 422)
	h.want("DELETE", "/v2/groups/prod", "", 200)
	h.play()
	h.want("GET", "/v2/groups/prod", "", 404)
	if text := h.want("GET", "/v2/apps", "", 200); strings.TrimSpace(text) != `{"apps":[]}` {
		t.Errorf("there are %s", text)
	}
}

func TestADeploymentIsTakenBack(t *testing.T) {
	h := newHouse(t)
	made := h.read("POST", "/v2/apps", `{"id":"/a","cmd":"x","instances":2}`, 201)
	h.play()
	changed := h.read("PUT", "/v2/apps/a", `{"cmd":"bad"}`, 200)
	h.want("DELETE", "/v2/deployments/"+changed["deploymentId"].(string), "", 200)
	if w := h.workload("", "a"); w.Template.Tasks[0].Entrypoint[2] != "x" {
		t.Errorf("it runs %v", w.Template.Tasks[0].Entrypoint)
	}
	h.want("DELETE", "/v2/deployments/"+made["version"].(string), "", 404)
	h.play()
	second := h.read("PUT", "/v2/apps/a", `{"cmd":"y"}`, 200)
	h.want("DELETE", "/v2/deployments/"+second["deploymentId"].(string)+"?force=true", "", 202)
	if w := h.workload("", "a"); w.Template.Tasks[0].Entrypoint[2] != "y" {
		t.Errorf("it runs %v", w.Template.Tasks[0].Entrypoint)
	}
}

func TestPods(t *testing.T) {
	h := newHouse(t)
	body := `{"id":"/pods/one","scaling":{"kind":"fixed","instances":2},"networks":[{"mode":"container/bridge"}],"volumes":[{"name":"v"}],
		"containers":[{"name":"web","image":{"kind":"DOCKER","id":"nginx"},"resources":{"cpus":0.1,"mem":32},"endpoints":[{"name":"http","containerPort":80,"hostPort":0}],
		"healthCheck":{"http":{"endpoint":"http","path":"/"}},"volumeMounts":[{"name":"v","mountPath":"/data"}]},
		{"name":"side","image":{"kind":"DOCKER","id":"busybox"},"exec":{"command":{"shell":"sleep 9"}},"resources":{"cpus":0.1,"mem":32}}]}`
	made := h.read("POST", "/v2/pods", body, 201)
	if at(made, "scheduling", "killSelection") != "YOUNGEST_FIRST" || at(made, "version") == nil {
		t.Errorf("it was answered with %v", made)
	}
	w := h.workload("pods", "one")
	if len(w.Template.Tasks) != 2 || w.Template.Tasks[0].Health.HTTP.PortOf != 1 || len(w.Template.Networks) != 1 {
		t.Errorf("the workload is %+v", w.Template)
	}
	h.play()
	if s := h.read("GET", "/v2/pods/pods/one::status", "", 200); s["status"] != "STABLE" || at(s, "instances", 0, "containers", 1, "name") != "side" {
		t.Errorf("its status is %v", s)
	}
	var list []any
	if err := json.Unmarshal([]byte(h.want("GET", "/v2/pods/::status", "", 200)), &list); err != nil || len(list) != 1 {
		t.Errorf("statuses are %v, %v", list, err)
	}
	s := h.read("GET", "/v2/pods/pods/one::status", "", 200)
	h.want("DELETE", "/v2/pods/pods/one::instances/"+at(s, "instances", 0, "id").(string), "", 200)
	h.want("GET", "/v2/pods/pods/one::versions", "", 200)
	h.want("GET", "/v2/apps/pods/one", "", 404)
	h.want("PUT", "/v2/pods/pods/one", strings.Replace(body, `"instances":2`, `"instances":3`, 1), 200)
	if w := h.workload("pods", "one"); w.Count != 3 {
		t.Errorf("there are %d", w.Count)
	}
	h.play()
	h.want("DELETE", "/v2/pods/pods/one", "", 202)
	h.want("GET", "/v2/pods/pods/one", "", 404)
}

func TestJobs(t *testing.T) {
	h := newHouse(t)
	body := `{"id":"prod.report","description":"x","run":{"cmd":"date","cpus":0.1,"mem":32,"disk":0,"restart":{"policy":"ON_FAILURE","activeDeadlineSeconds":120}}}`
	h.want("POST", "/v1/jobs", body, 201)
	h.want("POST", "/v1/jobs", body, 409)
	h.want("POST", "/v1/jobs/prod.report/schedules", `{"id":"nightly","cron":"0 3 * * *","timezone":"Europe/Berlin","concurrencyPolicy":"FORBID","enabled":false}`, 201)
	if w := h.workload("jobs", "prod.report_nightly"); w.Type != model.CronWorkload || !w.Suspended || w.Cron.Overlap != model.OverlapForbid {
		t.Errorf("the schedule is %+v", w)
	}
	h.want("PUT", "/v1/jobs/prod.report/schedules/nightly", `{"cron":"0 4 * * *","enabled":true}`, 200)
	if w := h.workload("jobs", "prod.report_nightly"); w.Suspended || w.Cron.Schedule != "0 4 * * *" {
		t.Errorf("the schedule is %+v", w)
	}
	run := h.read("POST", "/v1/jobs/prod.report/runs", "", 201)
	w := h.workload("jobs", "prod.report_"+run["id"].(string))
	if w.Type != model.JobWorkload || w.Job.Deadline != 2*time.Minute || w.Template.Restart.Condition != model.RestartOnFailure {
		t.Errorf("the run is %+v", w)
	}
	if got := h.want("GET", "/v1/jobs/prod.report/runs", "", 200); !strings.Contains(got, run["id"].(string)) {
		t.Errorf("runs are %s", got)
	}
	h.want("DELETE", "/v1/jobs/prod.report", "", 409)
	h.want("POST", "/v1/jobs/prod.report/runs/"+run["id"].(string)+"/actions/stop", "", 200)
	if got := h.read("GET", "/v1/jobs/prod.report?embed=schedules&embed=activeRuns&embed=historySummary", "", 200); at(got, "schedules", 0, "id") != "nightly" {
		t.Errorf("the job is %v", got)
	}
	if text := h.want("GET", "/v2/apps", "", 200); strings.TrimSpace(text) != `{"apps":[]}` {
		t.Errorf("jobs are listed as apps: %s", text)
	}
	h.want("DELETE", "/v1/jobs/prod.report", "", 200)
	h.want("GET", "/v1/jobs/prod.report", "", 404)
	h.want("POST", "/v1/jobs", `{"id":"x","run":{"cpus":0.1}}`, http.StatusUnprocessableEntity)
}

// listOf yields the objects of a kind.
func listOf[T model.Object](h *house) func(yield func(T) bool) {
	return store.List[T](h.store.Snapshot())
}
