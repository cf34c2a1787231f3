package marathon

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/tutti-run/tutti/internal/fault"
)

// detail is what is wrong with one part of a request: where, as a path with slashes, and sentences.
type detail struct {
	Path   string   `json:"path"`
	Errors []string `json:"errors"`
}

// invalid is a request that cannot be honoured as it is written.
type invalid struct {
	message string
	details []detail
	status  int
}

func (e *invalid) Error() string {
	var parts []string
	for _, d := range e.details {
		where := d.Path
		if where == "/" || where == "" {
			where = "it"
		}
		parts = append(parts, where+": "+strings.Join(d.Errors, ", "))
	}
	if len(parts) == 0 {
		return e.message
	}
	return e.message + ": " + strings.Join(parts, "; ")
}

func (e *invalid) Is(target error) bool { _, ok := target.(*invalid); return ok }

// problems collects what is wrong.
type problems struct{ details []detail }

func (p *problems) add(path, sentence string) {
	i := slices.IndexFunc(p.details, func(d detail) bool { return d.Path == path })
	if i < 0 {
		p.details = append(p.details, detail{Path: path})
		i = len(p.details) - 1
	}
	if !slices.Contains(p.details[i].Errors, sentence) {
		p.details[i].Errors = append(p.details[i].Errors, sentence)
	}
}

// refuse says that something is understood and not built.
func (p *problems) refuse(path, what string) {
	p.add(path, what+" is not supported by Tutti yet; see docs/compatibility.md")
}

func (p *problems) err() error {
	if len(p.details) == 0 {
		return nil
	}
	return &invalid{message: "Object is not valid", details: p.details, status: http.StatusUnprocessableEntity}
}

// badJSON is a body that cannot be read.
func badJSON(path, sentence string) error {
	return &invalid{message: "Invalid JSON", details: []detail{{Path: path, Errors: []string{sentence}}}, status: http.StatusBadRequest}
}

// locked is a change that others under way stand in the way of.
type locked struct {
	what        string
	deployments []string
}

func (e *locked) Error() string {
	return e.what + " is locked by one or more deployments. Override with the option '?force=true'. View details at '/v2/deployments/<DEPLOYMENT_ID>'."
}

type identified struct {
	ID string `json:"id"`
}

// statusOf is the one place where kinds become status codes, those of Marathon.
func statusOf(err error) int {
	switch fault.KindOf(err) {
	case fault.Invalid, fault.Unsupported:
		return http.StatusUnprocessableEntity
	case fault.NotFound:
		return http.StatusNotFound
	case fault.Conflict:
		return http.StatusConflict
	case fault.Forbidden:
		return http.StatusForbidden
	case fault.Exhausted, fault.Unavailable, fault.TooOld:
		return http.StatusServiceUnavailable
	default:
		return http.StatusInternalServerError
	}
}

func writeError(w http.ResponseWriter, err error) {
	var inv *invalid
	var lock *locked
	switch {
	case errors.As(err, &inv):
		body := map[string]any{"message": inv.message}
		if len(inv.details) > 0 {
			body["details"] = inv.details
		}
		answer(w, inv.status, body)
	case errors.As(err, &lock):
		list := []identified{}
		for _, id := range lock.deployments {
			list = append(list, identified{id})
		}
		answer(w, http.StatusConflict, map[string]any{"message": err.Error(), "deployments": list})
	case fault.Is(err, fault.Invalid), fault.Is(err, fault.Unsupported):
		answer(w, http.StatusUnprocessableEntity, map[string]any{"message": "Object is not valid", "details": []detail{{Path: "/", Errors: []string{err.Error()}}}})
	default:
		answer(w, statusOf(err), map[string]any{"message": err.Error()})
	}
}

// Refuse answers every request with the error.
func Refuse(err error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { writeError(w, err) })
}

// answer writes v as JSON.
func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // the peer is gone if this fails
}
