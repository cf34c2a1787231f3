// Package apps measures Marathon's API with ten thousand apps, each with a task: how long they take to be
// listed, read, made and scaled, how long until the event stream tells, and what memory that takes. The nodes
// are played within this process, and the store is neither replicated nor on disk: what is measured is the
// API, the core and the store, over HTTP on loopback.
package apps

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tutti-run/tutti/bench/internal/report"
)

// size says how much is asked for.
type size struct {
	groups, inGroup int // apps
	looks           int // at lists
	changes         int // one after the other
	followers       int // of the event stream
}

func sizeOf(brief bool) size {
	if brief {
		return size{groups: 10, inGroup: 1000, looks: 5, changes: 50, followers: 20}
	}
	return size{groups: 10, inGroup: 1000, looks: 20, changes: 300, followers: 100}
}

// Run measures.
func Run(ctx context.Context, sheet *report.Sheet, brief bool) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	var g errgroup.Group
	defer func() {
		cancel()
		err = errors.Join(err, g.Wait())
	}()
	t, err := open(ctx, &g)
	if err != nil {
		return err
	}
	b := &bench{town: t, sheet: sheet, size: sizeOf(brief)}
	for _, part := range []func(context.Context) error{b.fill, b.look, b.make, b.scale, b.follow} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	return nil
}

type bench struct {
	*town
	sheet *report.Sheet
	size
}

const played = "nodes played in the same process, no replication, no disk; HTTP on loopback"

func (b *bench) apps() int { return b.groups * b.inGroup }

func (b *bench) ask(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, b.url+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s %s is answered with %s: %s", method, path, resp.Status, answer[:min(len(answer), 500)])
	}
	return answer, err
}

// times runs something so often, one after the other.
func times(n int, do func(i int) error) (took []time.Duration, err error) {
	for i := range n {
		began := time.Now()
		if err := do(i); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began))
	}
	return took, nil
}

func (b *bench) rows(name string, took []time.Duration, counted string) error {
	name = fmt.Sprintf("marathon/%d-apps/%s", b.apps(), name)
	counted += "; " + played
	return errors.Join(
		b.sheet.AddAlone(name+"/p50", report.Percentile(took, 0.5), "ms", counted),
		b.sheet.AddAlone(name+"/p99", report.Percentile(took, 0.99), "ms", counted),
	)
}

func heap() float64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

func app(id string, instances int) map[string]any {
	return map[string]any{
		"id": id, "cmd": "exec ./server --port $PORT0", "instances": instances, "cpus": 0.01, "mem": 8, "labels": map[string]any{"team": "t" + id[len(id)-1:]},
		"env":          map[string]any{"LOG": "info", "REGION": "eu"},
		"healthChecks": []any{map[string]any{"protocol": "MESOS_HTTP", "path": "/healthz", "portIndex": 0}},
	}
}

// fill puts the groups.
func (b *bench) fill(ctx context.Context) error {
	b.sheet.Say("putting %d apps in %d groups", b.apps(), b.groups)
	before := heap()
	began := time.Now()
	for n := range b.groups {
		group := map[string]any{"id": fmt.Sprintf("/g%d", n)}
		var apps []any
		for i := range b.inGroup {
			apps = append(apps, app(fmt.Sprintf("/g%d/app-%d", n, i), 1))
		}
		group["apps"] = apps
		body, err := json.Marshal(group)
		if err != nil {
			return err
		}
		if _, err := b.ask(ctx, http.MethodPut, "/v2/groups", body); err != nil {
			return err
		}
	}
	if err := b.settled(ctx); err != nil {
		return err
	}
	took := time.Since(began).Seconds()
	counted := fmt.Sprintf("%d groups of %d apps with one task each, one PUT after the other, until no deployment is left; %s", b.groups, b.inGroup, played)
	return errors.Join(
		b.sheet.AddAlone(fmt.Sprintf("marathon/%d-apps/put", b.apps()), float64(b.apps())/took, "apps/s", counted),
		b.sheet.AddAlone(fmt.Sprintf("marathon/%d-apps/memory-of-one", b.apps()), (heap()-before)/float64(b.apps())/1024, "KiB",
			"live heap after garbage collection, an app with its task, revision, version and index, and the store's history of changes; "+played),
	)
}

// settled waits until no deployment is left.
func (b *bench) settled(ctx context.Context) error {
	for until := time.Now().Add(2 * time.Minute); ; {
		body, err := b.ask(ctx, http.MethodGet, "/v2/deployments", nil)
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(body)) == "[]" {
			return nil
		}
		if time.Now().After(until) {
			return errors.New("deployments do not end: " + string(body[:min(len(body), 500)]))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// look reads lists and single apps.
func (b *bench) look(ctx context.Context) error {
	b.sheet.Say("reading")
	for _, kind := range []struct{ name, path, counted string }{
		{"list", "/v2/apps", "GET /v2/apps"},
		{"list-with-tasks", "/v2/apps?embed=apps.tasks", "GET /v2/apps?embed=apps.tasks"},
		{"list-by-label", "/v2/apps?label=team==t7", "GET /v2/apps?label=…, a tenth of the apps"},
		{"list-ids", "/v2/apps?id=app-77", "GET /v2/apps?id=…, a hundredth of the apps"},
		{"tasks", "/v2/tasks", "GET /v2/tasks"},
		{"groups", "/v2/groups", "GET /v2/groups, all of it"},
		{"queue", "/v2/queue", "GET /v2/queue, of nothing"},
	} {
		bytes := 0
		took, err := times(b.looks, func(int) error {
			body, err := b.ask(ctx, http.MethodGet, kind.path, nil)
			bytes = len(body)
			return err
		})
		if err != nil {
			return err
		}
		if err := b.rows(kind.name, took, fmt.Sprintf("%s, %.1f MB, one after the other", kind.counted, float64(bytes)/1e6)); err != nil {
			return err
		}
	}
	took, err := times(b.changes, func(i int) error {
		_, err := b.ask(ctx, http.MethodGet, fmt.Sprintf("/v2/apps/g%d/app-%d", i%b.groups, i), nil)
		return err
	})
	if err != nil {
		return err
	}
	return b.rows("get", took, "GET /v2/apps/ID, one after the other")
}

// make adds apps.
func (b *bench) make(ctx context.Context) error {
	b.sheet.Say("making apps")
	took, err := times(b.changes, func(i int) error {
		a := app(fmt.Sprintf("/more/app-%d", i), 1)
		a["portDefinitions"] = []any{} // all service ports are taken
		delete(a, "healthChecks")
		body, err := json.Marshal(a)
		if err == nil {
			_, err = b.ask(ctx, http.MethodPost, "/v2/apps", body)
		}
		return err
	})
	if err != nil {
		return err
	}
	return b.rows("create", took, "POST /v2/apps, one after the other, until it is answered")
}

// follower follows the event stream, and says which tasks run.
type follower struct {
	mu     sync.Mutex
	events int
	heard  map[string]chan struct{} // by app: closed when a task of it runs
}

func (b *bench) newFollower(ctx context.Context, g *errgroup.Group) (*follower, error) {
	f := &follower{heard: map[string]chan struct{}{}}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, b.url+"/v2/events", nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Transport: &http.Transport{}}).Do(r)
	if err != nil {
		return nil, err
	}
	g.Go(func() error {
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		lines.Buffer(nil, 16<<20)
		for lines.Scan() {
			data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data: "))
			if !ok {
				continue
			}
			var e struct {
				EventType  string `json:"eventType"`
				AppID      string `json:"appId"`
				TaskStatus string `json:"taskStatus"`
			}
			if err := json.Unmarshal(data, &e); err != nil {
				return fmt.Errorf("read an event: %w", err)
			}
			f.mu.Lock()
			f.events++
			if c := f.heard[e.AppID]; c != nil && e.TaskStatus == "TASK_RUNNING" {
				close(c)
				delete(f.heard, e.AppID)
			}
			f.mu.Unlock()
		}
		return nil // the stream ends with the measurement
	})
	return f, nil
}

func (f *follower) await(app string) <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := make(chan struct{})
	f.heard[app] = c
	return c
}

// following runs something with so many followers.
func (b *bench) following(ctx context.Context, n int, do func(all []*follower) error) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	var g errgroup.Group
	defer func() {
		cancel()
		err = errors.Join(err, g.Wait())
	}()
	var all []*follower
	for range n {
		f, err := b.newFollower(ctx, &g)
		if err != nil {
			return err
		}
		all = append(all, f)
	}
	return do(all)
}

func (b *bench) scaleOne(ctx context.Context, i, to int) error {
	_, err := b.ask(ctx, http.MethodPut, fmt.Sprintf("/v2/apps/g%d/app-%d", i%b.groups, i), fmt.Appendf(nil, `{"instances":%d}`, to))
	return err
}

// scale scales apps one after the other.
func (b *bench) scale(ctx context.Context) error {
	b.sheet.Say("scaling apps")
	return b.following(ctx, 1, func(all []*follower) error {
		took, err := times(b.changes, func(i int) error {
			told := all[0].await(fmt.Sprintf("/g%d/app-%d", i%b.groups, i))
			if err := b.scaleOne(ctx, i, 2); err != nil {
				return err
			}
			select {
			case <-told:
				return nil
			case <-time.After(time.Minute):
				return fmt.Errorf("no event tells of the second task of app %d", i)
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		if err != nil {
			return err
		}
		return b.rows("scale", took, "PUT /v2/apps/ID with two instances, one after the other, until the event stream tells that the second task runs")
	})
}

// follow scales apps while many follow.
func (b *bench) follow(ctx context.Context) error {
	b.sheet.Say("scaling apps while %d follow", b.followers)
	if err := b.settled(ctx); err != nil {
		return err
	}
	return b.following(ctx, b.followers, func(all []*follower) error {
		began := time.Now()
		for i := range b.changes {
			if err := b.scaleOne(ctx, b.inGroup-1-i, 3); err != nil {
				return err
			}
		}
		for _, f := range all { // each has told of the last one
			for until := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
				f.mu.Lock()
				n := f.events
				f.mu.Unlock()
				if n >= 4*b.changes {
					break
				}
				if time.Now().After(until) {
					return fmt.Errorf("a follower has heard of %d events only", n)
				}
			}
		}
		took, events := time.Since(began).Seconds(), 0
		for _, f := range all {
			f.mu.Lock()
			events += f.events
			f.mu.Unlock()
		}
		counted := fmt.Sprintf("%d apps are scaled, one after the other, while %d clients follow the event stream; %s, and the clients there, too", b.changes, b.followers, played)
		name := fmt.Sprintf("marathon/%d-apps/%d-followers", b.apps(), b.followers)
		return b.sheet.AddAlone(name+"/events", float64(events)/took, "events/s", counted)
	})
}
