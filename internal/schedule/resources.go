package schedule

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/tutti-run/tutti/internal/model"
)

// Wanted sums what one instance of a template sets aside: all tasks together, or the largest
// init task where that is more. An instance of the best-effort class sets nothing aside.
func Wanted(t *model.Template) model.Resources {
	var sum model.Resources
	if t.Placement.Class == model.BestEffort {
		return sum
	}
	for i := range t.Tasks {
		add(&sum, &t.Tasks[i].Reserve, 1)
	}
	for i := range t.InitTasks {
		r := &t.InitTasks[i].Reserve
		sum.NanoCPUs = max(sum.NanoCPUs, r.NanoCPUs)
		sum.MemoryBytes = max(sum.MemoryBytes, r.MemoryBytes)
		sum.DiskBytes = max(sum.DiskBytes, r.DiskBytes)
		sum.Pids = max(sum.Pids, r.Pids)
		for k, v := range r.Custom {
			if v > sum.Custom[k] {
				if sum.Custom == nil {
					sum.Custom = map[string]int64{}
				}
				sum.Custom[k] = v
			}
		}
	}
	return sum
}

func add(to, r *model.Resources, sign int64) {
	to.NanoCPUs += sign * r.NanoCPUs
	to.MemoryBytes += sign * r.MemoryBytes
	to.DiskBytes += sign * r.DiskBytes
	to.Pids += sign * r.Pids
	for k, v := range r.Custom {
		if to.Custom == nil {
			to.Custom = map[string]int64{}
		}
		to.Custom[k] += sign * v
	}
}

func minus(a, b *model.Resources) model.Resources {
	out := *a
	out.Custom = maps.Clone(a.Custom)
	add(&out, b, -1)
	return out
}

// room is what a node can give to instances of a class. Overcommitment stretches the cores that
// burstable instances may set aside, never the memory.
func room(n *model.Node, class model.ResourceClass) (r resourceRoom) {
	r = resourceRoom{&n.Capacity, &n.Reserved, n.Capacity.NanoCPUs - n.Reserved.NanoCPUs}
	if class == model.Burstable && n.Overcommit > 1 {
		r.nanoCPUs = int64(float64(r.nanoCPUs) * n.Overcommit)
	}
	return r
}

type resourceRoom struct {
	have, kept *model.Resources
	nanoCPUs   int64
}

// holds reports whether what is wanted fits beside what is used. Resources that a node does not
// state (zero capacity) are not counted, apart from custom ones.
func (r resourceRoom) holds(used, wanted *model.Resources) bool {
	ok := func(capacity, free, wanted int64) bool { return wanted <= 0 || capacity <= 0 || wanted <= free }
	h, k := r.have, r.kept
	if !ok(h.NanoCPUs, r.nanoCPUs-used.NanoCPUs, wanted.NanoCPUs) ||
		!ok(h.MemoryBytes, h.MemoryBytes-k.MemoryBytes-used.MemoryBytes, wanted.MemoryBytes) ||
		!ok(h.DiskBytes, h.DiskBytes-k.DiskBytes-used.DiskBytes, wanted.DiskBytes) ||
		!ok(h.Pids, h.Pids-k.Pids-used.Pids, wanted.Pids) {
		return false
	}
	for name, n := range wanted.Custom {
		if h.Custom[name]-k.Custom[name]-used.Custom[name] < n {
			return false
		}
	}
	return true
}

// shortage is a resource of which there is too little.
type shortage struct {
	what, detail string
	missing      float64 // share of what is wanted
}

// lacks names the first resource of which too little is left.
func (r resourceRoom) lacks(used, wanted *model.Resources) (s shortage, lacking bool) {
	h, k := r.have, r.kept
	counted := [...]struct {
		name                   string
		text                   func(int64) string
		capacity, free, wanted int64
	}{
		{"cores", cores, h.NanoCPUs, r.nanoCPUs - used.NanoCPUs, wanted.NanoCPUs},
		{"memory", bytesText, h.MemoryBytes, h.MemoryBytes - k.MemoryBytes - used.MemoryBytes, wanted.MemoryBytes},
		{"disk", bytesText, h.DiskBytes, h.DiskBytes - k.DiskBytes - used.DiskBytes, wanted.DiskBytes},
		{"pids", plain, h.Pids, h.Pids - k.Pids - used.Pids, wanted.Pids},
	}
	short := func(name string, text func(int64) string, free, wanted int64) shortage {
		return shortage{name, text(free) + " free, " + text(wanted) + " wanted", float64(wanted-max(free, 0)) / float64(wanted)}
	}
	for i := range counted {
		c := &counted[i]
		if c.wanted > 0 && c.capacity > 0 && c.free < c.wanted {
			return short(c.name, c.text, c.free, c.wanted), true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(wanted.Custom)) {
		if free := h.Custom[name] - k.Custom[name] - used.Custom[name]; free < wanted.Custom[name] {
			return short(name, plain, free, wanted.Custom[name]), true
		}
	}
	return shortage{}, false
}

func plain(n int64) string { return strconv.FormatInt(max(n, 0), 10) }

func cores(nano int64) string { return fmt.Sprintf("%.2f cores", float64(max(nano, 0))/1e9) }

func bytesText(n int64) string {
	n = max(n, 0)
	for _, u := range []struct {
		size int64
		name string
	}{{1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= u.size {
			return fmt.Sprintf("%.4g %s", float64(n)/float64(u.size), u.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}

// dominant is the largest share of a whole that an amount takes, in cores, memory or disk or a
// custom resource.
func dominant(r, whole *model.Resources) float64 {
	share := func(used, all int64) float64 {
		if all <= 0 {
			return 0
		}
		return float64(used) / float64(all)
	}
	out := max(share(r.NanoCPUs, whole.NanoCPUs), share(r.MemoryBytes, whole.MemoryBytes), share(r.DiskBytes, whole.DiskBytes))
	for name, n := range r.Custom {
		out = max(out, share(n, whole.Custom[name]))
	}
	return out
}
