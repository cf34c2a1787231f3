package secret

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/tutti-run/tutti/internal/atomicfile"
	"github.com/tutti-run/tutti/internal/fault"
)

// KeyFile holds the key that seals what the replicated state has of the cluster's own keys: those
// of the authority, of secrets, of joining. It lies on each server, in no log, snapshot or state.
// With autolock it is itself wrapped, by an unlock key that the host does not keep: then it is
// locked from the process's start until somebody unlocks it. It is safe for concurrent use.
type KeyFile struct {
	path string

	mu  sync.Mutex
	key []byte // nil: there is none, or it is locked
	on  keyOnDisk
}

// keyOnDisk is the file; either Key or Wrapped is set. Its zero value is a file that is not there.
type keyOnDisk struct {
	Version int    `json:"version"`
	ID      string `json:"id"` // of the key, the same on every server
	Key     []byte `json:"key,omitempty"`
	Wrapped []byte `json:"wrapped,omitempty"`
	// Unlock identifies the unlock key that Wrapped needs.
	Unlock string `json:"unlock,omitempty"`
}

const (
	keyFileVersion = 1
	// unlockPrefix begins an unlock key and carries the version of its form.
	unlockPrefix = "tuttiunlock1-"
	wrapping     = "tutti key file"
)

var unlockEncoding = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// LoadKeyFile reads the file at path; it need not exist.
func LoadKeyFile(path string) (*KeyFile, error) {
	k := &KeyFile{path: path}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the key file: %w", err)
	}
	if k.on, err = parseKeyFile(data); err != nil {
		return nil, fmt.Errorf("read the key file %s: %w", path, err)
	}
	k.key = k.on.Key
	return k, nil
}

func parseKeyFile(data []byte) (keyOnDisk, error) {
	var on keyOnDisk
	if err := json.Unmarshal(data, &on); err != nil {
		return on, fault.New(fault.Invalid, "this is not a key file: %w", err)
	}
	switch {
	case on.Version != keyFileVersion:
		return on, fault.New(fault.Unsupported, "a key file of form %d; this version reads form %d", on.Version, keyFileVersion)
	case len(on.Wrapped) == 0 && (len(on.Key) != KeyBytes || on.ID != keyID(on.Key)),
		len(on.Wrapped) > 0 && (len(on.Key) > 0 || on.Unlock == ""), on.ID == "":
		return on, fault.New(fault.Invalid, "the key file is damaged")
	}
	return on, nil
}

// ExportKeyFile returns the content of the key file at path as it is, wrapped when autolock is
// on: what a backup must hold beside the state to be of use. fault.NotFound when there is none.
func ExportKeyFile(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "this server has no key file at %s", path)
	}
	if err != nil {
		return nil, fmt.Errorf("read the key file: %w", err)
	}
	if _, err := parseKeyFile(data); err != nil {
		return nil, fmt.Errorf("read the key file %s: %w", path, err)
	}
	return data, nil
}

// ImportKeyFile writes what ExportKeyFile returned to path, for a server that is not running.
// A file that holds another key is not replaced: fault.Conflict.
func ImportKeyFile(path string, data []byte) error {
	on, err := parseKeyFile(data)
	if err != nil {
		return err
	}
	old, err := LoadKeyFile(path)
	if err != nil {
		return err
	}
	if old.ID() != "" && old.ID() != on.ID {
		return fault.New(fault.Conflict, "%s holds the key of another cluster; move it away first", path)
	}
	return writeKeyFile(path, data)
}

func writeKeyFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write the key file: %w", err)
	}
	if err := atomicfile.WriteSynced(path, data); err != nil {
		return fmt.Errorf("write the key file: %w", err)
	}
	return nil
}

// keyID names a key without revealing it.
func keyID(key []byte) string {
	sum := sha256.Sum256(append([]byte("tutti key\x00"), key...))
	return hex.EncodeToString(sum[:8])
}

// ID names the key; empty when there is none.
func (k *KeyFile) ID() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.on.ID
}

// Locked reports whether there is a key that nobody has unlocked.
func (k *KeyFile) Locked() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.on.ID != "" && k.key == nil
}

// Keep writes a key that another server gave, in clear. One that is there already must be the same.
func (k *KeyFile) Keep(key []byte) error {
	if len(key) != KeyBytes {
		return fault.New(fault.Invalid, "a key of %d bytes; %d are expected", len(key), KeyBytes)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.on.ID == keyID(key) {
		return nil
	}
	if k.on.ID != "" {
		return fault.New(fault.Conflict, "this server has another key already")
	}
	return k.write(keyOnDisk{Version: keyFileVersion, ID: keyID(key), Key: bytes.Clone(key)}, key)
}

// Key returns the key, for a server that joins.
func (k *KeyFile) Key() ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.key != nil:
		return bytes.Clone(k.key), nil
	case k.on.ID != "":
		return nil, fault.New(fault.Unavailable, "this server is locked since it was started: `tutti unlock` on it, with the unlock key %s, opens it", k.on.Unlock)
	}
	return nil, fault.New(fault.Unavailable, "this server has no key file: put that of another server to %s", k.path)
}

// write replaces file and memory; the lock is held.
func (k *KeyFile) write(on keyOnDisk, key []byte) error {
	data, err := json.Marshal(on)
	if err != nil {
		return fmt.Errorf("write the key file: %w", err)
	}
	if err := writeKeyFile(k.path, append(data, '\n')); err != nil {
		return err
	}
	k.on, k.key = on, bytes.Clone(key)
	return nil
}

// Wrap makes the file need the unlock key after the next start; an empty one makes it need none.
// It does nothing when that is so already. The key must be unlocked.
func (k *KeyFile) Wrap(unlockKey string) error {
	key, err := k.Key()
	if err != nil {
		return err
	}
	on := keyOnDisk{Version: keyFileVersion, ID: keyID(key), Key: key}
	if unlockKey != "" {
		by, err := parseUnlockKey(unlockKey)
		if err != nil {
			return err
		}
		on.Key, on.Unlock = nil, UnlockKeyID(unlockKey)
		if on.Wrapped, err = Seal(by, key, []byte(wrapping)); err != nil {
			return err
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.on.Unlock == on.Unlock {
		return nil
	}
	return k.write(on, key)
}

// Unlock opens a locked key; the file stays as it is.
func (k *KeyFile) Unlock(unlockKey string) error {
	by, err := parseUnlockKey(unlockKey)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.on.Wrapped == nil {
		return nil // nothing is locked
	}
	key, err := Open(by, k.on.Wrapped, []byte(wrapping))
	if err != nil || keyID(key) != k.on.ID {
		return fault.New(fault.Forbidden, "this unlock key is %s; this server needs %s", UnlockKeyID(unlockKey), k.on.Unlock)
	}
	k.key = key
	return nil
}

// Seal encrypts data with the key.
func (k *KeyFile) Seal(data, aad []byte) ([]byte, error) {
	key, err := k.Key()
	if err != nil {
		return nil, err
	}
	return Seal(key, data, aad)
}

// Open decrypts what Seal of any server of the cluster made.
func (k *KeyFile) Open(sealed, aad []byte) ([]byte, error) {
	key, err := k.Key()
	if err != nil {
		return nil, err
	}
	return Open(key, sealed, aad)
}

// NewUnlockKey returns a random unlock key in the form in which people keep it.
func NewUnlockKey() string {
	var b [KeyBytes]byte
	rand.Read(b[:])
	return unlockPrefix + unlockEncoding.EncodeToString(b[:])
}

func parseUnlockKey(s string) ([]byte, error) {
	rest, ok := strings.CutPrefix(strings.TrimSpace(s), unlockPrefix)
	key, err := unlockEncoding.DecodeString(rest)
	if !ok || err != nil || len(key) != KeyBytes {
		return nil, fault.New(fault.Invalid, "this is not an unlock key; one begins with %s", unlockPrefix)
	}
	return key, nil
}

// UnlockKeyID names an unlock key without revealing it.
func UnlockKeyID(unlockKey string) string {
	sum := sha256.Sum256([]byte(strings.TrimSpace(unlockKey)))
	return hex.EncodeToString(sum[:4])
}
