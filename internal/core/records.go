package core

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/store"
)

// Records are what was pushed to the cluster's registry, whichever server it was pushed to: keys of the key space.
type Records struct{ Store *store.Store }

const recordsPrefix = "/tutti/registry/"

// An at sign, and a colon, is in no name of a repository.
func manifestRecords(repo string) string { return recordsPrefix + "manifest/" + repo + "@" }
func tagRecords(repo string) string      { return recordsPrefix + "tag/" + repo + ":" }

func (r Records) get(key string) (p image.Pushed, ok bool) {
	kv, ok := r.Store.Snapshot().Keys().Get(key)
	return p, ok && json.Unmarshal(kv.Value, &p) == nil
}

func (r Records) all(prefix string) map[string]image.Pushed {
	out := map[string]image.Pushed{}
	for kv := range r.Store.Snapshot().Keys().Range(prefix, store.PrefixEnd(prefix)) {
		var p image.Pushed
		if json.Unmarshal(kv.Value, &p) == nil {
			out[strings.TrimPrefix(kv.Key, prefix)] = p
		}
	}
	return out
}

// Manifest implements image.Records.
func (r Records) Manifest(repo string, d digest.Digest) (image.Pushed, bool) {
	return r.get(manifestRecords(repo) + d.String())
}

// Manifests implements image.Records.
func (r Records) Manifests(repo string) []image.Pushed {
	prefix := manifestRecords(repo)
	var out []image.Pushed
	for kv := range r.Store.Snapshot().Keys().Range(prefix, store.PrefixEnd(prefix)) {
		var p image.Pushed
		if json.Unmarshal(kv.Value, &p) == nil {
			out = append(out, p)
		}
	}
	return out
}

// Tag implements image.Records.
func (r Records) Tag(repo, tag string) (image.Pushed, bool) { return r.get(tagRecords(repo) + tag) }

// Tags implements image.Records.
func (r Records) Tags(repo string) map[string]image.Pushed { return r.all(tagRecords(repo)) }

// Put implements image.Records.
func (r Records) Put(ctx context.Context, repo, tag string, p image.Pushed) error {
	value, err := json.Marshal(p)
	if err != nil {
		return err
	}
	cs := &store.ChangeSet{}
	if tag != "" {
		cs.PutKey(tagRecords(repo)+tag, value, 0)
	}
	if p.Shared {
		p.Shared = false
		if value, err = json.Marshal(p); err != nil {
			return err
		}
	}
	cs.PutKey(manifestRecords(repo)+p.Digest.String(), value, 0)
	_, err = r.Store.Commit(ctx, cs)
	return err
}

// Remove implements image.Records.
func (r Records) Remove(ctx context.Context, repo string, tags []string, manifest digest.Digest) error {
	cs := &store.ChangeSet{}
	for _, t := range tags {
		cs.DeleteKey(tagRecords(repo) + t)
	}
	if manifest != "" {
		cs.DeleteKey(manifestRecords(repo) + manifest.String())
	}
	if cs.Len() == 0 {
		return nil
	}
	_, err := r.Store.Commit(ctx, cs)
	return err
}
