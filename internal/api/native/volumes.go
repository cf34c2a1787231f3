package native

import (
	"context"
	"io"
	"net/http"
	"net/url"

	"github.com/tutti-run/tutti/internal/fault"
)

// Paths of what volumes hold; ?ref, and of writing ?node.
const (
	pathVolumeData   = "/v1/volumes/data"   // GET → a tar archive; PUT: one
	pathVolumeRemove = "/v1/volumes/remove" // POST Ref
)

func (s *server) volumeRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET "+pathVolumeData, func(w http.ResponseWriter, r *http.Request) {
		out := &begun{ResponseWriter: w}
		w.Header().Set("Content-Type", mediaTar)
		err := s.Core.BackupVolume(r.Context(), callerOf(r), r.URL.Query().Get("ref"), out)
		if err != nil && out.begun {
			panic(http.ErrAbortHandler) // an archive that merely ended would look whole
		}
		if err != nil {
			s.fail(w, r, err)
		}
	})
	mux.HandleFunc("PUT "+pathVolumeData, func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		err := s.Core.RestoreVolume(r.Context(), callerOf(r), q.Get("ref"), q.Get("node"), r.Body)
		s.answer(w, r, done{}, err)
	})
	mux.HandleFunc("POST "+pathVolumeRemove, byRef(s, s.Core.RemoveVolumeOf))
}

// BackupVolume writes what a volume holds to w, as a tar archive.
func (c *Client) BackupVolume(ctx context.Context, ref string, w io.Writer) error {
	resp, err := c.do(ctx, http.MethodGet, pathVolumeData, url.Values{"ref": {ref}}, nil, "")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	read := &readErrors{r: resp.Body}
	if _, err := io.Copy(w, read); err != nil {
		if read.err != nil {
			return fault.New(fault.Unavailable, "the archive ended early: %w", err)
		}
		return err
	}
	return nil
}

// RestoreVolume puts what an archive has in place of what a volume holds; node is where one will live that lives
// nowhere yet.
func (c *Client) RestoreVolume(ctx context.Context, ref, node string, archive io.Reader) error {
	return c.value(ctx, http.MethodPut, pathVolumeData, url.Values{"ref": {ref}, "node": {node}}, io.NopCloser(archive), mediaTar, &done{})
}

// RemoveVolume removes a volume that nothing uses, and what it holds.
func (c *Client) RemoveVolume(ctx context.Context, ref string) error {
	return postDone(ctx, c, pathVolumeRemove, Ref{ref})
}
