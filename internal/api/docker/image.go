package docker

import (
	"cmp"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	apiimage "github.com/moby/moby/api/types/image"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// findImage says which of the cluster's images a reference means: a name, or the beginning of an ID.
func findImage(snap *store.Snapshot, ref string) (*model.Image, error) {
	if ref == "" {
		return nil, fault.New(fault.Invalid, "no image was named")
	}
	name, err := image.Normalize(ref)
	if err == nil {
		for _, n := range []string{name, core.OwnName(snap, name)} {
			if img, ok := store.ByName[*model.Image](snap, "", "", n); ok {
				return img, nil
			}
		}
	}
	repository, digest, pinned := strings.Cut(ref, "@")
	id := strings.TrimPrefix(ref, "sha256:")
	var found []*model.Image
	for img := range store.List[*model.Image](snap) {
		switch {
		case pinned && img.Digest == digest && familiar(img.Name, false) == familiar(repository, false),
			!pinned && len(id) >= 4 && isHex(id) && strings.HasPrefix(strings.TrimPrefix(img.Digest, "sha256:"), id):
			found = append(found, img)
		}
	}
	for _, img := range found[min(1, len(found)):] {
		if img.Digest != found[0].Digest {
			return nil, fault.New(fault.Invalid, "image ID %s is ambiguous", ref)
		}
	}
	if len(found) > 0 {
		return found[0], nil
	}
	if err != nil && !isHex(id) {
		return nil, fault.New(fault.Invalid, "invalid reference format")
	}
	return nil, fault.New(fault.NotFound, "No such image: %s", withTag(ref))
}

func isHex(s string) bool {
	return strings.Trim(s, "0123456789abcdef") == ""
}

func withTag(ref string) string {
	if n, err := reference.ParseNormalizedNamed(ref); err == nil {
		return reference.FamiliarString(reference.TagNameOnly(n))
	}
	return ref
}

// familiar shortens a name as people write it, with its tag or without.
func familiar(name string, tag bool) string {
	n, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	if tag {
		return reference.FamiliarString(n)
	}
	return reference.FamiliarName(n)
}

// tagsOf are the names of an image's content, and what it is in each repository.
func tagsOf(snap *store.Snapshot, digest string) (tags, digests []string) {
	tags, digests = []string{}, []string{}
	for img := range store.List[*model.Image](snap) {
		if img.Digest != digest {
			continue
		}
		if n, err := reference.ParseNormalizedNamed(img.Name); err == nil {
			if _, tagged := n.(reference.Tagged); tagged {
				tags = append(tags, reference.FamiliarString(n))
			}
		}
		if d := familiar(img.Name, false) + "@" + digest; !slices.Contains(digests, d) {
			digests = append(digests, d)
		}
	}
	slices.Sort(tags)
	slices.Sort(digests)
	return tags, digests
}

func (a *API) imageList(w http.ResponseWriter, r *request) error {
	f, err := readFilters(r, "before", "dangling", "label", "label!", "reference", "since", "until")
	if err != nil {
		return err
	}
	dangling, danglingAsked, err := f.boolean("dangling")
	if err != nil {
		return err
	}
	until, err := f.until()
	if err != nil {
		return err
	}
	snap := a.snapshot()
	var before, since time.Time
	for key, at := range map[string]*time.Time{"before": &before, "since": &since} {
		for _, ref := range f[key] {
			img, err := findImage(snap, ref)
			if err != nil {
				return err
			}
			*at = a.fact(r.Context(), img).made
		}
	}
	var shared *layered
	if r.flag("shared-size") {
		l := a.layered(r.Context(), contents(snap))
		shared = &l
	}
	seen := map[string]bool{}
	out := []apiimage.Summary{}
	for img := range store.List[*model.Image](snap) {
		if seen[img.Digest] {
			continue
		}
		seen[img.Digest] = true
		tags, digests := tagsOf(snap, img.Digest)
		if refs := f["reference"]; len(refs) > 0 {
			tags = slices.DeleteFunc(tags, func(t string) bool { return !referenceMatches(refs, t) })
			digests = slices.DeleteFunc(digests, func(d string) bool { return !referenceMatches(refs, d) })
			if len(tags) == 0 {
				continue
			}
		}
		labels := a.settings(r.Context(), &model.TaskSpec{Image: img.Name, Digest: img.Digest}).Labels
		fact := a.fact(r.Context(), img)
		made := fact.made
		switch {
		case !f.labels("label", labels), !f.notLabels("label!", labels), danglingAsked && dangling != (len(tags) == 0),
			!before.IsZero() && !made.Before(before), !since.IsZero() && !made.After(since), !until.IsZero() && !made.Before(until):
			continue
		}
		s := apiimage.Summary{ID: img.Digest, Created: made.Unix(), Labels: labels, RepoTags: tags, RepoDigests: digests, Size: fact.size, SharedSize: -1, Containers: -1}
		if shared != nil {
			s.SharedSize = shared.shared(img.Digest)
		}
		if len(s.RepoTags) == 0 && len(s.RepoDigests) == 0 {
			s.RepoTags = []string{}
		}
		out = append(out, s)
	}
	slices.SortStableFunc(out, func(x, y apiimage.Summary) int {
		return cmp.Or(cmp.Compare(y.Created, x.Created), slices.Compare(x.RepoTags, y.RepoTags))
	})
	return answer(w, http.StatusOK, out)
}

func referenceMatches(patterns []string, tag string) bool {
	n, err := reference.ParseNormalizedNamed(tag)
	if err != nil {
		return false
	}
	for _, p := range patterns {
		if ok, err := reference.FamiliarMatch(p, n); err == nil && ok {
			return true
		}
	}
	return false
}

func (a *API) imageInspect(w http.ResponseWriter, r *request) error {
	if err := ownPlatform(r); err != nil {
		return err
	}
	if r.flag("manifests") {
		return notHonoured("manifests", true)
	}
	snap := a.snapshot()
	img, err := findImage(snap, r.vars["name"])
	if err != nil {
		return err
	}
	d, err := a.Core.Images.Describe(r.Context(), img.Name, img.Digest)
	if err != nil {
		return err
	}
	var raw struct {
		Config *dockerspec.DockerOCIImageConfig `json:"config"`
	}
	if err := json.Unmarshal(d.Raw, &raw); err != nil {
		return fault.New(fault.Internal, "read the configuration of %s: %w", img.Name, err)
	}
	tags, digests := tagsOf(snap, img.Digest)
	out := apiimage.InspectResponse{
		ID: img.Digest, RepoTags: tags, RepoDigests: digests, Author: d.Config.Author, Config: raw.Config,
		Architecture: d.Config.Architecture, Variant: d.Config.Variant, Os: d.Config.OS, OsVersion: d.Config.OSVersion,
		Size: a.fact(r.Context(), img).size, RootFS: apiimage.RootFS{Type: "layers"}, Metadata: apiimage.Metadata{LastTagTime: img.Created}, Descriptor: &d.Target,
	}
	if d.Config.Created != nil {
		out.Created = d.Config.Created.UTC().Format(time.RFC3339Nano)
	}
	if n := len(d.Config.History); n > 0 {
		out.Comment = d.Config.History[n-1].Comment
	}
	for _, l := range d.Config.RootFS.DiffIDs {
		out.RootFS.Layers = append(out.RootFS.Layers, l.String())
	}
	return answer(w, http.StatusOK, out)
}

func (a *API) imageHistory(w http.ResponseWriter, r *request) error {
	if err := ownPlatform(r); err != nil {
		return err
	}
	snap := a.snapshot()
	img, err := findImage(snap, r.vars["name"])
	if err != nil {
		return err
	}
	d, err := a.Core.Images.Describe(r.Context(), img.Name, img.Digest)
	if err != nil {
		return err
	}
	history := d.Config.History
	out := make([]apiimage.HistoryResponseItem, 0, len(history))
	sizes, layer := d.LayerSizes, 0
	if len(d.Layers) == len(sizes) {
		for n, l := range d.Layers {
			sizes[n] = l.SizeBytes
		}
	}
	for _, h := range history {
		item := apiimage.HistoryResponseItem{ID: "<missing>", CreatedBy: h.CreatedBy, Comment: h.Comment, Tags: []string{}}
		if h.Created != nil {
			item.Created = h.Created.Unix()
		}
		if !h.EmptyLayer && layer < len(sizes) {
			item.Size = sizes[layer]
			layer++
		}
		out = append(out, item)
	}
	for ; layer < len(sizes); layer++ { // an image without a history has layers all the same
		out = append(out, apiimage.HistoryResponseItem{ID: "<missing>", Size: sizes[layer], Created: d.Created.Unix(), Tags: []string{}})
	}
	slices.Reverse(out)
	if len(out) > 0 {
		out[0].ID = img.Digest
		out[0].Tags, _ = tagsOf(snap, img.Digest)
	}
	return answer(w, http.StatusOK, out)
}
