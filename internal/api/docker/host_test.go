package docker_test

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/tutti-run/tutti/internal/api/docker"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/model"
)

// lonely is a host that answers for itself.
func lonely(id string, enter func(context.Context, docker.Entry) (string, error)) func(method, path, body string) (int, string) {
	api := docker.OfHost(docker.Deps{
		NodeName: "host-9", NodeID: id, Version: "test", Log: slog.New(slog.DiscardHandler),
		Caller: func(context.Context) core.Caller { return core.Local("test", "docker") },
	}, docker.Host{
		Node:  &model.Node{Meta: model.Meta{ID: id, Name: "host-9"}, Capacity: model.Resources{NanoCPUs: 2e9, MemoryBytes: 4 << 30}, Attributes: map[string]string{"kernel": "6.1"}},
		Enter: enter,
	})
	return func(method, path, body string) (int, string) {
		var r io.Reader
		if body != "" {
			r = strings.NewReader(body)
		}
		req := httptest.NewRequest(method, path, r)
		w := httptest.NewRecorder()
		api.ServeHTTP(w, req)
		return w.Code, w.Header().Get("Swarm") + w.Body.String()
	}
}

// TestAHostOfNoCluster holds what a host answers that waits for one, and what it makes of requests to found or
// join one.
func TestAHostOfNoCluster(t *testing.T) {
	var entries []docker.Entry
	ask := lonely("", func(_ context.Context, e docker.Entry) (string, error) {
		entries = append(entries, e)
		return "n9", nil
	})
	for path, want := range map[string]string{
		"/_ping": "inactiveOK", "/version": `"KernelVersion":"6.1"`, "/info": `"LocalNodeState":"inactive"`,
	} {
		if code, text := ask("GET", path, ""); code != 200 || !strings.Contains(text, want) {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
	for _, path := range []string{"/swarm", "/nodes", "/services", "/tasks", "/secrets", "/configs", "/nodes/self"} {
		if code, text := ask("GET", path, ""); code != 503 || !strings.Contains(text, "This node is not a swarm manager. Use ") {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
	for _, path := range []string{"/containers/json", "/images/json", "/events", "/networks"} {
		if code, text := ask("GET", path, ""); code != 503 || !strings.Contains(text, "is of no cluster yet") {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
	if code, text := ask("POST", "/swarm/leave", ""); code != 503 || !strings.Contains(text, "This node is not part of a swarm") {
		t.Errorf("leave: %d %s", code, text)
	}
	for _, try := range []struct {
		path, body string
		status     int
		says       string
	}{
		{"/swarm/init", `{"ListenAddr":"0.0.0.0:2377","AdvertiseAddr":"10.0.0.7:7401","DefaultAddrPool":["10.99.0.0/16"],"SubnetSize":24,"AutoLockManagers":true,"Availability":"drain","Spec":{"Labels":null,"Orchestration":{},"Raft":{},"Dispatcher":{},"CAConfig":{},"TaskDefaults":{},"EncryptionConfig":{"AutoLockManagers":true}}}`, 200, `"n9"`},
		{"/swarm/join", `{"ListenAddr":"0.0.0.0:2377","AdvertiseAddr":"lo","RemoteAddrs":["10.0.0.5:7400"],"JoinToken":"tutti1-x","Availability":"active"}`, 200, ""},
		{"/swarm/init", `{"ForceNewCluster":true,"Spec":{}}`, 501, "--force-new-cluster"},
		{"/swarm/init", `{"DataPathPort":5000,"Spec":{}}`, 501, "--data-path-port"},
		{"/swarm/init", `{"SubnetSize":20,"Spec":{}}`, 501, "mask-length"},
		{"/swarm/init", `{"Spec":{"CAConfig":{"NodeCertExpiry":3600000000000}}}`, 501, "CAConfig.NodeCertExpiry"},
		{"/swarm/init", `{"AdvertiseAddr":"nosuchlink","Spec":{}}`, 400, "the name of one of its interfaces"},
		{"/swarm/init", `{"AdvertiseAddr":"fd00::1","Spec":{}}`, 501, "IPv4"},
		{"/swarm/init", `{"Availability":"tired","Spec":{}}`, 400, "invalid availability"},
		{"/swarm/init", `{"Spec":{},"Nonsense":1}`, 501, "Nonsense"},
		{"/swarm/join", `{"JoinToken":"tutti1-x"}`, 400, "RemoteAddr"},
		{"/swarm/join", `{"RemoteAddrs":["10.0.0.5"]}`, 400, "join token"},
		{"/swarm/join", `{"RemoteAddrs":["10.0.0.5"],"JoinToken":"x","Availability":"drain"}`, 501, "--availability"},
		{"/swarm/join", `{"RemoteAddrs":["10.0.0.5"],"JoinToken":"x","DataPathAddr":"10.0.0.9"}`, 501, "--data-path-addr"},
	} {
		if code, text := ask("POST", try.path, try.body); code != try.status || !strings.Contains(text, try.says) {
			t.Errorf("%s %s: %d %s", try.path, try.body, code, text)
		}
	}
	want := []docker.Entry{
		{Address: "10.0.0.7", Port: 7401, AddressPool: "10.99.0.0/16", Autolock: true, Availability: model.Draining},
		{Address: "127.0.0.1", Server: "10.0.0.5:7400", Token: "tutti1-x"},
	}
	if !reflect.DeepEqual(entries, want) {
		t.Errorf("asked for %+v, want %+v", entries, want)
	}
}

// TestAnAgentThatIsNotTrusted holds that a host whose administrator does not have the cluster says so, and
// answers about itself.
func TestAnAgentThatIsNotTrusted(t *testing.T) {
	ask := lonely("n9", nil)
	if code, text := ask("GET", "/_ping", ""); code != 200 || text != "active/workerOK" {
		t.Errorf("ping: %d %s", code, text)
	}
	code, text := ask("GET", "/info", "")
	var info struct {
		Swarm struct {
			NodeID, LocalNodeState string
			ControlAvailable       bool
		}
	}
	if err := json.Unmarshal([]byte(text), &info); err != nil || code != 200 || info.Swarm.NodeID != "n9" || info.Swarm.LocalNodeState != "active" || info.Swarm.ControlAvailable {
		t.Errorf("info: %d %s", code, text)
	}
	if code, text := ask("GET", "/services", ""); code != 503 || !strings.Contains(text, "Worker nodes can't be used to view or modify cluster state") {
		t.Errorf("services: %d %s", code, text)
	}
	if code, text := ask("GET", "/containers/json", ""); code != 403 || !strings.Contains(text, "tutti node trust host-9") {
		t.Errorf("containers: %d %s", code, text)
	}
	if code, text := ask("POST", "/swarm/join", `{"RemoteAddrs":["10.0.0.5"],"JoinToken":"x"}`); code != 503 || !strings.Contains(text, "already part of a swarm") {
		t.Errorf("join: %d %s", code, text)
	}
	if code, text := ask("POST", "/swarm/leave", ""); code != 501 || !strings.Contains(text, "--waiting") {
		t.Errorf("leave of a host that was not started to wait: %d %s", code, text)
	}
}
