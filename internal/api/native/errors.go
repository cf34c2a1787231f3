package native

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/tutti-run/tutti/internal/fault"
)

// errorBody is how an error travels: as the body of a failed request, or as the last line of a
// stream. Its first field tells such a line from all others.
type errorBody struct {
	Error string `json:"error"`
	Kind  string `json:"kind"`
}

func bodyOf(err error) errorBody {
	return errorBody{Error: err.Error(), Kind: fault.KindOf(err).String()}
}

func (b errorBody) asError() error { return fault.New(fault.ParseKind(b.Kind), "%s", b.Error) }

// statusOf is the one place where kinds become status codes.
func statusOf(err error) int {
	switch fault.KindOf(err) {
	case fault.Invalid:
		return http.StatusBadRequest
	case fault.NotFound:
		return http.StatusNotFound
	case fault.Conflict:
		return http.StatusConflict
	case fault.Forbidden:
		return http.StatusForbidden
	case fault.Unsupported:
		return http.StatusNotImplemented
	case fault.Exhausted:
		return http.StatusTooManyRequests
	case fault.Unavailable:
		return http.StatusServiceUnavailable
	case fault.TooOld:
		return http.StatusGone
	default:
		return http.StatusInternalServerError
	}
}

func writeError(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", mediaJSON)
	w.WriteHeader(statusOf(err))
	_ = json.NewEncoder(w).Encode(bodyOf(err)) // the peer is gone if this fails
}

// responseError turns a failed answer back into the error that the server had.
func responseError(resp *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fault.New(fault.Unavailable, "read the answer: %w", err)
	}
	var body errorBody
	if json.Unmarshal(text, &body) != nil || body.Error == "" {
		return fmt.Errorf("%s answered %s", resp.Request.URL.Path, resp.Status)
	}
	return body.asError()
}

// Refuse answers every request with the error: what a host serves that cannot answer itself.
func Refuse(err error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { writeError(w, err) })
}
