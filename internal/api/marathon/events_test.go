package marathon_test

import (
	"bufio"
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestTheStreamTellsOfChecksAndGroups holds that the rarer events come, too, in the order of what happens.
func TestTheStreamTellsOfChecksAndGroups(t *testing.T) {
	h := newHouse(t)
	server := httptest.NewServer(h.api)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer server.Close()
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", server.URL+"/v2/events?plan-format=light", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	await := func(kind, says string) {
		t.Helper()
		var seen []string
		for lines.Scan() {
			name, ok := strings.CutPrefix(lines.Text(), "event: ")
			if !ok {
				continue
			}
			lines.Scan()
			if name == kind && strings.Contains(lines.Text(), says) {
				return
			}
			seen = append(seen, name)
		}
		t.Fatalf("no %s says %s; there were %v: %v", kind, says, seen, lines.Err())
	}
	await("event_stream_attached", "")
	h.want("PUT", "/v2/groups/g", `{"apps":[{"id":"a","cmd":"x","cpus":0.1,"mem":16,"healthChecks":[{"protocol":"COMMAND","command":{"value":"true"}}]}]}`, 201)
	await("add_health_check_event", `"appId":"/g/a"`)
	h.play()
	await("instance_changed_event", `"condition":"Running"`)
	h.want("PUT", "/v2/groups/g", `{"apps":[{"id":"a","cmd":"x","cpus":1000}]}`, 422)
	await("group_change_failed", "can run on no node")
	h.want("DELETE", "/v2/apps/g/a", "", 200)
	await("remove_health_check_event", `"protocol":"COMMAND"`)
}
