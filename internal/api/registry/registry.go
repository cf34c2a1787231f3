// Package registry answers the OCI distribution specification's API: what is pushed here becomes an
// image of the cluster under the name localhost:7405/REPOSITORY:TAG, which every node understands.
package registry

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// Deps is what the API works with.
type Deps struct {
	Core   *core.Core
	Images *image.Registry
	Caller func(context.Context) core.Caller
	Log    *slog.Logger
}

// API answers requests.
type API struct{ Deps }

// New returns an API.
func New(d Deps) *API { return &API{d} }

const maxManifest = 4 << 20

var (
	repoPattern = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagPattern  = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
)

// problem is an error in the words of the specification.
type problem struct {
	status int
	code   string
	error
}

func problemf(status int, code, format string, args ...any) error {
	return problem{status, code, fmt.Errorf(format, args...)}
}

// Refuse answers every request with an error; who may not come in is asked for a token as a password.
func Refuse(err error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Basic realm="tutti"`)
		answerError(w, problem{http.StatusUnauthorized, "UNAUTHORIZED", err})
	})
}

func answerError(w http.ResponseWriter, err error) {
	var p problem
	if !errors.As(err, &p) {
		p = problem{http.StatusInternalServerError, "UNKNOWN", err}
		switch fault.KindOf(err) {
		case fault.NotFound:
			p.status, p.code = http.StatusNotFound, "NAME_UNKNOWN"
		case fault.Invalid:
			p.status, p.code = http.StatusBadRequest, "MANIFEST_INVALID"
		case fault.Forbidden:
			p.status, p.code = http.StatusForbidden, "DENIED"
		case fault.Conflict:
			p.status, p.code = http.StatusConflict, "DENIED"
		case fault.Unsupported:
			p.status, p.code = http.StatusMethodNotAllowed, "UNSUPPORTED"
		case fault.Unavailable:
			p.status = http.StatusServiceUnavailable
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(p.status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": p.code, "message": p.Error()}}})
}

// ServeHTTP implements http.Handler.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if err := a.route(w, r); err != nil {
		answerError(w, err)
	}
}

func (a *API) route(w http.ResponseWriter, r *http.Request) error {
	who := a.Caller(r.Context())
	reads := r.Method == http.MethodGet || r.Method == http.MethodHead
	may := a.Core.MayPush
	if reads {
		may = a.Core.MayRead
	}
	if err := may(who); err != nil {
		return err
	}
	path, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	if !ok {
		return problemf(http.StatusNotFound, "UNSUPPORTED", "this is a registry: its paths begin with /v2/")
	}
	if path == "" && reads {
		return answerJSON(w, "application/json", struct{}{})
	}
	for _, kind := range []string{"/blobs/uploads", "/blobs/", "/manifests/", "/tags/list", "/referrers/"} {
		i := strings.LastIndex(path, kind)
		if i < 0 {
			continue
		}
		q := request{API: a, w: w, r: r, who: who, repo: path[:i], last: strings.TrimPrefix(path[i+len(kind):], "/")}
		if !repoPattern.MatchString(q.repo) || len(q.repo) > 255 {
			return problemf(http.StatusBadRequest, "NAME_INVALID", "%q is not the name of a repository: lower-case letters and digits, with . _ - / between them", q.repo)
		}
		switch kind {
		case "/blobs/uploads":
			return q.upload()
		case "/blobs/":
			return q.blob()
		case "/manifests/":
			return q.manifest()
		case "/tags/list":
			return q.tags()
		}
		return q.referrers()
	}
	return problemf(http.StatusNotFound, "UNSUPPORTED", "%s is no path of a registry", r.URL.Path)
}

func answerJSON(w http.ResponseWriter, mediaType string, v any) error {
	w.Header().Set("Content-Type", mediaType)
	return json.NewEncoder(w).Encode(v)
}

// request is one about a repository.
type request struct {
	*API
	w    http.ResponseWriter
	r    *http.Request
	who  core.Caller
	repo string
	last string // of its path
}

func (q *request) notAllowed() error {
	return problemf(http.StatusMethodNotAllowed, "UNSUPPORTED", "%s is not done at %s", q.r.Method, q.r.URL.Path)
}

func parseDigest(text string) (digest.Digest, error) {
	d, err := digest.Parse(text)
	if err != nil {
		return "", problemf(http.StatusBadRequest, "DIGEST_INVALID", "%q is not a digest that is understood: sha256:… or sha512:…", text)
	}
	return d, nil
}

// name is what the cluster calls an image of the repository.
func (q *request) name(tag string) string { return image.RegistryHost + "/" + q.repo + ":" + tag }

// shared returns the cluster's images of the repository, by tag.
func (q *request) shared() map[string]*model.Image {
	out := map[string]*model.Image{}
	prefix := q.name("")
	for i := range store.List[*model.Image](q.Core.Store.Snapshot()) {
		if tag, ok := strings.CutPrefix(i.Name, prefix); ok {
			out[tag] = i
		}
	}
	return out
}

func (q *request) created(at string, d digest.Digest) error {
	q.w.Header().Set("Location", at)
	q.w.Header().Set("Docker-Content-Digest", d.String())
	q.w.WriteHeader(http.StatusCreated)
	return nil
}

func (q *request) blobPath(d digest.Digest) string { return "/v2/" + q.repo + "/blobs/" + d.String() }

func (q *request) upload() error {
	ctx, params := q.r.Context(), q.r.URL.Query()
	if q.last == "" {
		if q.r.Method != http.MethodPost {
			return q.notAllowed()
		}
		return q.beginUpload(ctx, params)
	}
	u, err := q.Images.Find(q.repo, q.last)
	if err != nil {
		return problem{http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", err}
	}
	switch q.r.Method {
	case http.MethodGet:
		q.progress(u, http.StatusNoContent)
		return nil
	case http.MethodDelete:
		q.Images.Cancel(ctx, u)
		q.w.WriteHeader(http.StatusNoContent)
		return nil
	case http.MethodPatch, http.MethodPut:
	default:
		return q.notAllowed()
	}
	var d digest.Digest
	if q.r.Method == http.MethodPut {
		if d, err = parseDigest(params.Get("digest")); err != nil {
			return err
		}
	}
	at := int64(-1)
	if text := q.r.Header.Get("Content-Range"); text != "" {
		first, last, ok := strings.Cut(strings.TrimPrefix(text, "bytes="), "-")
		from, err1 := strconv.ParseInt(first, 10, 64)
		to, err2 := strconv.ParseInt(last, 10, 64)
		if !ok || err1 != nil || err2 != nil || from < 0 || q.r.ContentLength >= 0 && to-from+1 != q.r.ContentLength {
			return problemf(http.StatusBadRequest, "SIZE_INVALID", "Content-Range %q is not FIRST-LAST of the %d bytes that come", text, q.r.ContentLength)
		}
		at = from
	}
	if err := u.Append(q.r.Body, at); err != nil {
		if fault.Is(err, fault.Conflict) {
			q.w.Header().Set("Location", q.r.URL.Path)
			q.w.Header().Set("Range", rangeOf(u))
			return problem{http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID", err}
		}
		return err
	}
	if q.r.Method == http.MethodPatch {
		q.progress(u, http.StatusAccepted)
		return nil
	}
	return q.finish(ctx, u, d)
}

func (q *request) beginUpload(ctx context.Context, params url.Values) error {
	if text := params.Get("mount"); text != "" {
		d, err := parseDigest(text)
		if err != nil {
			return err
		}
		from := params.Get("from")
		if from != "" && q.Images.Mount(ctx, q.repo, from, d) == nil {
			return q.created(q.blobPath(d), d)
		}
	}
	var d digest.Digest
	if text := params.Get("digest"); text != "" {
		var err error
		if d, err = parseDigest(text); err != nil {
			return err
		}
	}
	u, err := q.Images.Begin(ctx, q.repo)
	if err != nil {
		return err
	}
	if d == "" {
		q.progress(u, http.StatusAccepted)
		return nil
	}
	if err := u.Append(q.r.Body, -1); err != nil {
		q.Images.Cancel(ctx, u)
		return err
	}
	return q.finish(ctx, u, d)
}

func (q *request) finish(ctx context.Context, u *image.Upload, d digest.Digest) error {
	if err := q.Images.Finish(ctx, u, d); err != nil {
		if fault.Is(err, fault.Invalid) {
			return problem{http.StatusBadRequest, "DIGEST_INVALID", err}
		}
		return err
	}
	return q.created(q.blobPath(d), d)
}

func rangeOf(u *image.Upload) string { return fmt.Sprintf("0-%d", max(u.Size()-1, 0)) }

func (q *request) progress(u *image.Upload, status int) {
	h := q.w.Header()
	h.Set("Location", "/v2/"+q.repo+"/blobs/uploads/"+u.ID)
	h.Set("Docker-Upload-UUID", u.ID)
	h.Set("Range", rangeOf(u))
	q.w.WriteHeader(status)
}

func (q *request) blob() error {
	d, err := parseDigest(q.last)
	if err != nil {
		return err
	}
	switch q.r.Method {
	case http.MethodGet, http.MethodHead:
		e, err := q.Images.Blob(q.r.Context(), q.repo, d)
		return q.serve(e, err, d, "BLOB_UNKNOWN")
	case http.MethodDelete:
		err := q.Core.RemovePushed(q.who, q.repo+"@"+d.String(), func() error { return q.Images.RemoveBlob(q.r.Context(), q.repo, d) })
		return q.removed(err, "BLOB_UNKNOWN")
	}
	return q.notAllowed()
}

func (q *request) removed(err error, code string) error {
	if fault.Is(err, fault.NotFound) {
		return problem{http.StatusNotFound, code, err}
	}
	if err == nil {
		q.w.WriteHeader(http.StatusAccepted)
	}
	return err
}

// serve answers with content that was pushed here, or that another server has sent here.
func (q *request) serve(e image.Entry, found error, d digest.Digest, code string) error {
	ctx := q.r.Context()
	var body interface {
		io.ReaderAt
		io.Closer
		Size() int64
	}
	switch {
	case found == nil:
		ra, err := q.Images.Open(ctx, e)
		if err != nil {
			return err
		}
		body = ra
	case fault.Is(found, fault.NotFound) && len(q.shared()) > 0:
		held, ra, err := q.Images.Held(ctx, d, code == "BLOB_UNKNOWN")
		if err != nil {
			return problem{http.StatusNotFound, code, err}
		}
		e, body = held, ra
	case fault.Is(found, fault.NotFound):
		return problem{http.StatusNotFound, code, found}
	default:
		return found
	}
	defer body.Close()
	h := q.w.Header()
	h.Set("Content-Type", e.MediaType)
	h.Set("Docker-Content-Digest", e.Digest.String())
	h.Set("Etag", `"`+e.Digest.String()+`"`)
	http.ServeContent(q.w, q.r, "", time.Time{}, io.NewSectionReader(body, 0, body.Size()))
	return nil
}

func (q *request) manifest() error {
	ctx := q.r.Context()
	d, err := digest.Parse(q.last)
	byTag := err != nil
	if byTag && !tagPattern.MatchString(q.last) {
		return problemf(http.StatusBadRequest, "MANIFEST_INVALID", "%q is neither a tag nor a digest", q.last)
	}
	switch q.r.Method {
	case http.MethodGet, http.MethodHead:
		if !byTag {
			e, err := q.Images.Manifest(ctx, q.repo, d)
			return q.serve(e, err, d, "MANIFEST_UNKNOWN")
		}
		if i, ok := q.shared()[q.last]; ok { // the latest, whichever server it was pushed to
			d = digest.Digest(i.Digest)
			e, err := q.Images.Manifest(ctx, q.repo, d)
			return q.serve(e, err, d, "MANIFEST_UNKNOWN")
		}
		e, err := q.Images.Tag(ctx, q.repo, q.last)
		return q.serve(e, err, e.Digest, "MANIFEST_UNKNOWN")
	case http.MethodPut:
		return q.putManifest(ctx, d, byTag)
	case http.MethodDelete:
		return q.removed(q.removeManifest(ctx, d, byTag), "MANIFEST_UNKNOWN")
	}
	return q.notAllowed()
}

func (q *request) putManifest(ctx context.Context, d digest.Digest, byTag bool) error {
	data, err := io.ReadAll(http.MaxBytesReader(q.w, q.r.Body, maxManifest))
	if err != nil {
		return problemf(http.StatusRequestEntityTooLarge, "SIZE_INVALID", "read the manifest, of which %d bytes are taken: %w", maxManifest, err)
	}
	tag := ""
	if byTag {
		tag, d = q.last, ""
	}
	e, subject, err := q.Images.PutManifest(ctx, q.repo, tag, d, q.r.Header.Get("Content-Type"), data)
	switch {
	case errors.Is(err, image.ErrMissing):
		return problem{http.StatusBadRequest, "MANIFEST_BLOB_UNKNOWN", err}
	case err != nil:
		return err
	}
	if tag != "" {
		name := q.name(tag)
		runs := false
		err := q.Core.ImagePushed(ctx, q.who, name, func() (info image.Info, _ bool, err error) {
			info, runs, err = q.Images.Share(ctx, name, e)
			return info, runs, err
		})
		if err == nil && runs {
			err = q.Images.Shared(ctx, q.repo, tag, e)
		} else if _, ok := q.shared()[tag]; ok { // the tag means something else from now on
			if err := q.Core.RemoveImage(ctx, q.who, name); err != nil {
				return err
			}
		}
		if err != nil {
			q.Log.Warn("what was pushed is kept by the registry, but cannot be run", "image", name, "error", err)
			q.w.Header().Set("Warning", fmt.Sprintf("299 - %q", "this cannot be run by the cluster: "+err.Error()))
		}
	}
	if subject != "" {
		q.w.Header().Set("OCI-Subject", subject.String())
	}
	return q.created("/v2/"+q.repo+"/manifests/"+e.Digest.String(), e.Digest)
}

// removeManifest forgets a tag, or a manifest with its tags; not what a workload of the cluster is made of.
func (q *request) removeManifest(ctx context.Context, d digest.Digest, byTag bool) error {
	return q.Core.RemovePushed(q.who, q.repo+" "+q.last, func() error {
		forgotten := false
		for tag, i := range q.shared() {
			if byTag && tag == q.last || !byTag && i.Digest == d.String() {
				if err := q.Core.RemoveImage(ctx, q.who, i.Name); err != nil && !fault.Is(err, fault.NotFound) {
					return err
				}
				forgotten = true
			}
		}
		var err error
		if byTag {
			err = q.Images.RemoveTag(ctx, q.repo, q.last)
		} else {
			err = q.Images.RemoveManifest(ctx, q.repo, d)
		}
		if forgotten && fault.Is(err, fault.NotFound) {
			return nil
		}
		return err
	})
}

func (q *request) tags() error {
	if q.r.Method != http.MethodGet {
		return q.notAllowed()
	}
	params := q.r.URL.Query()
	tags, known, err := q.Images.Tags(q.r.Context(), q.repo)
	if err != nil {
		return err
	}
	for tag := range q.shared() {
		tags, known = append(tags, tag), true
	}
	if !known {
		return problemf(http.StatusNotFound, "NAME_UNKNOWN", "nothing was pushed to %s", q.repo)
	}
	slices.SortFunc(tags, func(x, y string) int {
		return cmp.Or(cmp.Compare(strings.ToLower(x), strings.ToLower(y)), cmp.Compare(x, y))
	})
	tags = slices.Compact(tags)
	if last := params.Get("last"); last != "" {
		tags = slices.DeleteFunc(tags, func(t string) bool {
			return cmp.Or(cmp.Compare(strings.ToLower(t), strings.ToLower(last)), cmp.Compare(t, last)) <= 0
		})
	}
	if text := params.Get("n"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			return problemf(http.StatusBadRequest, "PAGINATION_NUMBER_INVALID", "n=%q is no number of tags", text)
		}
		if n < len(tags) {
			tags = tags[:n]
			if n > 0 {
				next := url.Values{"n": {text}, "last": {tags[n-1]}}
				q.w.Header().Set("Link", fmt.Sprintf("</v2/%s/tags/list?%s>; rel=\"next\"", q.repo, next.Encode()))
			}
		}
	}
	if tags == nil {
		tags = []string{}
	}
	return answerJSON(q.w, "application/json", map[string]any{"name": q.repo, "tags": tags})
}

func (q *request) referrers() error {
	if q.r.Method != http.MethodGet {
		return q.notAllowed()
	}
	d, err := parseDigest(q.last)
	if err != nil {
		return err
	}
	all, err := q.Images.Referrers(q.r.Context(), q.repo, d)
	if err != nil {
		return err
	}
	if kind := q.r.URL.Query().Get("artifactType"); kind != "" {
		all = slices.DeleteFunc(all, func(d ocispec.Descriptor) bool { return d.ArtifactType != kind })
		q.w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	return answerJSON(q.w, ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: all,
	})
}
