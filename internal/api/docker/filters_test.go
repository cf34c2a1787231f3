package docker_test

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// observe says how an instance is.
func (h *house) observe(i *model.Instance, st model.InstanceStatus) {
	h.t.Helper()
	i = i.Clone()
	i.Status = st
	cs := &store.ChangeSet{}
	cs.PutStatus(i)
	if _, err := h.store.Commit(context.Background(), cs); err != nil {
		h.t.Fatal(err)
	}
}

// furnish has two nodes, and of everything that lists tell of something that filters choose, and something that they do not.
func (h *house) furnish() {
	h.t.Helper()
	image := func(name string, digest string, year int) {
		h.put(&model.Image{Meta: model.Meta{ID: model.NewID(), Name: name, Created: time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)}, Digest: "sha256:" + strings.Repeat(digest, 32)})
	}
	image("docker.io/library/old:1", "01", 2020)
	image("docker.io/library/labelled:2", "02", 2022)
	image("docker.io/library/nameless@sha256:"+strings.Repeat("03", 32), "03", 2024)
	h.put(&model.Node{Meta: model.Meta{ID: "n2", Name: "node2", Labels: map[string]string{"zone": "b"}}, Availability: model.Active, Status: model.NodeStatus{State: model.NodeReady}})
	for _, body := range []string{`{"Name":"front","Labels":{"tier":"a"}}`, `{"Name":"back","Driver":"overlay"}`} {
		h.want("POST", "/networks/create", body, 201)
	}
	for _, body := range []string{`{"Name":"data","Labels":{"a":"b"}}`, `{"Name":"spare"}`, `{"Labels":{"x":"y"}}`} {
		h.want("POST", "/volumes/create", body, 201)
	}
	for _, body := range []string{`{"Name":"key","Data":"YQ==","Labels":{"a":"b"}}`, `{"Name":"keys","Data":"YQ=="}`} {
		h.want("POST", "/secrets/create", body, 201)
		h.want("POST", "/configs/create", body, 201)
	}
	h.want("POST", "/containers/create?name=made", `{"Image":"old:1","Labels":{"p":"q"}}`, 201)
	h.want("POST", "/containers/create?name=web", `{"Image":"busybox:1","Labels":{"tier":"front"},"ExposedPorts":{"9/udp":{}},"Healthcheck":{"Test":["CMD","true"]},
		"HostConfig":{"NetworkMode":"front","Binds":["data:/data"],"PortBindings":{"80/tcp":[{"HostPort":"8080"}]}}}`, 201)
	h.want("POST", "/containers/create?name=ended", `{"Image":"busybox:1"}`, 201)
	for name, st := range map[string]model.InstanceStatus{
		"web":   {State: model.InstanceRunning, Health: model.HealthHealthy, Tasks: []model.TaskStatus{{Name: "main", Run: 1, State: "running", Started: time.Now()}}},
		"ended": {State: model.InstanceFailed, Tasks: []model.TaskStatus{{Name: "main", Run: 1, State: "exited", ExitCode: 3, Started: time.Now(), Finished: time.Now()}}},
	} {
		w, _ := store.ByName[*model.Workload](h.store.Snapshot(), model.DefaultNamespace, "containers", name)
		i := &model.Instance{Meta: model.Meta{ID: model.NewID(), Namespace: w.Namespace, Application: w.Application, Name: name + ".1", Created: time.Now()},
			WorkloadID: w.ID, RevisionID: w.RevisionID, Slot: 1, NodeID: "n2", Desired: model.DesiredRun}
		h.put(i)
		h.observe(i, st)
	}
	task := `"TaskTemplate":{"ContainerSpec":{"Image":"busybox:1"}}`
	h.want("POST", "/services/create", `{"Name":"site",`+task+`,"Labels":{"l":"m"}}`, 201)
	h.want("POST", "/services/create", `{"Name":"every",`+task+`,"Mode":{"Global":{}}}`, 201)
	h.want("POST", "/services/create", `{"Name":"once",`+task+`,"Mode":{"ReplicatedJob":{}}}`, 201)
	w, _ := store.ByName[*model.Workload](h.store.Snapshot(), model.DefaultNamespace, "", "site")
	for id, desired := range map[string]model.DesiredState{"t1": model.DesiredRun, "t2": model.DesiredStop} {
		i := &model.Instance{Meta: model.Meta{ID: id, Namespace: w.Namespace, Name: "site.1", Created: time.Now()}, WorkloadID: w.ID, RevisionID: w.RevisionID, Slot: 1, NodeID: "n1", Desired: desired}
		st := model.InstanceStatus{State: model.InstanceRunning, Tasks: []model.TaskStatus{{Name: "main", Run: 1, State: "running", Started: time.Now()}}}
		if id == "t2" {
			i.RevisionID, i.NodeID = "before", "n2"
			st.State, st.Tasks[0].State = model.InstanceCompleted, "exited"
		}
		h.put(i)
		h.observe(i, st)
	}
}

// named are the names of what a list, or a report of what was removed, has.
func named(t *testing.T, path, text string) (out []string) {
	t.Helper()
	var list []map[string]any
	var report map[string]any
	switch {
	case path == "/events":
		for dec := json.NewDecoder(strings.NewReader(text)); dec.More(); {
			var o map[string]any
			if err := dec.Decode(&o); err != nil {
				t.Fatalf("%s: %v: %s", path, err, text)
			}
			list = append(list, o)
		}
	case json.Unmarshal([]byte(text), &list) == nil:
	case json.Unmarshal([]byte(text), &report) == nil:
		for key, v := range report {
			if all, ok := v.([]any); ok && key != "Warnings" {
				for _, one := range all {
					switch o := one.(type) {
					case string:
						out = append(out, o)
					case map[string]any:
						list = append(list, o)
					}
				}
			}
		}
	default:
		t.Fatalf("%s: %s", path, text)
	}
	first := func(o map[string]any, keys ...string) string {
		for _, key := range keys {
			at := any(o)
			for part := range strings.SplitSeq(key, ".") {
				switch v := at.(type) {
				case map[string]any:
					at = v[part]
				case []any:
					if at = nil; len(v) > 0 {
						at = v[0]
					}
				}
			}
			if s, ok := at.(string); ok && s != "" {
				return strings.TrimPrefix(s, "/")
			}
		}
		return ""
	}
	for _, o := range list {
		switch {
		case o["Untagged"] != nil:
			out = append(out, o["Untagged"].(string))
		case o["Deleted"] != nil:
		case o["RepoTags"] != nil:
			name, _, _ := strings.Cut(cmp.Or(first(o, "RepoTags.0"), first(o, "RepoDigests.0")), "@")
			out = append(out, name)
		case path == "/tasks":
			out = append(out, first(o, "ID"))
		case path == "/events":
			out = append(out, first(o, "Type")+" "+first(o, "Actor.Attributes.name"))
		default:
			out = append(out, first(o, "Names.0", "Spec.Name", "Description.Hostname", "Name"))
		}
	}
	slices.Sort(out)
	return out
}

// chosen are filters of lists, and what they choose of what furnish made: names with blanks between them.
var chosen = []struct{ path, filters, want string }{
	{"/containers/json", `{"ancestor":["old:1"]}`, "made"},
	{"/containers/json", `{"ancestor":["sha256:` + strings.Repeat("ab", 32) + `"]}`, "ended site.1.t1 site.1.t2 web"},
	{"/containers/json", `{"ancestor":["nosuch"]}`, ""},
	{"/containers/json", `{"before":["web"]}`, "made"},
	{"/containers/json", `{"since":["web"]}`, "ended site.1.t1 site.1.t2"},
	{"/containers/json", `{"expose":["9/udp"]}`, "web"},
	{"/containers/json", `{"publish":["8000-8100"]}`, "web"},
	{"/containers/json", `{"publish":["1"],"expose":["9/udp"]}`, "web"}, // one of both is enough
	{"/containers/json", `{"publish":["8080/udp"]}`, ""},
	{"/containers/json", `{"exited":["3"]}`, "ended"},
	{"/containers/json", `{"exited":["3","0"]}`, "ended site.1.t2"},
	{"/containers/json", `{"health":["healthy"]}`, "web"},
	{"/containers/json", `{"health":["none"]}`, "ended made site.1.t1 site.1.t2"},
	{"/containers/json", `{"id":["ID(web)"]}`, "web"},
	{"/containers/json", `{"isolation":["default"]}`, "ended made site.1.t1 site.1.t2 web"},
	{"/containers/json", `{"is-task":["true"]}`, "site.1.t1 site.1.t2"},
	{"/containers/json", `{"is-task":{"false":true}}`, "ended made web"},
	{"/containers/json", `{"label":["tier"]}`, "web"},
	{"/containers/json", `{"label":["tier=front"]}`, "web"},
	{"/containers/json", `{"label":["tier=front","other"]}`, ""},
	{"/containers/json", `{"label":["com.docker.swarm.service.name=site"]}`, "site.1.t1 site.1.t2"},
	{"/containers/json", `{"name":["^/we"]}`, "web"},
	{"/containers/json", `{"name":["e"]}`, "ended made site.1.t1 site.1.t2 web"},
	{"/containers/json", `{"network":["front"]}`, "web"},
	{"/containers/json", `{"network":["ID(network front)"]}`, "web"},
	{"/containers/json", `{"node":["node1"]}`, "site.1.t1"}, // classic Swarm's
	{"/containers/json", `{"status":["created"]}`, "made"},
	{"/containers/json", `{"status":["created","exited"]}`, "ended made site.1.t2"},
	{"/containers/json", `{"volume":["data"]}`, "web"},
	{"/containers/json", `{"volume":["/data"]}`, "web"},

	{"/images/json", `{"before":["labelled:2"]}`, "old:1"},
	{"/images/json", `{"since":["labelled:2"]}`, "busybox:1 nameless"},
	{"/images/json", `{"until":["2021-01-01"]}`, "old:1"},
	{"/images/json", `{"dangling":["true"]}`, "nameless"},
	{"/images/json", `{"dangling":["false"]}`, "busybox:1 labelled:2 old:1"},
	{"/images/json", `{"label":["of=labelled"]}`, "labelled:2"},
	{"/images/json", `{"label!":["of"],"dangling":["0"]}`, "busybox:1 old:1"},
	{"/images/json", `{"reference":["*x:1"]}`, "busybox:1"},
	{"/images/json", `{"reference":["old","labelled:*"]}`, "labelled:2 old:1"},

	{"/networks", `{"dangling":["true"]}`, "back"},
	{"/networks", `{"driver":["null"]}`, "none"},
	{"/networks", `{"id":["ID(network front)"]}`, "front"},
	{"/networks", `{"label":["tier=a"]}`, "front"},
	{"/networks", `{"name":["^fro"]}`, "front"},
	{"/networks", `{"scope":["swarm"],"type":["custom"]}`, "back"},
	{"/networks", `{"type":["builtin"],"scope":["local"]}`, "bridge host none"},

	{"/volumes", `{"dangling":["false"]}`, "data"},
	{"/volumes", `{"driver":["local"],"name":["a"]}`, "ANONYMOUS data spare"},
	{"/volumes", `{"driver":["nosuch"]}`, ""},
	{"/volumes", `{"label":["a=b"]}`, "data"},
	{"/volumes", `{"name":["^sp"]}`, "spare"},

	{"/nodes", `{"id":["n1"]}`, "node1"},
	{"/nodes", `{"label":["engine"]}`, ""},
	{"/nodes", `{"membership":["accepted"]}`, "node1 node2"},
	{"/nodes", `{"membership":["pending"]}`, ""},
	{"/nodes", `{"name":["node2"]}`, "node2"},
	{"/nodes", `{"node.label":["zone=b"]}`, "node2"},
	{"/nodes", `{"role":["worker"]}`, "node2"},

	{"/services", `{"id":["ID(service site)"]}`, "site"},
	{"/services", `{"label":["l=m"]}`, "site"},
	{"/services", `{"mode":["global"]}`, "every"},
	{"/services", `{"mode":["replicated","replicated-job"]}`, "once site"},
	{"/services", `{"name":["si"]}`, "site"},
	{"/services", `{"runtime":["plugin"]}`, ""},

	{"/tasks", `{"desired-state":["running"]}`, "t1"},
	{"/tasks", `{"desired-state":["shutdown"]}`, "t2"},
	{"/tasks", `{"id":["t2"]}`, "t2"},
	{"/tasks", `{"label":["l=m"]}`, "t1 t2"},
	{"/tasks", `{"label":["l=n"]}`, ""},
	{"/tasks", `{"name":["site.1"]}`, "t1 t2"},
	{"/tasks", `{"node":["node2"]}`, "t2"},
	{"/tasks", `{"service":["site"]}`, "t1 t2"},
	{"/tasks", `{"service":["every"]}`, ""},
	{"/tasks", `{"runtime":["container"],"_up-to-date":["true"]}`, "t1"},

	{"/secrets", `{"id":["ID(secret key)"]}`, "key"},
	{"/secrets", `{"label":["a"]}`, "key"},
	{"/secrets", `{"name":["key"]}`, "key keys"},
	{"/secrets", `{"names":["key"]}`, "key"},
	{"/configs", `{"id":["ID(config keys)"]}`, "keys"},
	{"/configs", `{"label":["a=b"]}`, "key"},
	{"/configs", `{"name":["keys"]}`, "keys"},
	{"/plugins", `{"enabled":["true"],"capability":["volumedriver"]}`, ""},
}

// pruned are filters of what is to be removed: those that choose nothing first.
var pruned = []struct{ path, filters, want string }{
	{"/containers/prune", `{"label":["tier=front"]}`, ""}, // it runs
	{"/containers/prune", `{"until":["1h"]}`, ""},
	{"/containers/prune", `{"label":["p"],"label!":["p=q"]}`, ""},
	{"/containers/prune", `{"label":["p"],"label!":["tier"],"until":["0s"]}`, "ID(made)"},
	{"/images/prune", `{}`, ""},
	{"/images/prune", `{"dangling":["false"],"label":["of"],"until":["2021-01-01"]}`, ""},
	{"/images/prune", `{"dangling":["false"],"label":["of"]}`, "labelled:2"},
	{"/networks/prune", `{"until":["1h"]}`, ""},
	{"/networks/prune", `{"label":["tier"]}`, ""}, // it is used
	{"/networks/prune", `{"label!":["tier"]}`, "back"},
	{"/volumes/prune", `{"label!":["x"]}`, ""}, // it has a name
	{"/volumes/prune", `{"label":["x=y"]}`, "ANONYMOUS"},
	{"/volumes/prune", `{"all":["true"]}`, "spare"},
}

// TestFilters holds that every filter of every list chooses what it says, and that the others are refused in the
// Engine's words.
func TestFilters(t *testing.T) {
	h := newHouse(t)
	h.furnish()
	ids := map[string]string{}
	for kind, path := range map[string]string{"": "/containers/json?all=1", "network ": "/networks", "service ": "/services", "secret ": "/secrets", "config ": "/configs"} {
		var list []struct {
			Id, Name string
			Names    []string
			Spec     struct{ Name string }
		}
		if err := json.Unmarshal([]byte(h.want("GET", path, "", 200)), &list); err != nil {
			t.Fatal(err)
		}
		for _, o := range list {
			name := cmp.Or(o.Name, o.Spec.Name)
			if len(o.Names) > 0 {
				name = strings.TrimPrefix(o.Names[0], "/")
			}
			ids["ID("+kind+name+")"] = o.Id
		}
	}
	anonymous := regexp.MustCompile(`\b[0-9a-f]{63}\b`)
	keys := map[string][]string{}
	ask := func(method, path, filters, want string) {
		t.Helper()
		for name, id := range ids {
			filters, want = strings.ReplaceAll(filters, name, id), strings.ReplaceAll(want, name, id)
		}
		var asked map[string]any
		if err := json.Unmarshal([]byte(filters), &asked); err != nil {
			t.Fatal(err)
		}
		for key := range maps.Keys(asked) {
			keys[method+" "+path] = append(keys[method+" "+path], key)
		}
		wanted := strings.Fields(want)
		slices.Sort(wanted)
		text := h.want(method, path+"?all=1&filters="+url.QueryEscape(filters), "", 200)
		got := strings.Fields(anonymous.ReplaceAllString(strings.Join(named(t, path, text), " "), "ANONYMOUS"))
		if slices.Sort(got); !slices.Equal(got, wanted) {
			t.Errorf("%s with %s: %s, want %s", path, filters, got, wanted)
		}
	}
	for _, c := range chosen {
		ask("GET", c.path, c.filters, c.want)
	}
	for _, c := range pruned {
		ask("POST", c.path, c.filters, c.want)
	}
	keys["GET /events"] = eventFilters(t)
	refused := 0
	for route := range keys {
		method, path, _ := strings.Cut(route, " ")
		text := h.want(method, path+"?until=1&filters="+url.QueryEscape(`{"nosuch":["x"]}`), "", 400)
		if !strings.Contains(text, "invalid filter 'nosuch'") {
			t.Errorf("%s refuses an unknown filter with %s", route, text)
		}
		refused++
	}
	for request, words := range map[string]string{
		`/containers/json {"status":["odd"]}`:           "invalid filter 'status=odd'",
		`/containers/json {"health":["odd"]}`:           "invalid filter 'health=odd'",
		`/containers/json {"exited":["odd"]}`:           "invalid filter 'exited=odd'",
		`/containers/json {"is-task":["odd"]}`:          "invalid filter 'is-task=[odd]'",
		`/containers/json {"is-task":["true","false"]}`: "invalid filter 'is-task=[",
		`/containers/json {"publish":["8080:80"]}`:      "filter for 'publish' should not contain ':': 8080:80",
		`/containers/json {"expose":["odd"]}`:           "error while looking up for expose odd",
		`/images/json {"dangling":["odd"]}`:             "invalid filter 'dangling=[odd]'",
		`/images/json {"until":["1h","2h"]}`:            "more than one until filter specified",
		`/networks {"type":["odd"]}`:                    "invalid filter: 'type'='odd'",
		`/networks {"dangling":["odd"]}`:                "invalid value for filter 'dangling', must be",
		`/networks {"dangling":["true","false"]}`:       "got more than one value for filter key",
		`/volumes {"dangling":["odd"]}`:                 "invalid filter 'dangling=[odd]'",
		`/nodes {"role":["odd"]}`:                       "Invalid role filter: 'odd'",
		`/nodes {"membership":["odd"]}`:                 "Invalid membership filter: 'odd'",
		`/tasks {"desired-state":["odd"]}`:              "Invalid desired-state filter: 'odd'",
		`/configs {"names":["x"]}`:                      "invalid filter 'names'",
		`/containers/json nonsense`:                     "invalid filter",
	} {
		path, filters, _ := strings.Cut(request, " ")
		text := h.want("GET", path+"?filters="+url.QueryEscape(filters), "", 400)
		var answer struct{ Message string }
		if json.Unmarshal([]byte(text), &answer) != nil || !strings.Contains(answer.Message, words) {
			t.Errorf("%s is refused with %s, want %s", request, text, words)
		}
		refused++
	}
	h.want("GET", "/containers/json?filters="+url.QueryEscape(`{"before":["nosuch"]}`), "", 404)
	documented := documentedFilters(t)
	if len(documented) < 12 {
		t.Fatalf("only of %d routes were filters found in the documentation", len(documented))
	}
	count := 0
	for route, list := range documented {
		for _, key := range list {
			if !slices.Contains(keys[route], key) {
				t.Errorf("the filter %s of %s is documented and not tried", key, route)
			}
			count++
		}
	}
	t.Logf("%d documented filters of %d routes in %d cases, %d refusals", count, len(documented), len(chosen)+len(pruned), refused)
}

// documentedFilters are the filters that the API's documentation tells of, by route.
func documentedFilters(t *testing.T) map[string][]string {
	t.Helper()
	f, err := os.Open(documentation(t))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := map[string][]string{}
	path, method, inside := "", "", false
	isPath, isMethod := regexp.MustCompile(`^  (/\S*):`), regexp.MustCompile(`^    (get|head|post|put|delete):`)
	isParameter, isFilter := regexp.MustCompile(`^\s+- name: "?(\w+)"?`), regexp.MustCompile("^\\s+- `([a-z!.-]+)")
	for s := bufio.NewScanner(f); s.Scan(); {
		if m := isPath.FindStringSubmatch(s.Text()); m != nil {
			path, inside = m[1], false
		}
		if m := isMethod.FindStringSubmatch(s.Text()); m != nil {
			method, inside = strings.ToUpper(m[1]), false
		}
		if m := isParameter.FindStringSubmatch(s.Text()); m != nil {
			inside = m[1] == "filters"
		}
		m := isFilter.FindStringSubmatch(s.Text())
		route := method + " " + path
		switch {
		case m == nil || !inside || path == "/build/prune" || path == "/images/search": // which are refused by name
		case route == "GET /containers/json" && m[1] == "annotation": // of a later version of the API
		case route == "GET /plugins" && m[1] == "enable":
			out[route] = append(out[route], "enabled") // as the Engine and its command line call it
		default:
			out[route] = append(out[route], m[1])
		}
	}
	return out
}

// eventFilters holds that events are chosen by every filter, and returns these.
func eventFilters(t *testing.T) (keys []string) {
	t.Helper()
	h := newHouse(t)
	h.run()
	for n, until := 0, time.Now().Add(30*time.Second); ; n++ { // until what happens is followed
		if time.Now().After(until) {
			t.Fatal("no event is told of")
		}
		h.want("POST", "/volumes/create", fmt.Sprintf(`{"Name":"v%d"}`, n), 201)
		if len(named(t, "/events", h.want("GET", "/events?since=1&until="+now(), "", 200))) > 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	began := now()
	h.want("POST", "/networks/create", `{"Name":"front-net"}`, 201)
	h.want("POST", "/secrets/create", `{"Name":"key-1","Data":"YQ=="}`, 201)
	h.want("POST", "/configs/create", `{"Name":"conf-1","Data":"YQ=="}`, 201)
	h.want("POST", "/containers/create?name=web-1", `{"Image":"busybox:1","Labels":{"a":"b"}}`, 201)
	h.want("POST", "/services/create", `{"Name":"site-1","TaskTemplate":{"ContainerSpec":{"Image":"busybox:1"}}}`, 201)
	h.put(&model.Node{Meta: model.Meta{ID: "n2", Name: "node-2"}, Status: model.NodeStatus{State: model.NodeReady}})
	h.put(&model.Image{Meta: model.Meta{ID: model.NewID(), Name: "docker.io/library/late:1"}, Digest: "sha256:" + strings.Repeat("cd", 32)})
	h.want("POST", "/volumes/create", `{"Name":"last-1"}`, 201)
	for _, c := range []struct{ filters, want string }{
		{`{"volume":["last-1"]}`, "volume last-1"}, // all is told once this is
		{`{"volume":["last-"]}`, "volume last-1"},
		{`{"type":["network"],"event":["create"],"network":["front-"]}`, "network front-net"},
		{`{"network":["front-net"]}`, "network front-net"},
		{`{"container":["web-"]}`, "container web-1"},
		{`{"event":["create"],"type":["container","secret"]}`, "container web-1,secret key-1"},
		{`{"event":["load"]}`, "image docker.io/library/late:1"},
		{`{"image":["late"]}`, "image docker.io/library/late:1"},
		{`{"image":["busybox"]}`, "container web-1"},
		{`{"image":["busybox:1"]}`, "container web-1"},
		{`{"label":["a=b"]}`, "container web-1"},
		{`{"node":["node-2"]}`, "node node-2"},
		{`{"scope":["swarm"],"type":["secret","volume"]}`, "secret key-1"},
		{`{"secret":["key-1"]}`, "secret key-1"},
		{`{"config":["conf-1"]}`, "config conf-1"},
		{`{"service":["site-1"]}`, "service site-1"},
		{`{"daemon":["node-1"]}`, ""},
		{`{"plugin":["no-such"]}`, ""},
	} {
		var asked map[string]any
		if err := json.Unmarshal([]byte(c.filters), &asked); err != nil {
			t.Fatal(err)
		}
		keys = append(keys, slices.Collect(maps.Keys(asked))...)
		got := ""
		for until := time.Now().Add(30 * time.Second); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
			text := h.want("GET", "/events?since="+began+"&until="+now()+"&filters="+url.QueryEscape(c.filters), "", 200)
			if got = strings.Join(slices.Compact(named(t, "/events", text)), ","); got == c.want {
				break
			}
		}
		if got != c.want {
			t.Errorf("events with %s: %s, want %s", c.filters, got, c.want)
		}
	}
	return keys
}

func now() string { return fmt.Sprintf("%d.%09d", time.Now().Unix(), time.Now().Nanosecond()) }
