package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tutti-run/tutti/internal/fault"
)

func TestTheDataDirectorysFormatIsChecked(t *testing.T) {
	c := &Config{DataDir: t.TempDir(), Version: "0.7"}
	path := filepath.Join(c.DataDir, "format")
	for range 2 { // marked, then found
		if err := c.checkFormat(); err != nil {
			t.Fatal(err)
		}
	}
	for content, says := range map[string][]string{
		`{"format":2,"version":"9.1"}`: {"format 2", `version "9.1"`, "reads format 1", c.DataDir},
		`{"format":`:                   {path},
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		err := c.checkFormat()
		if !fault.Is(err, fault.Unsupported) && !fault.Is(err, fault.Invalid) {
			t.Fatalf("%s gave %v", content, err)
		}
		for _, s := range says {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("%q does not say %q", err, s)
			}
		}
	}
}
