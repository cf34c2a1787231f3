package native

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/wire"
)

const (
	mediaJSON  = "application/json"
	mediaLines = "application/x-ndjson"
	// maxRequest bounds a request that is one JSON value, in bytes.
	maxRequest = 64 << 20
)

// Deps is what the API works with.
type Deps struct {
	Core     *core.Core
	NodeName string // of this server
	Version  string // of this program
	// Manifests are the languages of files that are read here, by name.
	Manifests map[string]core.ReadManifests
	Log       *slog.Logger
}

type server struct {
	Deps
}

// New returns the API of a server. It takes callers from connections that Serve accepted.
func New(d Deps) http.Handler {
	s := &server{Deps: d}
	mux := http.NewServeMux()
	s.readRoutes(mux)
	s.changeRoutes(mux)
	s.trustRoutes(mux)
	s.policyRoutes(mux)
	s.hostRoutes(mux)
	s.rolloutRoutes(mux)
	s.usageRoutes(mux)
	s.streamRoutes(mux)
	s.fileRoutes(mux)
	s.keyRoutes(mux)
	s.registryRoutes(mux)
	s.volumeRoutes(mux)
	s.instanceRoutes(mux)
	s.followRoutes(mux)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, fault.New(fault.NotFound, "%s %s is not part of this API", r.Method, r.URL.Path))
	})
	return mux
}

// answer writes a value, or the error if there is one.
func (s *server) answer(w http.ResponseWriter, r *http.Request, v any, err error) {
	if err != nil {
		s.fail(w, r, err)
		return
	}
	if r.Header.Get("Accept") == wire.MediaCBOR { // takes a third of the time
		data, err := wire.Marshal(v)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		w.Header().Set("Content-Type", wire.MediaCBOR)
		_, _ = w.Write(data)
		return
	}
	w.Header().Set("Content-Type", mediaJSON)
	_ = json.NewEncoder(w).Encode(v) // the peer is gone if this fails
}

// fail answers with an error. Those that nobody classified are ours to look into: they are
// logged as well.
func (s *server) fail(w http.ResponseWriter, r *http.Request, err error) {
	if fault.Is(err, fault.Internal) && r.Context().Err() == nil {
		s.Log.Error("request failed", "path", r.URL.Path, "error", err)
	}
	writeError(w, err)
}

// read serves a use case that takes its parameters from the query.
func read[T any](s *server, fn func(ctx context.Context, who core.Caller, q query) (T, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := fn(r.Context(), callerOf(r), query{r.URL.Query()})
		s.answer(w, r, v, err)
	}
}

// change serves a use case that takes a JSON body.
func change[Req, Resp any](s *server, fn func(ctx context.Context, who core.Caller, req Req) (Resp, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var req Req
		if err := decode(http.MaxBytesReader(w, r.Body, maxRequest), &req); err != nil {
			s.fail(w, r, err)
			return
		}
		v, err := fn(r.Context(), callerOf(r), req)
		s.answer(w, r, v, err)
	}
}

// decode reads one JSON value. A field that it does not know is refused by name.
func decode(r io.Reader, v any) error {
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		if errors.Is(err, io.EOF) {
			return fault.New(fault.Invalid, "the request has no body")
		}
		return fault.New(fault.Invalid, "the request cannot be read: %w", err)
	}
	return nil
}

// done is the answer to what needs no other.
type done struct{}
