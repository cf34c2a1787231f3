package docker

import (
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

func (a *API) ping(w http.ResponseWriter, r *request) error { return pong(w, r, "active/manager") }

// pong answers, with what the host is to a swarm.
func pong(w http.ResponseWriter, r *request, state string) error {
	h := w.Header()
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	h.Set("Builder-Version", "1")
	h.Set("Swarm", state)
	h.Set("Content-Type", "text/plain; charset=utf-8")
	if r.Method == http.MethodHead {
		h.Set("Content-Length", "0")
		return nil
	}
	_, _ = w.Write([]byte("OK"))
	return nil
}

// self is the node at whose socket the request was made.
func (a *API) self(snap *store.Snapshot, r *request) *model.Node {
	if n, ok := store.Get[*model.Node](snap, r.at); ok {
		return n
	}
	return &model.Node{Meta: model.Meta{Name: a.NodeName}}
}

func (a *API) version(w http.ResponseWriter, r *request) error {
	return answer(w, http.StatusOK, a.versionOn(a.self(a.snapshot(), r)))
}

// info sums the nodes up, as classic Swarm did.
func (a *API) info(w http.ResponseWriter, r *request) error {
	snap := a.snapshot()
	i := a.infoOn(a.self(snap, r))
	cluster, _ := store.Get[*model.Cluster](snap, model.ClusterID)
	if cluster != nil {
		i.ID = digestOf("cluster", string(cluster.CACertificate))[:32]
	}
	nodes := 0
	for n := range store.List[*model.Node](snap) {
		nodes++
		if n.Status.State == model.NodeDown {
			continue
		}
		foundOn(n, &i)
		i.NCPU += int(n.Capacity.NanoCPUs / 1e9)
		i.MemTotal += n.Capacity.MemoryBytes
	}
	for _, b := range a.boxes(snap) {
		i.Containers++
		switch b.state() {
		case container.StateRunning, container.StateRestarting:
			i.ContainersRunning++
		case container.StatePaused:
			i.ContainersPaused++
		default:
			i.ContainersStopped++
		}
	}
	i.Images = len(contents(snap))
	i.DriverStatus = [][2]string{{"Cluster", "Tutti"}}
	i.Swarm = a.swarmInfo(snap, r)
	i.Swarm.Nodes = nodes
	return answer(w, http.StatusOK, i)
}

// foundOn adds the OCI runtimes and the named devices of a node.
func foundOn(n *model.Node, i *system.Info) {
	for _, key := range slices.Sorted(maps.Keys(n.Attributes)) {
		if name, ok := strings.CutPrefix(key, model.RuntimeAttribute); ok && name != model.UnitRuntime {
			i.Runtimes[name] = system.RuntimeWithStatus{Runtime: system.Runtime{Path: name}}
		}
		if kind, ok := strings.CutPrefix(key, model.CDIAttribute); ok {
			for name := range strings.SplitSeq(n.Attributes[key], ",") {
				d := system.DeviceInfo{Source: "cdi", ID: kind + "=" + name}
				if !slices.Contains(i.DiscoveredDevices, d) {
					i.DiscoveredDevices = append(i.DiscoveredDevices, d)
				}
			}
		}
	}
}

var machine = map[string]string{"amd64": "x86_64", "arm64": "aarch64"}

// contents are the images of the cluster without their further names.
func contents(snap *store.Snapshot) map[string]*model.Image {
	out := map[string]*model.Image{}
	for img := range store.List[*model.Image](snap) {
		out[img.Digest] = img
	}
	return out
}

// usage is what `docker system df` shows, in the form of API versions up to 1.51.
type usage struct {
	LayersSize int64
	Images     []map[string]any
	Containers []summary
	Volumes    []volume.Volume
	BuildCache []any
}

func (a *API) diskUsage(w http.ResponseWriter, r *request) error {
	types := r.query["type"]
	want := func(t string) bool { return len(types) == 0 || slices.Contains(types, t) }
	snap := a.snapshot()
	u := usage{BuildCache: []any{}}
	boxes := a.boxes(snap)
	uses := map[string]int{}
	for _, b := range boxes {
		uses[b.spec().Digest]++
	}
	var measured []*box
	if want("container") {
		measured = boxes
	}
	var volumes []*model.Volume
	if want("volume") {
		volumes = slices.Collect(store.List[*model.Volume](snap))
	}
	sizes, err := a.sizes(r, measured, volumes)
	if err != nil {
		return err
	}
	for _, b := range measured {
		u.Containers = append(u.Containers, a.summary(r, snap, b).with(sizes, b))
	}
	if want("image") {
		list := contents(snap)
		l := a.layered(r.Context(), list)
		u.LayersSize = l.total
		for _, digest := range slices.Sorted(maps.Keys(list)) {
			tags, digests := tagsOf(snap, digest)
			f := l.images[digest]
			u.Images = append(u.Images, map[string]any{
				"Id": digest, "RepoTags": tags, "RepoDigests": digests, "Size": f.size, "SharedSize": l.shared(digest), "VirtualSize": f.size,
				"Containers": uses[digest], "Created": f.made.Unix(), "ParentId": "", "Labels": nil,
			})
		}
	}
	counts := map[string]int64{}
	for _, b := range boxes {
		for _, m := range b.spec().Mounts {
			if m.Type == model.MountVolume {
				counts[m.Source]++
			}
		}
	}
	for _, v := range volumes {
		view := volumeView(v)
		view.UsageData = &volume.UsageData{RefCount: counts[v.ID], Size: -1}
		if size, known := sizes.Volumes[v.ID]; known {
			view.UsageData.Size = size
		}
		u.Volumes = append(u.Volumes, view)
	}
	return answer(w, http.StatusOK, u)
}
