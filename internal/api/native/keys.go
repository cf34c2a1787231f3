package native

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
)

// Paths of the general key space.
const (
	pathKeys      = "/v1/keys"       // ?prefix, or ?from ?to, ?limit ?continue ?revision ?count → core.KeyList; POST core.KeyChanges → core.KeysCommitted
	pathKey       = "/v1/keys/get"   // ?key ?revision → core.KeyAnswer
	pathKeysWatch = "/v1/keys/watch" // ?prefix ?after ?progress → core.KeyEvent a line

	pathComponentKey = "/v1/component-key" // ?name → ComponentKey
)

// ComponentKey is what a component seals with what it keeps in the key space.
type ComponentKey struct {
	Key []byte `json:"key"`
}

func (s *server) keyRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET "+pathKeys, read(s, s.listKeys))
	mux.HandleFunc("GET "+pathKey, read(s, func(_ context.Context, who core.Caller, q query) (core.KeyAnswer, error) {
		revision, err := q.revision("revision")
		if err != nil {
			return core.KeyAnswer{}, err
		}
		return s.Core.GetKey(who, q.Get("key"), revision)
	}))
	mux.HandleFunc("POST "+pathKeys, change(s, s.Core.ChangeKeys))
	mux.HandleFunc("GET "+pathKeysWatch, s.watchKeys)
	mux.HandleFunc("GET "+pathComponentKey, read(s, func(_ context.Context, who core.Caller, q query) (ComponentKey, error) {
		key, err := s.Core.ComponentKey(who, q.Get("name"))
		return ComponentKey{key}, err
	}))
}

func (q query) revision(name string) (uint64, error) {
	v := q.Get(name)
	if v == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		return 0, fault.New(fault.Invalid, "%s=%q is not a revision: a number, 1 and above, or 0 for now, is accepted", name, v)
	}
	return n, nil
}

func (s *server) listKeys(_ context.Context, who core.Caller, q query) (out core.KeyList, err error) {
	k := core.KeyQuery{Prefix: q.Get("prefix"), From: q.Get("from"), To: q.Get("to"), Continue: q.Get("continue")}
	if k.Limit, err = q.number("limit", 0); err != nil {
		return out, err
	}
	if k.Revision, err = q.revision("revision"); err != nil {
		return out, err
	}
	if k.CountOnly, err = q.flag("count"); err != nil {
		return out, err
	}
	return s.Core.ListKeys(who, k)
}

func (s *server) watchKeys(w http.ResponseWriter, r *http.Request) {
	q := query{r.URL.Query()}
	k := core.KeyWatch{Prefix: q.Get("prefix")}
	var err error
	if k.After, err = q.revision("after"); err == nil && q.Get("progress") != "" {
		if k.Progress, err = time.ParseDuration(q.Get("progress")); err != nil || k.Progress < 100*time.Millisecond {
			err = fault.New(fault.Invalid, "progress=%q: a duration such as 5s, of 100ms at least, is accepted", q.Get("progress"))
		}
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.stream(w, r, atOnce, func(ctx context.Context, line func(any) error) error {
		return s.Core.WatchKeys(ctx, callerOf(r), k, func(e core.KeyEvent) error { return line(e) })
	})
}

// Key returns what a key holds, or held at a revision that is not 0.
func (c *Client) Key(ctx context.Context, key string, revision uint64) (core.KeyAnswer, error) {
	return get[core.KeyAnswer](ctx, c, pathKey, url.Values{"key": {key}, "revision": {strconv.FormatUint(revision, 10)}})
}

// Keys returns a page of keys.
func (c *Client) Keys(ctx context.Context, q core.KeyQuery) (core.KeyList, error) {
	return get[core.KeyList](ctx, c, pathKeys, url.Values{
		"prefix": {q.Prefix}, "from": {q.From}, "to": {q.To}, "limit": {strconv.Itoa(q.Limit)}, "continue": {q.Continue},
		"revision": {strconv.FormatUint(q.Revision, 10)}, "count": {strconv.FormatBool(q.CountOnly)},
	})
}

// ChangeKeys makes changes as a whole or not at all, and returns the revision that they got.
func (c *Client) ChangeKeys(ctx context.Context, k core.KeyChanges) (uint64, error) {
	r, err := post[core.KeysCommitted](ctx, c, pathKeys, k)
	return r.Revision, err
}

// WatchKeys yields changes of keys; see core.Core.WatchKeys. It ends as Logs does.
func (c *Client) WatchKeys(ctx context.Context, q core.KeyWatch, yield func(core.KeyEvent) error) error {
	v := url.Values{"prefix": {q.Prefix}, "after": {strconv.FormatUint(q.After, 10)}}
	if q.Progress > 0 {
		v.Set("progress", q.Progress.String())
	}
	return readLines(ctx, c, pathKeysWatch, v, yield)
}

// ComponentKey returns the key with which a component seals what it keeps in the key space.
func (c *Client) ComponentKey(ctx context.Context, name string) ([]byte, error) {
	k, err := get[ComponentKey](ctx, c, pathComponentKey, url.Values{"name": {name}})
	return k.Key, err
}
