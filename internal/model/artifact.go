package model

import (
	"net/url"
	"path"
	"strings"
)

// Artifact is something that a process is made of: a program, or an archive that holds it.
type Artifact struct {
	Source string `json:"source"`           // a URL: https, http or file (on the node)
	Digest string `json:"digest"`           // "sha256:" and 64 hexadecimal digits, of what the source gives; "": it is not verified
	Cached bool   `json:"cached,omitempty"` // without a digest: what was fetched once will do
	// Target is where it goes below the sandbox: the directory of an archive; the name of a file, or
	// its directory, with a slash at the end. Empty is the sandbox itself.
	Target string `json:"target,omitempty"`
	// As says what the source gives: one of the formats below; empty goes by the source's name.
	As   string `json:"as,omitempty"`
	Mode uint32 `json:"mode,omitempty"` // of a file: permission bits; 0 is 0755
}

// The formats of artifacts. Archives are unpacked.
const (
	ArtifactFile    = "file"
	ArtifactTar     = "tar"
	ArtifactTarGzip = "tar.gz"
	ArtifactTarZstd = "tar.zst"
	ArtifactZip     = "zip"
)

// ArtifactFormats are all of them.
var ArtifactFormats = []string{ArtifactFile, ArtifactTar, ArtifactTarGzip, ArtifactTarZstd, ArtifactZip}

// Format is what the source gives.
func (a *Artifact) Format() string {
	if a.As != "" {
		return a.As
	}
	name := a.Source
	if u, err := url.Parse(a.Source); err == nil {
		name = path.Base(u.Path)
	}
	for _, e := range []struct{ ending, format string }{
		{".tar", ArtifactTar}, {".tar.gz", ArtifactTarGzip}, {".tgz", ArtifactTarGzip}, {".tar.zst", ArtifactTarZstd}, {".zip", ArtifactZip},
	} {
		if strings.HasSuffix(strings.ToLower(name), e.ending) {
			return e.format
		}
	}
	return ArtifactFile
}
