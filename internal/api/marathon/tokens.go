package marathon

import (
	"net/http"
	"strings"

	"github.com/tutti-run/tutti/internal/core"
)

// Tokens knows the cluster's users by their tokens in the forms that clients of Marathon have: as a
// password, whatever the user's name, and as "token=…".
type Tokens struct{ Directory core.Directory }

// Authenticate implements access.Authenticator.
func (t Tokens) Authenticate(r *http.Request) (core.Caller, bool, error) {
	_, token, ok := r.BasicAuth()
	if !ok {
		if token, ok = strings.CutPrefix(r.Header.Get("Authorization"), "token="); !ok {
			return core.Caller{}, false, nil
		}
	}
	who, err := t.Directory.ByToken(strings.TrimSpace(token))
	return who, true, err
}
