package core

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/store"
)

// Key is a key of the general key space, in which other components keep what is theirs.
type Key struct {
	Key   string `json:"key"`
	Value []byte `json:"value"`
	// Created is the revision at which the key came into being, Modified that of its last put.
	Created  uint64 `json:"created"`
	Modified uint64 `json:"modified"`
	// Version counts the puts since it came into being, from 1.
	Version uint64 `json:"version"`
	// TTLMilliseconds is how long the key stays without another put; 0 is for ever.
	TTLMilliseconds int64 `json:"ttlMilliseconds,omitempty"`
}

func keyOf(kv *store.KeyValue) *Key {
	if kv == nil {
		return nil
	}
	return &Key{Key: kv.Key, Value: kv.Value, Created: kv.Created, Modified: kv.Modified, Version: kv.Version, TTLMilliseconds: kv.TTL.Milliseconds()}
}

// KeyAnswer is a key at a revision.
type KeyAnswer struct {
	Revision uint64 `json:"revision"`
	Key      *Key   `json:"key"`
}

// KeyQuery chooses keys to list.
type KeyQuery struct {
	Prefix string
	// From and To choose the keys from one on and before another instead; an empty To means all that
	// follow.
	From, To string
	// Limit bounds a page; 0 means all.
	Limit int
	// Continue is what the page before gave. The rest is listed at the revision of the first page.
	Continue string
	// Revision lists what was there then; 0 is now.
	Revision uint64
	// CountOnly counts and lists nothing.
	CountOnly bool
}

// KeyList is a page of keys, in their order.
type KeyList struct {
	Revision uint64 `json:"revision"`
	Keys     []Key  `json:"keys"`
	// Continue asks for the next page; empty on the last one.
	Continue string `json:"continue,omitempty"`
	// Remaining is how many keys follow this page.
	Remaining int `json:"remaining"`
}

// KeyChanges are changes that happen as a whole or not at all, at one revision: deletions first,
// then puts.
type KeyChanges struct {
	// Expect refuses everything with fault.Conflict unless each key was last written at exactly the
	// revision; 0 means that it must not exist.
	Expect         map[string]uint64 `json:"expect,omitempty"`
	Delete         []string          `json:"delete,omitempty"`
	DeletePrefixes []string          `json:"deletePrefixes,omitempty"`
	Put            []KeyPut          `json:"put,omitempty"`
}

// keysChange is the use case of ChangeKeys: see AuditEntry.Frequent.
const keysChange = "keys change"

// what tells the changes, without values, for the audit log.
func (k *KeyChanges) what() string {
	var all []string
	for _, key := range k.Delete {
		all = append(all, "delete "+key)
	}
	for _, prefix := range k.DeletePrefixes {
		all = append(all, "delete "+prefix+"…")
	}
	for _, p := range k.Put {
		all = append(all, "put "+p.Key)
	}
	const most = 10
	if rest := len(all) - most; rest > 0 {
		all = append(all[:most], fmt.Sprintf("and %d more", rest))
	}
	return clip(strings.Join(all, ", "), 500)
}

// KeyPut writes a value. With a time to live the key is deleted when it is not written again for
// that long; it may stay longer while servers change the lead.
type KeyPut struct {
	Key             string `json:"key"`
	Value           []byte `json:"value"`
	TTLMilliseconds int64  `json:"ttlMilliseconds,omitempty"`
}

// KeysCommitted is the revision that changes of keys got.
type KeysCommitted struct {
	Revision uint64 `json:"revision"`
}

// KeyWatch chooses what to watch.
type KeyWatch struct {
	Prefix string
	// After is the revision whose changes and those before are known; 0 begins with the present.
	After uint64
	// Progress sends an event without a key when the watch began, and that often when there is
	// nothing else to send, if the revision has moved; 0 never.
	Progress time.Duration
}

// KeyEvent is a change of a key, or how far the watch has come.
type KeyEvent struct {
	Revision uint64 `json:"revision"`
	// Old is absent when the key came into being, New when it was deleted, and both in an event
	// that only says that all changes up to the revision were sent.
	Old *Key `json:"old,omitempty"`
	New *Key `json:"new,omitempty"`
	// More says that another change of the same revision follows.
	More bool `json:"more,omitempty"`
}

// keysAt returns the key space at a revision, 0 for now.
func (c *Core) keysAt(revision uint64) (store.Keys, error) {
	if revision == 0 {
		return c.Store.Snapshot().Keys(), nil
	}
	return c.Store.KeysAt(revision)
}

// GetKey returns what a key holds, or held at a revision.
func (c *Core) GetKey(who Caller, key string, revision uint64) (KeyAnswer, error) {
	if _, err := c.begin(who, "keys read", ""); err != nil {
		return KeyAnswer{}, err
	}
	keys, err := c.keysAt(revision)
	if err != nil {
		return KeyAnswer{}, fmt.Errorf("read key %q: %w", key, err)
	}
	kv, ok := keys.Get(key)
	if !ok {
		return KeyAnswer{}, fault.New(fault.NotFound, "key %q does not exist at revision %d", key, keys.Revision())
	}
	return KeyAnswer{Revision: keys.Revision(), Key: keyOf(kv)}, nil
}

// ListKeys returns a page of keys.
func (c *Core) ListKeys(who Caller, q KeyQuery) (KeyList, error) {
	if _, err := c.begin(who, "keys read", ""); err != nil {
		return KeyList{}, err
	}
	revision, from, to := q.Revision, q.Prefix, store.PrefixEnd(q.Prefix)
	if q.From != "" || q.To != "" {
		if q.Prefix != "" {
			return KeyList{}, fault.New(fault.Invalid, "keys with a prefix, or keys from one on and before another can be listed, not both at once")
		}
		from, to = q.From, q.To
	}
	if q.Limit < 0 {
		return KeyList{}, fault.New(fault.Invalid, "a page of %d keys: 0 (no limit) and more is accepted", q.Limit)
	}
	if q.Continue != "" {
		next, err := parseContinue(q.Continue, from, to)
		if err != nil {
			return KeyList{}, err
		}
		revision, from = next.Revision, next.From
	}
	keys, err := c.keysAt(revision)
	if err != nil {
		return KeyList{}, fmt.Errorf("list keys from %q on: %w", from, err)
	}
	out := KeyList{Revision: keys.Revision(), Keys: []Key{}}
	if q.CountOnly {
		out.Remaining = keys.Count(from, to)
		return out, nil
	}
	for kv := range keys.Range(from, to) {
		if q.Limit > 0 && len(out.Keys) == q.Limit {
			out.Remaining = keys.Count(kv.Key, to)
			out.Continue = continuation{Revision: out.Revision, From: kv.Key}.String()
			break
		}
		out.Keys = append(out.Keys, *keyOf(kv))
	}
	return out, nil
}

// continuation is where a list goes on.
type continuation struct {
	Revision uint64 `json:"r"`
	From     string `json:"f"`
}

func (n continuation) String() string {
	data, err := json.Marshal(n)
	if err != nil {
		panic(fmt.Sprintf("encode a continuation: %v", err)) // a number and a string
	}
	return base64.RawURLEncoding.EncodeToString(data)
}

func parseContinue(s, from, to string) (n continuation, err error) {
	data, err := base64.RawURLEncoding.DecodeString(s)
	if err == nil {
		err = json.Unmarshal(data, &n)
	}
	if err != nil || n.Revision == 0 || n.From < from || to != "" && n.From >= to {
		return n, fault.New(fault.Invalid, "continue=%q is not what a page from %q on gave", s, from)
	}
	return n, nil
}

// ChangeKeys changes keys.
func (c *Core) ChangeKeys(ctx context.Context, who Caller, k KeyChanges) (done KeysCommitted, err error) {
	a, err := c.begin(who, keysChange, k.what())
	if err != nil {
		return KeysCommitted{}, err
	}
	defer a.end(&err)
	cs := &store.ChangeSet{}
	if err := k.addTo(cs); err != nil {
		return KeysCommitted{}, err
	}
	if cs.Len() == 0 {
		return KeysCommitted{}, fault.New(fault.Invalid, "nothing is to be changed")
	}
	revision, err := c.Store.Commit(ctx, cs)
	return KeysCommitted{Revision: revision}, err
}

// addTo makes the changes part of a change set.
func (k *KeyChanges) addTo(cs *store.ChangeSet) error {
	for key, revision := range k.Expect {
		cs.ExpectKey(key, revision)
	}
	for _, key := range k.Delete {
		cs.DeleteKey(key)
	}
	for _, prefix := range k.DeletePrefixes {
		cs.DeleteKeys(prefix, store.PrefixEnd(prefix))
	}
	for _, p := range k.Put {
		if p.TTLMilliseconds < 0 || p.TTLMilliseconds > int64(maxKeyTTL/time.Millisecond) {
			return fault.New(fault.Invalid, "the time to live of key %q is %d ms; 0 (for ever) to %d are accepted", p.Key, p.TTLMilliseconds, maxKeyTTL/time.Millisecond)
		}
		cs.PutKey(p.Key, p.Value, time.Duration(p.TTLMilliseconds)*time.Millisecond)
	}
	return nil
}

const maxKeyTTL = 10 * 365 * 24 * time.Hour

// WatchKeys yields changes of keys in their order until ctx is done, which is no error, or yield
// returns one. When changes are no longer kept it fails with fault.TooOld: list, and watch from the
// list's revision.
func (c *Core) WatchKeys(ctx context.Context, who Caller, q KeyWatch, yield func(KeyEvent) error) error {
	if _, err := c.begin(who, "keys read", ""); err != nil {
		return err
	}
	if q.After == 0 {
		q.After = c.Store.Snapshot().Revision()
	}
	told := uint64(0)
	progress := func(seen uint64) error {
		if q.Progress == 0 || seen == told {
			return nil
		}
		told = seen
		return yield(KeyEvent{Revision: seen})
	}
	if err := progress(q.After); err != nil {
		return err
	}
	w := c.Store.WatchKeys(q.After, q.Prefix, store.PrefixEnd(q.Prefix))
	for {
		b, err := c.nextOrProgress(ctx, w, q.Progress)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("watch keys below %q: %w", q.Prefix, err)
		case b.Revision == 0:
			if err := progress(w.Seen()); err != nil {
				return err
			}
			continue
		}
		for i, ch := range b.Keys {
			if err := yield(KeyEvent{Revision: b.Revision, Old: keyOf(ch.Old), New: keyOf(ch.New), More: i < len(b.Keys)-1}); err != nil {
				return err
			}
		}
	}
}

// nextOrProgress returns the next batch, an empty one when none came for a while.
func (c *Core) nextOrProgress(ctx context.Context, w *store.Watcher, after time.Duration) (store.Batch, error) {
	if after == 0 {
		return w.Next(ctx)
	}
	waitCtx, cancel := context.WithTimeout(ctx, after)
	defer cancel()
	b, err := w.Next(waitCtx)
	if waitCtx.Err() != nil && err != nil && ctx.Err() == nil && !fault.Is(err, fault.TooOld) {
		return store.Batch{}, nil
	}
	return b, err
}
