package docker

import (
	"cmp"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/distribution/reference"
	apiimage "github.com/moby/moby/api/types/image"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// progress writes the lines of a long request as they come.
type progress struct {
	mu    sync.Mutex
	w     http.ResponseWriter
	begun bool
}

type progressLine struct {
	Stream         string           `json:"stream,omitempty"`
	Status         string           `json:"status,omitempty"`
	ID             string           `json:"id,omitempty"`
	Progress       string           `json:"progress,omitempty"`
	ProgressDetail *progressDetail  `json:"progressDetail,omitempty"`
	Error          string           `json:"error,omitempty"`
	ErrorDetail    *progressProblem `json:"errorDetail,omitempty"`
}

type progressDetail struct {
	Current int64 `json:"current,omitempty"`
	Total   int64 `json:"total,omitempty"`
}

type progressProblem struct {
	Message string `json:"message"`
}

func (p *progress) say(l progressLine) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.begun {
		p.w.Header().Set("Content-Type", "application/json")
		p.w.WriteHeader(http.StatusOK)
		p.begun = true
	}
	_ = json.NewEncoder(p.w).Encode(l)
	_ = http.NewResponseController(p.w).Flush()
}

// fail ends the request with an error: as a status while nothing was said, as a line afterwards.
func (p *progress) fail(err error) error {
	p.mu.Lock()
	begun := p.begun
	p.mu.Unlock()
	if !begun {
		return err
	}
	p.say(progressLine{Error: err.Error(), ErrorDetail: &progressProblem{err.Error()}})
	return nil
}

func (a *API) imageCreate(w http.ResponseWriter, r *request) error {
	if err := ownPlatform(r); err != nil {
		return err
	}
	if r.query.Get("fromSrc") != "" {
		return a.imageImport(w, r)
	}
	name, tag := r.query.Get("fromImage"), r.query.Get("tag")
	if name == "" {
		return fault.New(fault.Invalid, "fromImage is needed")
	}
	as, err := credentials(r)
	if err != nil {
		return err
	}
	n, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return fault.New(fault.Invalid, "invalid reference format")
	}
	if tag == "" && reference.IsNameOnly(n) {
		return notHonoured("pulling all tags of a repository (docker pull --all-tags)", name)
	}
	ref := name
	if tag != "" {
		ref = reference.TrimNamed(n).String() + ":" + tag
		if strings.Contains(tag, ":") {
			ref = reference.TrimNamed(n).String() + "@" + tag
		}
	}
	p := &progress{w: w}
	before := ""
	if img, err := findImage(a.snapshot(), ref); err == nil {
		before = img.Digest
	}
	info, err := a.Core.PullImage(r.Context(), r.who, ref, as, func(pr image.Progress) {
		l := progressLine{Status: "Downloading", ID: shortID(strings.TrimPrefix(pr.Blob, "sha256:")), ProgressDetail: &progressDetail{Current: pr.Bytes, Total: pr.Total}}
		if pr.Bytes == pr.Total && pr.Total > 0 {
			l.Status, l.ProgressDetail = "Download complete", nil
		}
		p.say(l)
	})
	if err != nil {
		return p.fail(err)
	}
	p.say(progressLine{Status: "Pulling from " + familiar(info.Name, false), ID: cmp.Or(tag, "latest")})
	p.say(progressLine{Status: "Digest: " + info.Digest})
	if info.Digest == before {
		p.say(progressLine{Status: "Status: Image is up to date for " + familiar(info.Name, true)})
	} else {
		p.say(progressLine{Status: "Status: Downloaded newer image for " + familiar(info.Name, true)})
	}
	return nil
}

func (a *API) imageLoad(w http.ResponseWriter, r *request) error {
	if err := ownPlatform(r); err != nil {
		return err
	}
	infos, err := a.Core.ImportImage(r.Context(), r.who, r.Body, "")
	if err != nil {
		return err
	}
	p := &progress{w: w}
	for _, info := range infos {
		p.say(progressLine{Stream: "Loaded image: " + familiar(info.Name, true) + "\n"})
	}
	return nil
}

func (a *API) imageTag(w http.ResponseWriter, r *request) error {
	img, err := findImage(a.snapshot(), r.vars["name"])
	if err != nil {
		return err
	}
	repo, tag := r.query.Get("repo"), cmp.Or(r.query.Get("tag"), "latest")
	n, err := reference.ParseNormalizedNamed(repo)
	if err != nil {
		return fault.New(fault.Invalid, "invalid reference format")
	}
	to, err := reference.WithTag(reference.TrimNamed(n), tag)
	if err != nil {
		return fault.New(fault.Invalid, "invalid tag format")
	}
	if err := a.Core.TagImage(r.Context(), r.who, img, to.String()); err != nil {
		return err
	}
	return done(w, http.StatusCreated)
}

func (a *API) imageRemove(w http.ResponseWriter, r *request) error {
	if err := ownPlatform(r); err != nil {
		return err
	}
	snap := a.snapshot()
	ref := r.vars["name"]
	img, err := findImage(snap, ref)
	if err != nil {
		return err
	}
	out, err := a.removeImage(r, snap, ref, img)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, out)
}

// removeImage takes a name away, or, by ID, the content with its only name, or with all by force.
func (a *API) removeImage(r *request, snap *store.Snapshot, ref string, img *model.Image) ([]apiimage.DeleteResponse, error) {
	var names []*model.Image
	for other := range store.List[*model.Image](snap) {
		if other.Digest == img.Digest {
			names = append(names, other)
		}
	}
	name, err := image.Normalize(ref)
	byName := err == nil && name == img.Name
	gone := names
	if byName {
		gone = []*model.Image{img}
	} else if len(names) > 1 && !r.flag("force") {
		return nil, fault.New(fault.Conflict, "conflict: unable to delete %s (must be forced) - image is referenced in multiple repositories", shortID(strings.TrimPrefix(img.Digest, "sha256:")))
	}
	last := len(gone) == len(names)
	if last {
		for _, b := range a.boxes(snap) {
			if b.spec().Digest == img.Digest {
				how := "must be forced) - image is being used by stopped container"
				if b.running() {
					how = "cannot be forced) - image is being used by running container"
				}
				return nil, fault.New(fault.Conflict, "conflict: unable to remove repository reference %q (%s %s", ref, how, shortID(b.id))
			}
		}
	}
	out := []apiimage.DeleteResponse{}
	for _, g := range gone {
		if err := a.Core.RemoveImage(r.Context(), r.who, g.Name); err != nil && (last || !fault.Is(err, fault.Conflict)) {
			return nil, err
		}
		out = append(out, apiimage.DeleteResponse{Untagged: familiar(g.Name, true)})
	}
	if last {
		out = append(out, apiimage.DeleteResponse{Deleted: img.Digest})
	}
	return out, nil
}

func (a *API) imagePrune(w http.ResponseWriter, r *request) error {
	f, err := readFilters(r, "dangling", "until", "label", "label!")
	if err != nil {
		return err
	}
	dangling, asked, err := f.boolean("dangling")
	if err != nil {
		return err
	}
	until, err := f.until()
	if err != nil {
		return err
	}
	report := struct {
		ImagesDeleted  []apiimage.DeleteResponse
		SpaceReclaimed uint64
	}{ImagesDeleted: []apiimage.DeleteResponse{}}
	if asked && !dangling { // all that nothing uses; without that, only what has no name, which is nothing
		snap := a.snapshot()
		used := map[string]bool{}
		for b := range store.List[*model.Workload](snap) {
			for _, t := range slices.Concat(b.Template.InitTasks, b.Template.Tasks) {
				used[t.Digest] = true
			}
		}
		counted := map[string]bool{}
		for img := range store.List[*model.Image](snap) {
			labels := a.settings(r.Context(), &model.TaskSpec{Image: img.Name, Digest: img.Digest}).Labels
			if used[img.Digest] || !f.labels("label", labels) || !f.notLabels("label!", labels) || !until.IsZero() && !img.Created.Before(until) {
				continue
			}
			if err := a.Core.RemoveImage(r.Context(), r.who, img.Name); err != nil {
				return err
			}
			report.ImagesDeleted = append(report.ImagesDeleted, apiimage.DeleteResponse{Untagged: familiar(img.Name, true)})
			if !counted[img.Digest] {
				counted[img.Digest] = true
				report.SpaceReclaimed += uint64(a.fact(r.Context(), img).size)
			}
		}
	}
	return answer(w, http.StatusOK, report)
}

func (a *API) imageSave(w http.ResponseWriter, r *request) error {
	if err := ownPlatform(r); err != nil {
		return err
	}
	refs := r.query["names"]
	if name := r.vars["name"]; name != "" {
		refs = []string{name}
	}
	snap := a.snapshot()
	var names []string
	for _, ref := range refs {
		img, err := findImage(snap, ref)
		if err != nil {
			return err
		}
		if _, err := a.Core.Images.Ensure(r.Context(), img.Name, img.Digest, func(image.Progress) {}); err != nil {
			return err
		}
		names = append(names, img.Name)
	}
	if len(names) == 0 {
		return fault.New(fault.Invalid, "no image was named")
	}
	w.Header().Set("Content-Type", "application/x-tar")
	if err := a.Core.Images.Export(r.Context(), w, names); err != nil {
		a.Log.Warn("images could not be saved", "images", refs, "error", err)
		panic(http.ErrAbortHandler) // the client must not take what it has for the whole
	}
	return nil
}
