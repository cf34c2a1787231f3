package image

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tutti-run/tutti/internal/fault"
)

// Records are what all servers' registries together have; each server has content where it was pushed to, or
// asked for since.
type Records interface {
	Manifest(repo string, d digest.Digest) (Pushed, bool)
	Manifests(repo string) []Pushed
	Tag(repo, tag string) (Pushed, bool)
	Tags(repo string) map[string]Pushed
	Put(ctx context.Context, repo, tag string, p Pushed) error
	Remove(ctx context.Context, repo string, tags []string, manifest digest.Digest) error
}

// Part is content by the digest that it was pushed with, and by its SHA-256, under which it is kept.
type Part struct {
	MediaType string        `json:"mediaType"`
	Digest    digest.Digest `json:"digest"`
	Content   digest.Digest `json:"content"`
	Size      int64         `json:"size"`
}

// Pushed is a manifest of a repository.
type Pushed struct {
	Part
	Parts        []Part            `json:"parts,omitempty"` // blobs that it names
	Subject      digest.Digest     `json:"subject,omitempty"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	// Shared, of a tag: it names one of the cluster's images, if that is still there.
	Shared bool `json:"shared,omitempty"`
}

func (p Part) entry() Entry {
	return Entry{MediaType: p.MediaType, Digest: p.Digest, Size: p.Size, content: p.Content}
}

func partOf(e Entry) Part {
	return Part{MediaType: e.MediaType, Digest: e.Digest, Content: e.content, Size: e.Size}
}

// record is what others have to know of a manifest that was pushed here.
func (r *Registry) record(ctx context.Context, repo string, e Entry, m *described) (Pushed, error) {
	p := Pushed{Part: partOf(e), ArtifactType: m.ArtifactType, Annotations: m.Annotations}
	if m.ArtifactType == "" && m.Config != nil {
		p.ArtifactType = m.Config.MediaType
	}
	if m.Subject != nil {
		p.Subject = m.Subject.Digest
	}
	parts := m.Layers
	if m.Config != nil {
		parts = append([]ocispec.Descriptor{*m.Config}, parts...)
	}
	for _, d := range parts {
		if images.IsNonDistributable(d.MediaType) {
			continue
		}
		b, err := r.Blob(ctx, repo, d.Digest)
		if err != nil {
			return p, err
		}
		p.Parts = append(p.Parts, partOf(b))
	}
	return p, nil
}

// bring has content of the registry here, from another server if need be, under a key.
func (r *Registry) bring(ctx context.Context, key string, p Part) (Entry, error) {
	e := p.entry()
	defer r.store.take(ctx)()
	if _, err := r.store.content.Info(inRegistry(ctx), p.Content); errdefs.IsNotFound(err) {
		if r.store.Peers == nil {
			return e, fault.New(fault.NotFound, "no server has %s", p.Digest)
		}
		body, _, err := r.store.Peers.FetchBlob(ctx, "", p.Content.String())
		if err != nil {
			return e, fmt.Errorf("get %s from another server: %w", p.Digest, err)
		}
		defer body.Close()
		ref := "bring-" + p.Content.String()
		err = content.WriteBlob(inRegistry(ctx), r.store.content, ref, body, ocispec.Descriptor{MediaType: p.MediaType, Digest: p.Content, Size: p.Size})
		if err != nil && !errdefs.IsAlreadyExists(err) {
			_ = r.store.content.Abort(inRegistry(context.WithoutCancel(ctx)), ref)
			return e, fmt.Errorf("get %s from another server: %w", p.Digest, err)
		}
	} else if err != nil {
		return e, err
	}
	return e, r.put(ctx, key, e, nil)
}

// known finds what the repository has on any server.
func (r *Registry) known(ctx context.Context, repo string, p Pushed) (Entry, error) {
	key := manifestKey(repo, p.Digest)
	if e, err := r.get(ctx, key); err == nil {
		return e, nil
	}
	return r.bring(ctx, key, p.Part)
}

// blobOfOthers finds a blob that a manifest names which was pushed to another server.
func (r *Registry) blobOfOthers(ctx context.Context, repo string, d digest.Digest) (Entry, error) {
	for _, p := range r.store.Records.Manifests(repo) {
		for _, b := range p.Parts {
			if b.Digest == d {
				return r.bring(ctx, blobKey(repo, d), b)
			}
		}
	}
	return Entry{}, fault.New(fault.NotFound, "the registry has no blob %s in %s", d, repo)
}

func (p Pushed) descriptor() ocispec.Descriptor {
	return ocispec.Descriptor{
		MediaType: p.MediaType, Digest: p.Digest, Size: p.Size, ArtifactType: p.ArtifactType, Annotations: p.Annotations,
	}
}
