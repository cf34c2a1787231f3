package docker

import (
	"encoding/json"
	"runtime"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tutti-run/tutti/internal/fault"
)

// platform reads "linux/amd64", or the object in which newer clients say the same, as OS/ARCHITECTURE.
func platform(text string) (string, error) {
	var p ocispec.Platform
	if strings.HasPrefix(text, "{") {
		if err := json.Unmarshal([]byte(text), &p); err != nil {
			return "", fault.New(fault.Invalid, "failed to parse platform: %w", err)
		}
	} else {
		parts := strings.Split(text, "/")
		if len(parts) > 3 || slices.Contains(parts, "") {
			return "", fault.New(fault.Invalid, "%q: unknown operating system or architecture: invalid argument", text)
		}
		p.OS, p.Architecture = parts[0], runtime.GOARCH
		if len(parts) > 1 {
			p.Architecture = parts[1]
		}
		if len(parts) > 2 {
			p.Variant = parts[2]
		}
	}
	for named, goarch := range map[string]string{"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64"} {
		if p.Architecture == named {
			p.Architecture = goarch
		}
	}
	if p.Variant != "" && (p.Architecture != "arm64" || p.Variant != "v8") {
		return "", fault.New(fault.Unsupported, "platform %s: variants such as %q are not told apart by Tutti", text, p.Variant)
	}
	if p.OS != "linux" {
		return "", notHonoured("platform", text)
	}
	return p.OS + "/" + p.Architecture, nil
}

// isIndex reports whether content may be for several platforms.
func isIndex(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == "application/vnd.docker.distribution.manifest.list.v2+json"
}

// ownPlatform refuses requests about an image for another platform than this host's: the one that answers knows of no other.
func ownPlatform(r *request) error {
	for _, text := range slices.Concat(r.query["platform"], r.query["platforms"]) {
		if text == "" {
			continue
		}
		p, err := platform(text)
		if err != nil {
			return err
		}
		if own := "linux/" + runtime.GOARCH; p != own {
			return fault.New(fault.Unsupported, "platform %s: of images of several platforms, Tutti's Docker API tells of and moves the one of its host, %s", p, own)
		}
	}
	return nil
}
