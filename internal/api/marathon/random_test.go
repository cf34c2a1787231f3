package marathon_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"testing"
)

// randomApp makes an app of parts that are all honoured.
func randomApp(r *rand.Rand) map[string]any {
	pick := func(list ...any) any { return list[r.IntN(len(list))] }
	a := map[string]any{"id": fmt.Sprintf("/r%d/app-%d", r.IntN(3), r.IntN(100)), "cpus": pick(0.1, 0.25, 1.0), "mem": pick(16.0, 64.5)}
	maybe := func(name string, v any) {
		if r.IntN(2) == 0 {
			a[name] = v
		}
	}
	if r.IntN(2) == 0 {
		a["cmd"] = pick("sleep 9", "echo \"<&>\" ; exit", "é")
	} else {
		a["args"] = []any{"sleep", "9"}
	}
	maybe("instances", r.IntN(4))
	maybe("disk", 10.0)
	maybe("backoffSeconds", r.IntN(10))
	maybe("backoffFactor", 1.0+r.Float64())
	maybe("maxLaunchDelaySeconds", r.IntN(3600))
	maybe("env", map[string]any{"A": "b", "C_D": ""})
	maybe("labels", map[string]any{"x": "y", "HAPROXY_GROUP": "external"})
	maybe("killSelection", pick("YOUNGEST_FIRST", "OLDEST_FIRST"))
	maybe("taskKillGracePeriodSeconds", r.IntN(60))
	maybe("user", "root")
	maybe("unreachableStrategy", pick("disabled", map[string]any{"inactiveAfterSeconds": 5, "expungeAfterSeconds": 10}))
	maybe("upgradeStrategy", map[string]any{"minimumHealthCapacity": r.Float64(), "maximumOverCapacity": r.Float64()})
	maybe("constraints", []any{pick([]any{"hostname", "UNIQUE"}, []any{"zone", "GROUP_BY"}, []any{"zone", "GROUP_BY", "2"}, []any{"zone", "LIKE", "a|b"}, []any{"zone", "MAX_PER", "5"})})
	maybe("resourceLimits", map[string]any{"cpus": pick("unlimited", 4.0), "mem": pick("unlimited", 128.0)})
	maybe("acceptedResourceRoles", []any{"*"})
	ports := 1 + r.IntN(3)
	var list []any
	if r.IntN(2) == 0 {
		for n := range ports {
			list = append(list, map[string]any{"port": pick(0, 9000+n), "name": fmt.Sprint("p", n), "protocol": pick("tcp", "udp")})
		}
		a["portDefinitions"] = list
		maybe("requirePorts", r.IntN(2) == 0)
		maybe("fetch", []any{map[string]any{"uri": "https://example.com/x.tar.gz", "cache": true}, map[string]any{"uri": "https://example.com/y", "executable": true, "extract": false}})
	} else {
		for n := range ports {
			list = append(list, map[string]any{"containerPort": 80 + n, "hostPort": pick(0, 9100+n), "servicePort": pick(0, 10100+n), "name": fmt.Sprint("p", n), "labels": map[string]any{"VIP_0": fmt.Sprintf("/v:%d", 80+n)}})
		}
		a["networks"] = []any{pick(map[string]any{"mode": "container/bridge"}, map[string]any{"mode": "container", "name": "net"})}
		a["container"] = map[string]any{
			"type": pick("DOCKER", "MESOS"), "docker": map[string]any{"image": pick("nginx", "busybox:1"), "privileged": r.IntN(2) == 0}, "portMappings": list,
			"volumes": []any{map[string]any{"containerPath": "/a", "hostPath": "/b", "mode": pick("RO", "RW")}},
		}
	}
	maybe("healthChecks", []any{map[string]any{"protocol": pick("HTTP", "TCP", "MESOS_HTTP", "HTTPS"), "portIndex": r.IntN(ports), "intervalSeconds": 1 + r.IntN(60)}, map[string]any{"protocol": "COMMAND", "command": map[string]any{"value": "true"}}})
	maybe("readinessChecks", []any{map[string]any{"portName": "p0", "intervalSeconds": 10, "timeoutSeconds": 1 + r.IntN(8)}})
	return a
}

// TestWhatIsPutIsGiven holds for apps of every mixture that what was put is what is got, and that putting
// back what was got changes nothing. A failure tells its seed.
func TestWhatIsPutIsGiven(t *testing.T) {
	for seed := range uint64(150) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			h := newHouse(t)
			body, err := json.Marshal(randomApp(rand.New(rand.NewPCG(seed, 1))))
			if err != nil {
				t.Fatal(err)
			}
			if code, text := h.ask("POST", "/v2/apps", string(body)); code != 201 {
				t.Fatalf("%s was answered with %d: %s", body, code, text)
			}
			h.roundTrip("app", string(body))
		})
	}
}

// FuzzRequests holds that whatever a body says, it is answered: with what became of it, or with what is
// wrong with it in Marathon's form, and never with a fault of ours.
func FuzzRequests(f *testing.F) {
	for _, e := range examples(f) {
		f.Add(e.Kind, string(e.Body))
	}
	for _, body := range []string{`{`, `[]`, `null`, `{"id":5}`, `{"id":"/a","cmd":"x","container":[]}`, `{"id":"/a","groups":[null]}`, `{"id":"/a","containers":[null]}`} {
		f.Add("app", body)
		f.Add("group", body)
		f.Add("pod", body)
	}
	f.Fuzz(func(t *testing.T, kind, body string) {
		to, ok := where[kind]
		if !ok || len(body) > 1<<16 {
			return
		}
		h := newHouse(t)
		code, text := h.ask("POST", to[0], body)
		if code >= 500 || code >= 400 && !strings.Contains(text, `"message"`) {
			t.Errorf("%s was answered with %d: %s", body, code, text)
		}
		if code != 201 {
			return
		}
		var put struct {
			ID string `json:"id"`
		}
		if kind == "app" && json.Unmarshal([]byte(body), &put) == nil {
			h.play()
			if code, text := h.ask("GET", "/v2/apps/"+strings.TrimPrefix(put.ID, "/"), ""); code != 200 {
				t.Errorf("%s was taken and is not there: %d %s", body, code, text)
			}
		}
	})
}

// FuzzChanges holds the same of what an app or a group is changed to, and that an app can be read after it.
func FuzzChanges(f *testing.F) {
	for _, e := range examples(f) {
		if e.Kind == "app" || e.Kind == "group" {
			f.Add(e.Kind == "group", false, string(e.Body))
			f.Add(e.Kind == "group", true, string(e.Body))
		}
	}
	for _, body := range []string{`{"instances":null}`, `{"version":"x"}`, `{"env":null,"labels":{"a":"b"}}`, `{"cmd":null,"args":["x"]}`, `{"ports":[0,1]}`, `{"container":null}`, `{"networks":[]}`} {
		f.Add(false, true, body)
	}
	for _, body := range []string{`{"scaleBy":1.5}`, `{"version":"x"}`, `{"enforceRole":true}`, `{"apps":[{"id":"a","cmd":"x"}],"groups":[{"id":"b"}]}`} {
		f.Add(true, false, body)
	}
	f.Fuzz(func(t *testing.T, group, partial bool, body string) {
		if len(body) > 1<<16 {
			return
		}
		h := newHouse(t)
		h.want("POST", "/v2/apps", `{"id":"/g/a","cmd":"x","cpus":0.1,"mem":16}`, 201)
		h.play()
		method, path := "PUT", "/v2/apps/g/a"
		if group {
			path = "/v2/groups/g"
		}
		if partial {
			method = "PATCH"
		}
		code, text := h.ask(method, path, body)
		if code >= 500 || code >= 400 && !strings.Contains(text, `"message"`) {
			t.Errorf("%s %s was answered with %d: %s", method, body, code, text)
		}
		if code, text := h.ask("GET", "/v2/apps/g/a", ""); code != 200 && !group {
			t.Errorf("after %s %s it is not there: %d %s", method, body, code, text)
		}
	})
}

// FuzzSelectors holds that every selector of labels is read or refused.
func FuzzSelectors(f *testing.F) {
	for _, text := range []string{"a", "a==b, c!=d", "e in (f, g), h notin (i)", "a in (", ",", "a==", "é==ü"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		h := newHouse(t)
		if code, answer := h.ask("GET", "/v2/apps?label="+url.QueryEscape(text), ""); code != 200 && code != 400 {
			t.Errorf("%q was answered with %d: %s", text, code, answer)
		}
	})
}
