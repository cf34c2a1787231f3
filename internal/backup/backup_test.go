package backup_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/backup"
	"github.com/tutti-run/tutti/internal/fault"
)

func TestBackupsAreReadAsTheyWereWritten(t *testing.T) {
	h := backup.Header{Version: "1", Cluster: "abc", Server: "host-1", Revision: 7, Time: time.Unix(1_700_000_000, 0).UTC(), Index: 9, Term: 3, KeyFile: []byte("key")}
	state := strings.Repeat("state ", 100_000)
	var whole bytes.Buffer
	if err := backup.Write(&whole, h, func(w io.Writer) error { _, err := io.WriteString(w, state); return err }); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "backup")
	open := func(data []byte) (*backup.File, error) {
		t.Helper()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return backup.Open(path)
	}
	f, err := open(whole.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := io.ReadAll(f.State)
	if err != nil || string(got) != state || !f.Time.Equal(h.Time) || f.Revision != 7 || string(f.KeyFile) != "key" || f.Index != 9 || f.Term != 3 || f.Cluster != "abc" {
		t.Errorf("read %+v with %d bytes of state, %v", f.Header, len(got), err)
	}
	for cut := range 200 {
		if _, err := open(whole.Bytes()[:whole.Len()-1-cut*whole.Len()/200]); !fault.Is(err, fault.Invalid) {
			t.Errorf("cut short at the %d. of 200 parts: %v", 200-cut, err)
		}
	}
	for i := 0; i < whole.Len(); i += 1 + whole.Len()/300 {
		data := bytes.Clone(whole.Bytes())
		data[i] ^= 4
		if _, err := open(data); !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.Unsupported) {
			t.Errorf("with a wrong bit at %d: %v", i, err)
		}
	}
	newer := bytes.Replace(whole.Bytes(), []byte("TUTTI-BACKUP 1"), []byte("TUTTI-BACKUP 2"), 1)
	if _, err := open(newer); !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "format 2") || !strings.Contains(err.Error(), "reads format 1") {
		t.Errorf("of a newer format: %v", err)
	}
}
