package control_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tutti-run/tutti/internal/control"
	"github.com/tutti-run/tutti/internal/model"
)

// TestAServiceFollowsItsLoad lets a service share a load; each instance shows its part of it.
func TestAServiceFollowsItsLoad(t *testing.T) {
	inCluster(t, 3, func(c *cluster) {
		var load atomic.Int64 // billionths of a processor, in all
		began := time.Now()
		var mu sync.Mutex
		var used [2]float64 // nanoseconds until a time, and that time in seconds since began
		s := &control.Scaler{Store: c.store, Log: slog.New(slog.DiscardHandler)}
		s.Usage = func(_ context.Context, node, instance, task string) (control.TaskUsage, error) {
			mu.Lock()
			defer mu.Unlock()
			if at := time.Since(began).Seconds(); at > used[1] { // the first of a look
				used = [2]float64{used[0] + float64(load.Load())*(at-used[1])/float64(len(c.instances("web"))), at}
			}
			if node == "" || task != "main" {
				t.Errorf("asked %q for task %q of %s", node, task, instance)
			}
			return control.TaskUsage{Time: time.Now(), CPUNanoseconds: uint64(used[0])}, nil
		}
		defer c.start("scaler", s.Run)()

		c.deploy(workload("web", 2, func(w *model.Workload) {
			w.Template.Tasks[0].Reserve.NanoCPUs = 1e9
			w.Autoscale = &model.Autoscale{Min: 2, Max: 8, Metrics: []model.ScaleMetric{{Kind: model.ScaleCPU, Target: 50}}}
		}), workload("other", 2))
		step := func(d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); {
				c.agents()
				time.Sleep(time.Second)
			}
			synctest.Wait()
		}
		want := func(count int, when string) {
			t.Helper()
			if w := get[*model.Workload](c, "w-web"); w.Count != count {
				t.Fatalf("%s there are %d, want %d; %v", when, w.Count, count, c.events("workload scaled"))
			}
		}
		load.Store(1e9)
		step(20 * time.Second)
		want(2, "at its target")
		load.Store(2.6e9)
		step(30 * time.Second)
		want(6, "under load")
		if told := c.events("workload scaled"); len(told) == 0 || !strings.Contains(strings.Join(told, "\n"), "cpu is at") {
			t.Errorf("events: %q", told)
		}
		load.Store(0)
		step(4 * time.Minute)
		want(6, "in a lull")
		step(2 * time.Minute)
		want(2, "at rest")
		if w := get[*model.Workload](c, "w-other"); w.Count != 2 {
			t.Errorf("the other service has %d", w.Count)
		}
	})
}

// TestAServiceFollowsItsRequests lets requests come to two of three hosts, one of whose ingresses begins
// anew, and then to none, until the service is scaled to zero; the first request after that wakes it.
func TestAServiceFollowsItsRequests(t *testing.T) {
	inCluster(t, 3, func(c *cluster) {
		var mu sync.Mutex
		rate, came := 0.0, map[string]float64{}
		last := time.Now()
		count := func() { // under mu
			span := time.Since(last).Seconds()
			last = time.Now()
			came["n01"] += rate * span * 3 / 4
			came["n02"] += rate * span / 4
		}
		s := &control.Scaler{Store: c.store, Log: slog.New(slog.DiscardHandler)}
		s.Node = func(_ context.Context, node string) (control.NodeUsage, error) {
			mu.Lock()
			defer mu.Unlock()
			count()
			return control.NodeUsage{Time: time.Now(), Requests: map[string]uint64{"s-web": uint64(came[node]), "s-other": 1 << 30}}, nil
		}
		defer c.start("scaler", s.Run)()
		c.deploy(workload("web", 1, func(w *model.Workload) {
			w.Autoscale = &model.Autoscale{Min: 0, Max: 8, DownAfter: time.Minute, Metrics: []model.ScaleMetric{{Kind: model.ScaleRequests, Target: 20}}}
		}))
		c.put(&model.Service{
			Meta: model.Meta{ID: "s-web", Namespace: "default", Application: "shop", Name: "web"}, WorkloadID: "w-web", Routes: []model.Route{{Target: 80}},
		})
		go1 := func(r float64, d time.Duration, want int) {
			t.Helper()
			mu.Lock()
			count()
			rate = r
			mu.Unlock()
			for end := time.Now().Add(d); time.Now().Before(end); {
				c.agents()
				time.Sleep(time.Second)
			}
			synctest.Wait()
			if w := get[*model.Workload](c, "w-web"); w.Count != want {
				t.Fatalf("at %g requests a second there are %d, want %d; %v", r, w.Count, want, c.events("workload scaled"))
			}
		}
		go1(110, 30*time.Second, 6)
		mu.Lock()
		clear(came)
		mu.Unlock()
		go1(110, 30*time.Second, 6)
		go1(20, 2*time.Minute, 1)
		go1(0, 2*time.Minute, 0)
		go1(1, 20*time.Second, 1)
	})
}

func TestQueries(t *testing.T) {
	answer := ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/v1/query" || r.URL.Query().Get("query") != `sum(x{a="b"})` {
			t.Errorf("asked for %s", r.URL)
		}
		if _, err := w.Write([]byte(answer)); err != nil {
			t.Error(err)
		}
	}))
	defer server.Close()
	s := &control.Scaler{HTTP: server.Client()}
	for text, want := range map[string]struct {
		value float64
		says  string
	}{
		`{"status":"success","data":{"resultType":"scalar","result":[1700000000.1,"42.5"]}}`:                                                {value: 42.5},
		`{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1,"2"]},{"metric":{"a":"b"},"value":[1,"3"]}]}}`: {value: 5},
		`{"status":"success","data":{"resultType":"vector","result":[]}}`:                                                                   {says: "yields nothing"},
		`{"status":"success","data":{"resultType":"matrix","result":[]}}`:                                                                   {says: "yields a matrix"},
		`{"status":"success","data":{"resultType":"scalar","result":[1,"NaN"]}}`:                                                            {says: "no number"},
		`{"status":"success","data":{"resultType":"scalar","result":[1,2]}}`:                                                                {says: "no text"},
		`{"status":"error","error":"parse error"}`:                                                                                          {says: "parse error"},
		`<html>`: {says: "no JSON"},
	} {
		answer = text
		got, err := s.Query(t.Context(), server.URL+"/", `sum(x{a="b"})`)
		switch {
		case want.says == "" && (err != nil || got != want.value):
			t.Errorf("%s: %v, %v; want %v", text, got, err, want.value)
		case want.says != "" && (err == nil || !strings.Contains(err.Error(), want.says)):
			t.Errorf("%s: %v, %v; want %q", text, got, err, want.says)
		}
	}
}
