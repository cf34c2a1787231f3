package native

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
)

// Paths of what tasks have as files; all take ?ref ?task ?path.
const (
	pathFiles    = "/v1/files"      // GET → a tar archive; PUT: one
	pathFileStat = "/v1/files/stat" // GET → core.FileStat
)

const mediaTar = "application/x-tar"

func (s *server) fileRoutes(mux *http.ServeMux) {
	files := func(r *http.Request) core.Files {
		q := r.URL.Query()
		return core.Files{Ref: q.Get("ref"), Task: q.Get("task"), Path: q.Get("path")}
	}
	mux.HandleFunc("GET "+pathFileStat, func(w http.ResponseWriter, r *http.Request) {
		st, err := s.Core.FileStat(r.Context(), callerOf(r), files(r))
		s.answer(w, r, st, err)
	})
	mux.HandleFunc("GET "+pathFiles, func(w http.ResponseWriter, r *http.Request) {
		out := &begun{ResponseWriter: w}
		w.Header().Set("Content-Type", mediaTar)
		err := s.Core.ReadFiles(r.Context(), callerOf(r), files(r), out)
		if err != nil && out.begun {
			panic(http.ErrAbortHandler) // an archive that merely ended would look whole
		}
		if err != nil {
			s.fail(w, r, err)
		}
	})
	mux.HandleFunc("PUT "+pathFiles, func(w http.ResponseWriter, r *http.Request) {
		err := s.Core.WriteFiles(r.Context(), callerOf(r), files(r), r.Body)
		s.answer(w, r, done{}, err)
	})
}

// FileStat tells of a file of a task.
func (c *Client) FileStat(ctx context.Context, f core.Files) (core.FileStat, error) {
	return get[core.FileStat](ctx, c, pathFileStat, fileQuery(f))
}

// ReadFiles writes the file or tree at a path to w as a tar archive.
func (c *Client) ReadFiles(ctx context.Context, f core.Files, w io.Writer) error {
	resp, err := c.do(ctx, http.MethodGet, pathFiles, fileQuery(f), nil, "")
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

// readErrors remembers how reading failed.
type readErrors struct {
	r   io.Reader
	err error
}

func (r *readErrors) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}

// WriteFiles unpacks a tar archive into the directory at a path.
func (c *Client) WriteFiles(ctx context.Context, f core.Files, archive io.Reader) error {
	return c.value(ctx, http.MethodPut, pathFiles, fileQuery(f), io.NopCloser(archive), mediaTar, &done{})
}

func fileQuery(f core.Files) url.Values {
	return url.Values{"ref": {f.Ref}, "task": {f.Task}, "path": {f.Path}}
}
