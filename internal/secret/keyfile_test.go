package secret

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/tutti-run/tutti/internal/fault"
)

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "identity", "cluster.key")
	load := func() *KeyFile {
		t.Helper()
		k, err := LoadKeyFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	k := load()
	if _, err := k.Seal([]byte("x"), nil); !fault.Is(err, fault.Unavailable) {
		t.Errorf("sealing without a key gave %v", err)
	}
	key := NewKey()
	if err := k.Keep(key); err != nil {
		t.Fatal(err)
	}
	if err := k.Keep(NewKey()); !fault.Is(err, fault.Conflict) {
		t.Errorf("another key was taken: %v", err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode is %v, %v", st.Mode(), err)
	}
	sealed, err := load().Seal([]byte("content"), []byte("of the cluster"))
	if err != nil {
		t.Fatal(err)
	}

	unlock := NewUnlockKey()
	if err := k.Wrap(unlock); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(path); err != nil || bytes.Contains(data, []byte(`"key"`)) {
		t.Errorf("wrapped, the file is %s, %v", data, err)
	}
	if got, err := k.Open(sealed, []byte("of the cluster")); err != nil || string(got) != "content" {
		t.Errorf("the server that wrapped its file opens %q, %v", got, err)
	}
	k = load()
	if _, err := k.Open(sealed, []byte("of the cluster")); !fault.Is(err, fault.Unavailable) || !k.Locked() {
		t.Errorf("locked, it gave %v", err)
	}
	if err := k.Wrap(""); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a locked file was rewritten: %v", err)
	}
	if err := k.Unlock(NewUnlockKey()); !fault.Is(err, fault.Forbidden) || !k.Locked() {
		t.Errorf("a wrong unlock key gave %v", err)
	}
	if err := k.Unlock("open, please"); !fault.Is(err, fault.Invalid) {
		t.Errorf("nonsense gave %v", err)
	}
	if err := k.Unlock(unlock + "\n"); err != nil {
		t.Fatal(err)
	}
	if got, err := k.Open(sealed, []byte("of the cluster")); err != nil || string(got) != "content" {
		t.Errorf("unlocked, it opens %q, %v", got, err)
	}
	if !load().Locked() {
		t.Error("unlocking one process unlocked the next")
	}
	if err := k.Wrap(""); err != nil || load().Locked() {
		t.Errorf("without autolock the file is locked still: %v", err)
	}
}

func TestKeyFilesTravelWithBackups(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "a"), filepath.Join(dir, "deeper", "b")
	if _, err := ExportKeyFile(from); !fault.Is(err, fault.NotFound) {
		t.Errorf("export of nothing gave %v", err)
	}
	k, err := LoadKeyFile(from)
	if err != nil {
		t.Fatal(err)
	}
	unlock := NewUnlockKey()
	if err := k.Keep(NewKey()); err != nil {
		t.Fatal(err)
	}
	if err := k.Wrap(unlock); err != nil {
		t.Fatal(err)
	}
	data, err := ExportKeyFile(from)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := ImportKeyFile(to, data); err != nil {
			t.Fatal(err)
		}
	}
	restored, err := LoadKeyFile(to)
	if err != nil || restored.ID() != k.ID() || !restored.Locked() {
		t.Fatalf("restored as %q, %v", restored.ID(), err)
	}
	if err := restored.Unlock(unlock); err != nil {
		t.Error(err)
	}
	other, err := LoadKeyFile(filepath.Join(dir, "c"))
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Keep(NewKey()); err != nil {
		t.Fatal(err)
	}
	if err := ImportKeyFile(filepath.Join(dir, "c"), data); !fault.Is(err, fault.Conflict) {
		t.Errorf("another cluster's key was replaced: %v", err)
	}
	if err := ImportKeyFile(to, data[:len(data)/2]); !fault.Is(err, fault.Invalid) {
		t.Errorf("half a file gave %v", err)
	}
}

func FuzzKeyFiles(f *testing.F) {
	f.Add([]byte(`{"version":1,"id":"00","key":"AA=="}`), unlockPrefix+"0")
	f.Add([]byte(`{"version":1,"id":"00","wrapped":"AA==","unlock":"x"}`), NewUnlockKey())
	f.Fuzz(func(t *testing.T, data []byte, unlock string) {
		on, err := parseKeyFile(data)
		if err != nil {
			return
		}
		k := &KeyFile{on: on, key: on.Key}
		if k.Unlock(unlock) == nil && k.Locked() {
			t.Errorf("%s unlocked by %q and yet locked", data, unlock)
		}
	})
}
