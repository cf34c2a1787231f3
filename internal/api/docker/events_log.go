package docker

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// keptEvents is how many past events are told to who asks for them, by each server of what it has seen
// since it was started. (The Engine keeps 256.)
const keptEvents = 1024

// happened are the latest events. One goroutine adds to them; clients read at their own pace, and one
// that is too slow misses some, as with the Engine.
type happened struct {
	mu   sync.Mutex
	list []*message
	next uint64        // number of the next one
	news chan struct{} // closed at the next one; nil while nobody waits

	// known are the workloads as the goroutine that adds has heard of them: the present state may be
	// further than the change that is to be told.
	known map[string]*followed
}

type followed struct {
	workload  *model.Workload
	instances int
	removed   bool
}

func (h *happened) add(list []*message) {
	if len(list) == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.list = append(h.list, list...)
	h.next += uint64(len(list))
	if len(h.list) > 2*keptEvents {
		h.list = append([]*message(nil), h.list[len(h.list)-keptEvents:]...)
	}
	if h.news != nil {
		close(h.news)
		h.news = nil
	}
}

// after returns the events from a number on, as far as they are kept, and the number after them; when
// there are none, what to wait for.
func (h *happened) after(number uint64) (list []*message, next uint64, news <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	first := h.next - uint64(len(h.list))
	list = h.list[max(number, first)-first:]
	if len(list) == 0 {
		if h.news == nil {
			h.news = make(chan struct{})
		}
		news = h.news
	}
	return list, h.next, news
}

func (h *happened) end() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.next
}

// Run follows the state, so that events can be told of, until ctx ends.
func (a *API) Run(ctx context.Context) error {
	for {
		snap := a.snapshot()
		a.happened.begin(snap)
		watch := a.Core.Store.Watch(snap.Revision(), model.KindInstance, model.KindWorkload, model.KindNetwork, model.KindVolume, model.KindImage,
			model.KindNode, model.KindSecret, model.KindConfig)
		for {
			batch, err := watch.Next(ctx)
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				break // it fell behind: go on from now
			}
			snap = a.snapshot()
			for _, ch := range batch.Changes {
				a.happened.add(a.translateEvent(snap, ch))
			}
		}
	}
}

// events tells what has happened since a time, and what happens until another, or for ever.
func (a *API) events(w http.ResponseWriter, r *request) error {
	f, err := readFilters(r, "config", "container", "daemon", "event", "image", "label", "network", "node", "plugin", "scope", "secret", "service", "type", "volume")
	if err != nil {
		return err
	}
	until, err := readTime(r.query.Get("until"), time.Now())
	if err != nil {
		return err
	}
	since, err := readTime(r.query.Get("since"), time.Now())
	if err != nil {
		return err
	}
	ctx := r.Context()
	if !until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, until)
		defer cancel()
	}
	number := a.happened.end()
	if !since.IsZero() {
		number = 0
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	c := http.NewResponseController(w)
	_ = c.Flush()
	enc := json.NewEncoder(w)
	for {
		list, next, news := a.happened.after(number)
		number = next
		for _, m := range list {
			at := time.Unix(0, m.TimeNano)
			if at.Before(since) || !until.IsZero() && at.After(until) || !m.chosen(f) {
				continue
			}
			if enc.Encode(m) != nil {
				return nil
			}
		}
		if len(list) > 0 {
			_ = c.Flush()
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-news:
		}
	}
}

// begin lists what there is.
func (h *happened) begin(snap *store.Snapshot) {
	h.known = map[string]*followed{}
	for w := range store.List[*model.Workload](snap) {
		h.known[w.ID] = &followed{workload: w}
	}
	for i := range store.List[*model.Instance](snap) {
		if k := h.known[i.WorkloadID]; k != nil {
			k.instances++
		}
	}
}

// follow notes a change of a workload or of its instances; nil when it is about neither. What was removed
// is known until its last instance is gone.
func (h *happened) follow(ch store.Change) *followed {
	switch o := cmp.Or(ch.New, ch.Old).(type) {
	case *model.Workload:
		k := h.known[o.ID]
		if k == nil {
			k = &followed{}
			h.known[o.ID] = k
		}
		if k.workload, k.removed = o, ch.New == nil; k.removed && k.instances == 0 {
			delete(h.known, o.ID)
		}
		return k
	case *model.Instance:
		k := h.known[o.WorkloadID]
		switch {
		case k == nil:
			return nil
		case ch.Old == nil:
			k.instances++
		case ch.New == nil:
			if k.instances--; k.removed && k.instances == 0 {
				delete(h.known, o.WorkloadID)
			}
		}
		return k
	}
	return nil
}
