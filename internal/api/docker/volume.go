package docker

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/volume"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// anonymousLabel marks volumes that were made without a name.
const anonymousLabel = "com.docker.volume.anonymous"

func volumeView(v *model.Volume) volume.Volume {
	out := volume.Volume{
		CreatedAt: v.Created.UTC().Format(time.RFC3339), Driver: "local", Labels: v.Labels, Name: dockerName(&v.Meta), Scope: "local", Options: v.Options,
	}
	out.Mountpoint = volumePath(out.Name)
	return out
}

func findVolume(snap *store.Snapshot, name string) (*model.Volume, error) {
	for v := range store.List[*model.Volume](snap) {
		if dockerName(&v.Meta) == name {
			return v, nil
		}
	}
	return nil, fault.New(fault.NotFound, "get %s: no such volume", name)
}

// ensureVolume returns the ID of the volume of a name, which is made when there is none.
func (a *API) ensureVolume(r *request, name string, labels, options map[string]string) (string, error) {
	if v, err := findVolume(a.snapshot(), name); err == nil {
		return v.ID, nil
	}
	app, local := placeOf(name, labels)
	d := core.Deployment{
		Application: app, Members: true, KeepOthers: true, Source: "docker",
		Volumes: []*model.Volume{{Meta: model.Meta{Name: local, Labels: labels}, Driver: "local", Options: options}},
	}
	if _, err := a.Core.Deploy(r.Context(), r.who, d); err != nil {
		return "", err
	}
	v, err := findVolume(a.snapshot(), name)
	if err != nil {
		return "", err
	}
	return v.ID, nil
}

func (a *API) volumeCreate(w http.ResponseWriter, r *request) error {
	var req volume.CreateRequest
	if err := decode(r, &req, false); err != nil {
		return err
	}
	switch {
	case req.Driver != "" && req.Driver != "local":
		return notHonoured("volume driver", req.Driver)
	case req.ClusterVolumeSpec != nil:
		return notHonoured("cluster volumes", req.Name)
	}
	if err := (&model.Volume{Meta: model.Meta{Name: req.Name}, Options: req.DriverOpts}).Check(); err != nil {
		return err
	}
	if req.Name == "" {
		req.Name = digestOf(model.NewID())[:63] // our names are one shorter than Docker's
		labels := map[string]string{anonymousLabel: ""}
		for k, v := range req.Labels {
			labels[k] = v
		}
		req.Labels = labels
	} else if model.CheckName(req.Name) != nil {
		return fault.New(fault.Invalid, "create %s: %q includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path", req.Name, req.Name)
	}
	if _, err := a.ensureVolume(r, req.Name, req.Labels, req.DriverOpts); err != nil {
		return err
	}
	v, err := findVolume(a.snapshot(), req.Name)
	if err != nil {
		return err
	}
	return answer(w, http.StatusCreated, volumeView(v))
}

func usedVolumes(snap *store.Snapshot) map[string]bool {
	used := map[string]bool{}
	for w := range store.List[*model.Workload](snap) {
		for _, t := range slices.Concat(w.Template.InitTasks, w.Template.Tasks) {
			for _, m := range t.Mounts {
				if m.Type == model.MountVolume {
					used[m.Source] = true
				}
			}
		}
	}
	return used
}

func (a *API) volumeList(w http.ResponseWriter, r *request) error {
	f, err := readFilters(r, "dangling", "driver", "label", "name")
	if err != nil {
		return err
	}
	dangling, asked, err := f.boolean("dangling")
	if err != nil {
		return err
	}
	snap := a.snapshot()
	used := usedVolumes(snap)
	out := volume.ListResponse{Volumes: []volume.Volume{}}
	for v := range store.List[*model.Volume](snap) {
		view := volumeView(v)
		if !f.exact("driver", view.Driver) || !f.labels("label", v.Labels) || !f.matches("name", view.Name) || asked && dangling == used[v.ID] {
			continue
		}
		out.Volumes = append(out.Volumes, view)
	}
	slices.SortFunc(out.Volumes, func(a, b volume.Volume) int { return strings.Compare(a.Name, b.Name) })
	return answer(w, http.StatusOK, out)
}

func (a *API) volumeInspect(w http.ResponseWriter, r *request) error {
	v, err := findVolume(a.snapshot(), r.vars["name"])
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, volumeView(v))
}

func (a *API) volumeRemove(w http.ResponseWriter, r *request) error {
	name := r.vars["name"]
	v, err := findVolume(a.snapshot(), name)
	if err != nil {
		if r.flag("force") {
			return done(w, http.StatusNoContent)
		}
		return err
	}
	if err := a.Core.RemoveVolume(r.Context(), r.who, v.ID); err != nil {
		if fault.Is(err, fault.Conflict) {
			return fault.New(fault.Conflict, "remove %s: volume is in use - [%w]", name, err)
		}
		return err
	}
	return done(w, http.StatusNoContent)
}

func (a *API) volumePrune(w http.ResponseWriter, r *request) error {
	f, err := readFilters(r, "label", "label!", "all")
	if err != nil {
		return err
	}
	all, _, err := f.boolean("all")
	if err != nil {
		return err
	}
	all = all || r.before("1.42")
	snap := a.snapshot()
	used := usedVolumes(snap)
	report := volume.PruneReport{VolumesDeleted: []string{}}
	var list []*model.Volume
	for v := range store.List[*model.Volume](snap) {
		_, anonymous := v.Labels[anonymousLabel]
		if !used[v.ID] && !v.Mounts() && (all || anonymous) && f.labels("label", v.Labels) && f.notLabels("label!", v.Labels) {
			list = append(list, v)
		}
	}
	sizes, err := a.sizes(r, nil, list)
	if err != nil {
		return err
	}
	for _, v := range list {
		if err := a.Core.RemoveVolume(r.Context(), r.who, v.ID); err != nil {
			if fault.Is(err, fault.Conflict) {
				continue // somebody began to use it
			}
			return err
		}
		report.VolumesDeleted = append(report.VolumesDeleted, dockerName(&v.Meta))
		report.SpaceReclaimed += uint64(sizes.Volumes[v.ID])
	}
	slices.Sort(report.VolumesDeleted)
	return answer(w, http.StatusOK, report)
}
