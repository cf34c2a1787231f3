package docker

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/tutti-run/tutti/internal/fault"
)

// maxBody bounds a request's JSON body.
const maxBody = 8 << 20

// decode reads a JSON body into v. A field that v does not know and that says something is refused
// by name. An empty body is an error unless optional.
func decode(r *request, v any, optional bool) error {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return fault.New(fault.Invalid, "read the request: %w", err)
	}
	if len(body) > maxBody {
		return fault.New(fault.Invalid, "the request is larger than %d MB", maxBody>>20)
	}
	if len(bytes.TrimSpace(body)) == 0 {
		if optional {
			return nil
		}
		return fault.New(fault.Invalid, "invalid JSON: got EOF while reading request body")
	}
	if ct := r.Header.Get("Content-Type"); ct != "" && !strings.HasPrefix(ct, "application/json") && !optional {
		return fault.New(fault.Invalid, "unsupported Content-Type header (%s): must be 'application/json'", ct)
	}
	return decodeStrict(body, v)
}

func decodeStrict(body []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(body))
	if err := dec.Decode(v); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return fault.New(fault.Invalid, "invalid JSON: unexpected end of JSON input")
		}
		return fault.New(fault.Invalid, "invalid JSON: %w", err)
	}
	if dec.More() {
		return fault.New(fault.Invalid, "unexpected content after JSON")
	}
	known, err := json.Marshal(v)
	if err != nil {
		return fault.New(fault.Invalid, "invalid JSON: %w", err)
	}
	var said, understood any
	if json.Unmarshal(body, &said) != nil || json.Unmarshal(known, &understood) != nil {
		return nil
	}
	// Fields that say nothing any more, whatever they hold.
	if m, ok := said.(map[string]any); ok {
		for _, key := range []string{"CheckDuplicate", "Detach"} {
			delete(m, key)
		}
	}
	if lost := lostFields("", said, understood); len(lost) > 0 {
		slices.Sort(lost)
		return fault.New(fault.Unsupported, "the field %s is not supported by Tutti", strings.Join(lost, ", "))
	}
	return nil
}

// lostFields names the fields of said that understood lacks, apart from those that say nothing.
func lostFields(at string, said, understood any) []string {
	var out []string
	switch s := said.(type) {
	case map[string]any:
		u, ok := understood.(map[string]any)
		for key, value := range s {
			if empty(value) {
				continue
			}
			where := strings.TrimPrefix(at+"."+key, ".")
			var have any
			found := false
			if ok {
				if have, found = u[key]; !found {
					for k, v := range u {
						if strings.EqualFold(k, key) {
							have, found = v, true
						}
					}
				}
			}
			if !found {
				out = append(out, where)
				continue
			}
			out = append(out, lostFields(where, value, have)...)
		}
	case []any:
		u, _ := understood.([]any)
		for i, value := range s {
			if i < len(u) {
				out = append(out, lostFields(at, value, u[i])...)
			}
		}
	}
	return out
}

func empty(v any) bool {
	switch x := v.(type) {
	case nil:
		return true
	case bool:
		return !x
	case float64:
		return x == 0
	case string:
		return x == ""
	case []any:
		return len(x) == 0
	case map[string]any:
		for _, value := range x {
			if !empty(value) {
				return false
			}
		}
		return true
	}
	return false
}
