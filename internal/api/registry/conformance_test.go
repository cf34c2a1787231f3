//go:build conformance

package registry

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestConformance runs the suite of the distribution specification, whose program TUTTI_OCI_CONFORMANCE
// names; see make test-registry.
func TestConformance(t *testing.T) {
	h := newHouse(t, nil)
	cmd := exec.CommandContext(t.Context(), os.Getenv("TUTTI_OCI_CONFORMANCE"))
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "OCI_REGISTRY="+strings.TrimPrefix(h.http.URL, "http://"), "OCI_TLS=disabled", "OCI_VERSION=1.1")
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
}
