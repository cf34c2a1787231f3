package access

import (
	"net/http"

	"github.com/tutti-run/tutti/internal/core"
)

// Basic knows the cluster's users by their tokens in place of passwords, for clients that can say no
// other; the name beside it says nothing.
type Basic struct{ Directory core.Directory }

// Authenticate implements Authenticator.
func (b Basic) Authenticate(r *http.Request) (core.Caller, bool, error) {
	_, token, ok := r.BasicAuth()
	if !ok {
		return core.Caller{}, false, nil
	}
	who, err := b.Directory.ByToken(token)
	return who, true, err
}
