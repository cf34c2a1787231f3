package control

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/autoscale"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

const (
	// scaleEvery is between two looks; usage of processors is that since the one before.
	scaleEvery = 5 * time.Second
	// scalePatience bounds a question to a node or to a Prometheus server.
	scalePatience = 3 * time.Second
	// askedAtOnce bounds the questions that are under way.
	askedAtOnce = 32
)

// TaskUsage is what a task has used at a time: processors since it began, and memory now.
type TaskUsage struct {
	Time           time.Time
	CPUNanoseconds uint64
	MemoryBytes    uint64
}

// Scaler changes the counts of services that ask for it; see package autoscale.
type Scaler struct {
	Store *store.Store
	// Usage asks a node what a task uses.
	Usage func(ctx context.Context, nodeID, instance, task string) (TaskUsage, error)
	// Node asks a node what all of its instances use, and what came to its ingress.
	Node func(ctx context.Context, nodeID string) (NodeUsage, error)
	HTTP *http.Client // to Prometheus servers
	Log  *slog.Logger

	last map[taskKey]TaskUsage
	past map[string][]autoscale.Wish // by workload ID
	told map[string]string           // by workload ID: what could not be measured, as it was told last

	// Heat, unless nil, is told what nodes use, while a workload asks to be rebalanced.
	Heat *Heat

	nodes map[string]nodeTold // by node ID, of this look; nil: not asked yet
	were  map[string]nodeTold // of the look before
}

type taskKey struct{ instance, task string }

// Run works until ctx, the leadership, is done.
func (s *Scaler) Run(ctx context.Context) error {
	s.last, s.past, s.told = map[taskKey]TaskUsage{}, map[string][]autoscale.Wish{}, map[string]string{}
	s.nodes, s.were = nil, nil
	tick := time.NewTicker(scaleEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			s.look(ctx, now)
		}
	}
}

// look takes one step with every service that asks for it.
func (s *Scaler) look(ctx context.Context, now time.Time) {
	snap := s.Store.Snapshot()
	s.nodes, s.were = nil, s.nodes
	seen, past := map[taskKey]TaskUsage{}, map[string][]autoscale.Wish{}
	for w := range store.List[*model.Workload](snap) {
		if w.Autoscale == nil || w.Type != model.ServiceWorkload || w.Suspended || w.Paused {
			continue
		}
		in := autoscale.Input{Policy: w.Autoscale, Count: w.Count, Past: s.past[w.ID], Now: now, Readings: s.measure(ctx, snap, w, seen)}
		s.tell(w, in.Readings)
		out := autoscale.Next(in)
		past[w.ID] = out.Past
		if out.Count == w.Count {
			continue
		}
		if err := s.change(ctx, w, &out, now); err != nil && !fault.Is(err, fault.Conflict) && ctx.Err() == nil {
			s.Log.Warn("service could not be scaled yet", "workload", w.FullName(), "error", err)
		}
	}
	s.last, s.past = seen, past
	s.measureHeat(ctx, snap, now)
}

// tell logs what cannot be measured, once.
func (s *Scaler) tell(w *model.Workload, readings []autoscale.Reading) {
	why := ""
	for _, r := range readings {
		if r.Err != nil {
			why = fmt.Sprintf("%s: %v", r.Metric.Kind, r.Err)
		}
	}
	if why != "" && s.told[w.ID] != why {
		s.Log.Warn("what a service is scaled by is not known", "workload", w.FullName(), "error", why)
	}
	s.told[w.ID] = why
}

func (s *Scaler) change(ctx context.Context, w *model.Workload, out *autoscale.Output, now time.Time) error {
	c := w.Clone()
	c.Count = out.Count
	c.Generation++
	cs := &store.ChangeSet{}
	cs.Expect(model.KindWorkload, w.ID, w.Revision)
	cs.Put(c)
	cs.Put(model.NewEvent(now, "workload scaled", c, fmt.Sprintf("from %d to %d: %s", w.Count, out.Count, out.Reason)))
	if _, err := s.Store.Commit(ctx, cs); err != nil {
		return err
	}
	s.Log.Info("service scaled", "workload", w.FullName(), "from", w.Count, "to", out.Count, "reason", out.Reason)
	return nil
}

// measure reads a service's metrics. What tasks used is put into seen, too, for the next time.
func (s *Scaler) measure(ctx context.Context, snap *store.Snapshot, w *model.Workload, seen map[taskKey]TaskUsage) (out []autoscale.Reading) {
	var shares map[model.ScaleMetricKind][]float64 // percent, by instance
	for _, m := range w.Autoscale.Metrics {
		r := autoscale.Reading{Metric: m}
		switch m.Kind {
		case model.ScalePrometheus:
			r.Total, r.Err = s.Query(ctx, m.Server, m.Query)
		case model.ScaleRequests:
			var known bool
			if r.Total, known, r.Err = s.requests(ctx, snap, w); !known && r.Err == nil {
				continue // nothing to compare with yet
			}
		default:
			if shares == nil {
				shares = s.usage(ctx, snap, w, seen)
			}
			for _, share := range shares[m.Kind] {
				r.Total += share
				r.Of++
			}
		}
		out = append(out, r)
	}
	return out
}

// usage asks the nodes of a service's ready instances, and returns percentages of those that answered,
// by metric. Tasks that neither reserve nor limit anything do not count.
func (s *Scaler) usage(ctx context.Context, snap *store.Snapshot, w *model.Workload, seen map[taskKey]TaskUsage) map[model.ScaleMetricKind][]float64 {
	type answer struct {
		task taskKey
		used TaskUsage
		err  error
	}
	out := map[model.ScaleMetricKind][]float64{}
	room := make(chan struct{}, askedAtOnce)
	var all sync.WaitGroup
	asked := map[string][]*answer{} // by instance
	tasks := map[string]*model.Template{}
	for i := range store.InstancesOfWorkload(snap, w.ID) {
		r, ok := store.Get[*model.Revision](snap, i.RevisionID)
		if !ok || !i.Serving() {
			continue
		}
		tasks[i.ID] = &r.Template
		for n := range r.Template.Tasks {
			a := &answer{task: taskKey{i.ID, r.Template.Tasks[n].Name}}
			asked[i.ID] = append(asked[i.ID], a)
			all.Go(func() {
				room <- struct{}{}
				defer func() { <-room }()
				ctx, cancel := context.WithTimeout(ctx, scalePatience)
				defer cancel()
				a.used, a.err = s.Usage(ctx, i.NodeID, a.task.instance, a.task.task)
			})
		}
	}
	all.Wait()
	for id, answers := range asked {
		var cpu, cpuOf, memory, memoryOf float64
		known, before := true, true
		for n, a := range answers {
			task := &tasks[id].Tasks[n]
			if a.err != nil {
				known = false
				break
			}
			seen[a.task] = a.used
			was, ok := s.last[a.task]
			span := a.used.Time.Sub(was.Time)
			if !ok || span <= 0 || a.used.CPUNanoseconds < was.CPUNanoseconds {
				before = false
			} else if of := autoscale.Basis(task.Reserve.NanoCPUs, task.Limit.NanoCPUs); of > 0 {
				cpu, cpuOf = cpu+float64(a.used.CPUNanoseconds-was.CPUNanoseconds)/span.Seconds(), cpuOf+of
			}
			if of := autoscale.Basis(task.Reserve.MemoryBytes, task.Limit.MemoryBytes); of > 0 {
				memory, memoryOf = memory+float64(a.used.MemoryBytes), memoryOf+of
			}
		}
		if known && before && cpuOf > 0 {
			out[model.ScaleCPU] = append(out[model.ScaleCPU], 100*cpu/cpuOf)
		}
		if known && memoryOf > 0 {
			out[model.ScaleMemory] = append(out[model.ScaleMemory], 100*memory/memoryOf)
		}
	}
	return out
}

// answerBytes bounds what a Prometheus server may answer.
const answerBytes = 1 << 20

// Query asks a Prometheus server for the value of a query now: a scalar, or the sum of a vector. See
// https://prometheus.io/docs/prometheus/latest/querying/api/.
func (s *Scaler) Query(ctx context.Context, server, query string) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, scalePatience)
	defer cancel()
	address := strings.TrimSuffix(server, "/") + "/api/v1/query?query=" + url.QueryEscape(query)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return 0, err
	}
	resp, err := s.HTTP.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, answerBytes))
	if err != nil {
		return 0, err
	}
	return valueOf(body, resp.Status)
}

// valueOf reads the answer to a query.
func valueOf(body []byte, status string) (float64, error) {
	type sample [2]any // time, value
	var answer struct {
		Status string
		Error  string
		Data   struct {
			ResultType string
			Result     json.RawMessage
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return 0, fmt.Errorf("the server answers %s, and no JSON: %w", status, err)
	}
	if answer.Status != "success" {
		return 0, fmt.Errorf("the server refuses the query: %s", answer.Error)
	}
	number := func(s sample) (float64, error) {
		text, ok := s[1].(string)
		if !ok {
			return 0, fmt.Errorf("the server answers with a value that is no text: %v", s[1])
		}
		v, err := strconv.ParseFloat(text, 64)
		if err != nil || v != v || v < 0 || v > 1e15 {
			return 0, fmt.Errorf("the query yields %s, which is no number of anything", text)
		}
		return v, nil
	}
	switch answer.Data.ResultType {
	case "scalar":
		var one sample
		if err := json.Unmarshal(answer.Data.Result, &one); err != nil {
			return 0, fmt.Errorf("read the scalar: %w", err)
		}
		return number(one)
	case "vector":
		var list []struct{ Value sample }
		if err := json.Unmarshal(answer.Data.Result, &list); err != nil {
			return 0, fmt.Errorf("read the vector: %w", err)
		}
		if len(list) == 0 {
			return 0, fmt.Errorf("the query yields nothing; write `or vector(0)` behind it where that means zero")
		}
		sum := 0.0
		for _, e := range list {
			v, err := number(e.Value)
			if err != nil {
				return 0, err
			}
			sum += v
		}
		return sum, nil
	}
	return 0, fmt.Errorf("the query yields a %s; a scalar or a vector is needed", answer.Data.ResultType)
}
