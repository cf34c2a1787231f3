package core_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// accessed is a line of the log of a node's ingress, written at a second.
func accessed(t *testing.T, second int, service, target string) driver.LogEntry {
	t.Helper()
	at := time.Unix(int64(second), 0).UTC()
	line, err := json.Marshal(wire.Access{Time: at, Service: service, Target: target, Status: 200})
	if err != nil {
		t.Fatal(err)
	}
	return driver.LogEntry{Time: at, Stream: service, Line: line}
}

// TestAccessLogsOfAllNodes are merged, as far as the caller may see them.
func TestAccessLogsOfAllNodes(t *testing.T) {
	b := newBench(t)
	for _, s := range []struct{ namespace, name string }{{"default", "web"}, {"default", "api"}, {"other", "spy"}, {"default", "mute"}} {
		b.put(&model.Workload{Meta: model.Meta{ID: "w" + s.name, Name: s.name, Namespace: s.namespace, Application: "shop"}})
		b.put(&model.Service{
			Meta: model.Meta{ID: s.name, Name: s.name, Namespace: s.namespace, Application: "shop"}, WorkloadID: "w" + s.name,
			Routes: []model.Route{{Host: s.name, Target: 80, AccessLog: s.name != "mute"}},
		})
	}
	var mu sync.Mutex
	logs := map[string][]driver.LogEntry{
		"n1": {accessed(t, 1, "web", "/1"), accessed(t, 3, "spy", "/3"), accessed(t, 5, "web", "/5")},
		"n2": {accessed(t, 2, "api", "/2"), accessed(t, 4, "web", "/4"), {Time: time.Unix(6, 0), Stream: "web", Line: []byte("{")}},
	}
	broken := map[string]bool{}
	following := make(chan struct{}, 100)
	b.access = func(ctx context.Context, node string, r wire.AccessRequest, yield func(driver.LogEntry) error) error {
		mu.Lock()
		if broken[node] {
			mu.Unlock()
			return errors.New("it is gone")
		}
		var list []driver.LogEntry
		for _, e := range logs[node] {
			if (r.All || slices.Contains(r.Services, e.Stream)) && !e.Time.Before(r.Options.Since) {
				list = append(list, e)
			}
		}
		mu.Unlock()
		if n := r.Options.Tail; n >= 0 {
			list = list[max(0, len(list)-n):]
		}
		for _, e := range list {
			if err := yield(e); err != nil {
				return err
			}
		}
		if r.Options.Follow { // and breaks off, so that it is asked again
			following <- struct{}{}
		}
		return nil
	}
	viewer := core.Caller{Name: "x", Via: "test", Grants: []model.Grant{{Role: model.RoleViewer, Namespace: "default"}}}
	all := driver.LogOptions{Tail: -1}
	ask := func(who core.Caller, ref string, o driver.LogOptions) (string, error) {
		var got []string
		err := b.Core.AccessLog(t.Context(), who, ref, o, func(l core.AccessLine) error { got = append(got, l.Node+l.Target); return nil })
		return strings.Join(got, " "), err
	}
	for _, c := range []struct {
		who  core.Caller
		ref  string
		o    driver.LogOptions
		want string
	}{
		{anna, "", all, "node-n1/1 node-n2/2 node-n1/3 node-n2/4 node-n1/5"},
		{viewer, "", all, "node-n1/1 node-n2/2 node-n2/4 node-n1/5"},
		{viewer, "shop/web", all, "node-n1/1 node-n2/4 node-n1/5"},
		{viewer, "shop/web", driver.LogOptions{Tail: 2, Since: time.Unix(2, 0)}, "node-n2/4 node-n1/5"},
		{viewer, "shop/web", driver.LogOptions{}, ""},
		{viewer, "shop/api", all, "node-n2/2"},
	} {
		if got, err := ask(c.who, c.ref, c.o); err != nil || got != c.want {
			t.Errorf("%q with %+v: %q, %v; want %q", c.ref, c.o, got, err, c.want)
		}
	}
	if _, err := ask(viewer, "shop/mute", all); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "access_log") {
		t.Errorf("a service without a log: %v", err)
	}
	if _, err := ask(viewer, "wspy", all); !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Forbidden) {
		t.Errorf("another namespace's: %v", err)
	}
	mu.Lock()
	broken["n1"] = true
	mu.Unlock()
	if got, err := ask(anna, "shop/api", all); got != "node-n2/2" || err == nil || !strings.Contains(err.Error(), "node-n1: it is gone") {
		t.Errorf("with a node that is gone: %q, %v", got, err)
	}

	// Following begins with what there is, and takes up what broke off without saying anything twice.
	mu.Lock()
	broken["n1"] = false
	mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	enough := errors.New("enough")
	var got []string
	more := func(n int) {
		mu.Lock()
		defer mu.Unlock()
		logs["n2"] = append(logs["n2"], accessed(t, n, "web", fmt.Sprint("/", n)))
	}
	err := b.Core.AccessLog(ctx, viewer, "shop/web", driver.LogOptions{Follow: true, Tail: 1}, func(l core.AccessLine) error {
		got = append(got, l.Target)
		switch l.Target {
		case "/5":
			more(7)
		case "/7":
			for range 2 {
				<-following
			}
			more(8)
		case "/8":
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || strings.Join(got, " ") != "/5 /7 /8" {
		t.Errorf("followed are %q, %v", got, err)
	}
}
