//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// ask asks an API at a socket of the first host.
func ask(t *testing.T, socket, method, path, body string, into any) {
	t.Helper()
	if err := tryAsk(socket, method, path, body, into); err != nil {
		t.Fatal(err)
	}
}

func tryAsk(socket, method, path, body string, into any) error {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(runDir, "hosts", "host-1", socket))
	}}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequest(method, "http://host"+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: transport, Timeout: 30 * time.Second}).Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s %s is answered with %s: %s", method, path, resp.Status, data)
	}
	if err == nil && into != nil {
		err = json.Unmarshal(data, into)
	}
	return err
}

// statesOf counts the tasks of an app of Marathon's by their states.
func statesOf(app string) (string, error) {
	var list struct {
		Tasks []struct {
			AppID string `json:"appId"`
			State string `json:"state"`
		} `json:"tasks"`
	}
	if err := tryAsk("marathon.sock", "GET", "/v2/tasks", "", &list); err != nil {
		return "", err
	}
	counts := map[string]int{}
	for _, task := range list.Tasks {
		if task.AppID == app {
			counts[task.State]++
		}
	}
	var out []string
	for _, state := range slices.Sorted(maps.Keys(counts)) {
		out = append(out, fmt.Sprint(counts[state], " ", state))
	}
	return strings.Join(out, ", "), nil
}

func untilTasksAre(t *testing.T, app, want string) {
	t.Helper()
	eventually(t, time.Minute, app+" has "+want, func() error {
		got, err := statesOf(app)
		if err == nil && got != want {
			err = fmt.Errorf("it has %s", got)
		}
		return err
	})
}

// TestMarathonsAppsInEveryWord brings apps by a file of Marathon's, shows one to Docker's API, scales it beside
// Marathon, and cuts the power of a host.
func TestMarathonsAppsInEveryWord(t *testing.T) {
	const group = `{"id": "/plain", "apps": [
		{"id": "fast", "cmd": "exec sleep 1000", "instances": 3, "cpus": 0.05, "mem": 16, "constraints": [["hostname", "MAX_PER", "2"]]},
		{"id": "waits", "cmd": "exec sleep 1000", "instances": 3, "cpus": 0.05, "mem": 16, "constraints": [["hostname", "MAX_PER", "2"]], "unreachableStrategy": "disabled"}]}`
	file := filepath.Join(t.TempDir(), "group.json")
	if err := os.WriteFile(file, []byte(group), 0o600); err != nil {
		t.Fatal(err)
	}
	removeIfFailed(t, "plain")
	tutti(t, "deploy", "-f", file)
	untilTasksAre(t, "/plain/fast", "3 TASK_RUNNING")
	untilTasksAre(t, "/plain/waits", "3 TASK_RUNNING")
	var services []struct {
		Spec struct{ Name string }
	}
	ask(t, "docker.sock", "GET", "/services", "", &services)
	var names []string
	for _, s := range services {
		names = append(names, s.Spec.Name)
	}
	if !slices.Contains(names, "plain_fast") {
		t.Errorf("Docker's API lists %v", names)
	}
	tutti(t, "scale", "plain/fast=4")
	untilTasksAre(t, "/plain/fast", "4 TASK_RUNNING")
	var app struct {
		App struct {
			Instances int `json:"instances"`
		} `json:"app"`
	}
	if ask(t, "marathon.sock", "GET", "/v2/apps/plain/fast", "", &app); app.App.Instances != 4 {
		t.Errorf("Marathon's API says %d", app.App.Instances)
	}
	refused(t, []string{file, "/instances", "greater than or equal to 0"}, "deploy", "-f", badFile(t, file))

	tutti(t, "host", "kill", "host-3")
	untilTasksAre(t, "/plain/waits", "2 TASK_RUNNING, 1 TASK_UNREACHABLE")
	untilTasksAre(t, "/plain/fast", "4 TASK_RUNNING")
	tutti(t, "host", "start", "host-3")
	untilTasksAre(t, "/plain/waits", "3 TASK_RUNNING")
	ask(t, "marathon.sock", "DELETE", "/v2/groups/plain?force=true", "", nil)
	untilTasksAre(t, "/plain/fast", "")
	untilTasksAre(t, "/plain/waits", "")
	allWell(t, time.Minute)
}

// badFile makes a file one that is refused.
func badFile(t *testing.T, file string) string {
	t.Helper()
	if err := os.WriteFile(file, []byte(`{"id": "/plain/bad", "cmd": "x", "instances": -1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
