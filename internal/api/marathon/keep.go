package marathon

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// extension is the key under which this adapter keeps its fields.
const extension = "marathon"

// kept is what the workload of an app, a pod or a job keeps for this adapter.
type kept struct {
	ID  string `json:"id"`
	App *app   `json:"app,omitempty"`
	Pod *pod   `json:"pod,omitempty"`
	Job *job   `json:"job,omitempty"`
	// Version is that of the latest change, Config of the latest one that was more than a number of
	// instances, Scaled of the latest one that was no more.
	Version string `json:"version"`
	Config  string `json:"config"`
	Scaled  string `json:"scaled"`
}

// entry is an app or a pod.
type entry struct {
	path     string
	workload *model.Workload
	kept     *kept // nil: another API made it
}

func (e *entry) isPod() bool { return e.kept != nil && e.kept.Pod != nil }

// parsedCache remembers what extensions say.
type parsedCache struct {
	mu   sync.Mutex
	byID map[string]parsed
}

type parsed struct {
	data []byte
	kept *kept
}

// keptOf reads a workload's extension, nil when there is none. It is shared, and not to be changed.
func (a *API) keptOf(w *model.Workload) *kept {
	data := w.Extensions[extension]
	if data == nil {
		return nil
	}
	a.parsed.mu.Lock()
	defer a.parsed.mu.Unlock()
	if p, ok := a.parsed.byID[w.ID]; ok && bytes.Equal(p.data, data) {
		return p.kept
	}
	k := &kept{}
	if json.Unmarshal(data, k) != nil || k.ID == "" {
		return nil
	}
	if a.parsed.byID == nil || len(a.parsed.byID) > 50_000 {
		a.parsed.byID = map[string]parsed{}
	}
	a.parsed.byID[w.ID] = parsed{data, k}
	return k
}

// entryOf says which app or pod a workload is; nil when it is a job, which is not listed as an app.
func (a *API) entryOf(w *model.Workload) *entry {
	k := a.keptOf(w)
	switch {
	case k != nil && k.Job != nil, w.OwnerID != "": // of a schedule, or of what stands for it
		return nil
	case k != nil:
		return &entry{k.ID, w, k}
	case w.Type.Ends():
		return nil
	}
	return &entry{foreignPath(w), w, nil}
}

// foreignPath is the path of a workload that another API made.
func foreignPath(w *model.Workload) string {
	path := ""
	for _, part := range []string{w.Application, w.Name} {
		if part != "" {
			path += "/" + foreignSegment(part)
		}
	}
	return path
}

func foreignSegment(name string) string {
	name = strings.ToLower(strings.ReplaceAll(name, "_", "-"))
	if !segment.MatchString(name) {
		name = strings.Trim(strings.ReplaceAll(name, ".", "-"), "-")
	}
	return name
}

// Keys of this adapter, in a namespace.

func keyRoot(ns string) string { return "marathon/" + ns + "/" }

func versionPrefix(ns, path string) string { return keyRoot(ns) + "version" + path + "@" }

func versionKey(ns, path, version string) string { return versionPrefix(ns, path) + version }

func deploymentPrefix(ns string) string { return keyRoot(ns) + "deployment/" }

func lockKey(ns, path string) string { return keyRoot(ns) + "lock" + path }

func groupsKey(ns string) string { return keyRoot(ns) + "groups" }

func groupVersionPrefix(ns, path string) string { return keyRoot(ns) + "group" + path + "@" }

// keptVersions is how many versions of an app, a pod or a group are kept.
const keptVersions = 25

const timeLayout = "2006-01-02T15:04:05.000Z"

func stamp(t time.Time) string { return t.UTC().Format(timeLayout) }

// versionAfter is the present time as a version that comes after another.
func versionAfter(now time.Time, last string) string {
	v := stamp(now)
	for last != "" && v <= last {
		now = now.Add(time.Millisecond)
		v = stamp(now)
	}
	return v
}

// versionsOf are the versions that are kept of an app, a pod or a group, the newest first.
func versionsOf(snap *store.Snapshot, prefix string) (out []string) {
	for kv := range snap.Keys().Range(prefix, store.PrefixEnd(prefix)) {
		out = append(out, strings.TrimPrefix(kv.Key, prefix))
	}
	slices.Sort(out)
	slices.Reverse(out)
	return out
}

// configOf is the version of the configuration that a template has.
func configOf(t *model.Template) string {
	for i := range t.Tasks {
		for _, e := range t.Tasks[i].Env {
			if v, ok := strings.CutPrefix(e, "MARATHON_APP_VERSION="); ok {
				return v
			}
		}
	}
	return ""
}
