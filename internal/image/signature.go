package image

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tutti-run/tutti/internal/fault"
)

// Signature is one of the kind that cosign makes: of a small document that names the content.
type Signature struct {
	Payload []byte
	Value   []byte
}

const (
	signatureLayer      = "application/vnd.dev.cosign.simplesigning.v1+json"
	signatureAnnotation = "dev.cosignproject.cosign/signature"
	maxSignatures       = 64
)

// signatureTag is where the signatures of content are, in its repository.
func signatureTag(d digest.Digest) string { return strings.Replace(d.String(), ":", "-", 1) + ".sig" }

// Signatures returns those that lie beside an image in its repository; none is no error.
func (s *Store) Signatures(ctx context.Context, name, imageDigest string, as Credentials) ([]Signature, error) {
	repository, err := repositoryOf(name)
	if err != nil {
		return nil, err
	}
	d, err := digest.Parse(imageDigest)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%q is not a digest", imageDigest)
	}
	var m ocispec.Manifest
	var read func(ocispec.Descriptor, any) error
	if repo, own := strings.CutPrefix(repository.Name(), RegistryHost+"/"); own {
		r := s.Registry()
		e, err := r.Tag(ctx, repo, signatureTag(d))
		if fault.Is(err, fault.NotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		read = func(d ocispec.Descriptor, v any) error {
			at := d.Digest
			if d.MediaType != "" {
				b, err := r.Blob(ctx, repo, d.Digest)
				if err != nil {
					return err
				}
				at = b.content
			}
			data, err := r.read(ctx, at)
			if err != nil {
				return err
			}
			if raw, ok := v.(*[]byte); ok {
				*raw = data
				return nil
			}
			return json.Unmarshal(data, v)
		}
		if err := read(ocispec.Descriptor{Digest: e.content}, &m); err != nil {
			return nil, err
		}
	} else {
		target, get, end, err := s.find(ctx, name, repository.Name()+":"+signatureTag(d), as)
		if fault.Is(err, fault.NotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		defer end()
		read = func(d ocispec.Descriptor, v any) error { return readRemote(ctx, get, d, v) }
		if err := read(target, &m); err != nil {
			return nil, fault.New(fault.Unavailable, "read the signatures of %s: %w", name, err)
		}
	}
	var out []Signature
	for _, l := range m.Layers[:min(len(m.Layers), maxSignatures)] {
		if l.MediaType != signatureLayer || l.Size > maxManifest {
			continue
		}
		var sig Signature
		if sig.Value, err = base64.StdEncoding.DecodeString(l.Annotations[signatureAnnotation]); err != nil {
			continue
		}
		if err := read(l, &sig.Payload); err != nil {
			return nil, fault.New(fault.Unavailable, "read a signature of %s: %w", name, err)
		}
		out = append(out, sig)
	}
	return out, nil
}

// PublicKey reads a public key in PEM.
func PublicKey(text string) (crypto.PublicKey, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, fault.New(fault.Invalid, "this is no public key in PEM (-----BEGIN PUBLIC KEY-----)")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fault.New(fault.Invalid, "read the public key: %w", err)
	}
	switch key.(type) {
	case *ecdsa.PublicKey, *rsa.PublicKey, ed25519.PublicKey:
		return key, nil
	}
	return nil, fault.New(fault.Unsupported, "public keys of ECDSA, RSA and Ed25519 are accepted")
}

// KeyName is how a public key is spoken of: by the beginning of its hash.
func KeyName(text string) string {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return ""
	}
	sum := sha256.Sum256(block.Bytes)
	return hex.EncodeToString(sum[:8])
}

// By reports whether the signature is of that content and made with the key.
func (s Signature) By(key crypto.PublicKey, imageDigest string) bool {
	var payload struct {
		Critical struct {
			Type  string
			Image struct {
				Digest string `json:"docker-manifest-digest"`
			}
		}
	}
	if err := json.NewDecoder(bytes.NewReader(s.Payload)).Decode(&payload); err != nil {
		return false
	}
	if payload.Critical.Image.Digest != imageDigest || payload.Critical.Type != "cosign container image signature" {
		return false
	}
	sum := sha256.Sum256(s.Payload)
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(k, sum[:], s.Value)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(k, crypto.SHA256, sum[:], s.Value) == nil
	case ed25519.PublicKey:
		return ed25519.Verify(k, s.Payload, s.Value)
	}
	return false
}
