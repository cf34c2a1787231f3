// Package secret seals secrets for the replicated state, and lays them out for tasks as files that
// live in memory only.
package secret

import (
	"archive/tar"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/fault"
)

// KeyBytes is the length of a key.
const KeyBytes = 32

const version = 1 // AES-256-GCM with a random nonce

// NewKey returns a random key.
func NewKey() []byte {
	key := make([]byte, KeyBytes)
	rand.Read(key)
	return key
}

func sealer(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("use the secret key: %w", err)
	}
	return cipher.NewGCM(block)
}

// Seal encrypts data and binds it to aad, which Open must be given again.
func Seal(key, data, aad []byte) ([]byte, error) {
	aead, err := sealer(key)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, aead.NonceSize())
	rand.Read(nonce)
	return aead.Seal(append([]byte{version}, nonce...), nonce, data, aad), nil
}

// Open decrypts what Seal made.
func Open(key, sealed, aad []byte) ([]byte, error) {
	aead, err := sealer(key)
	if err != nil {
		return nil, err
	}
	if len(sealed) < 1+aead.NonceSize() || sealed[0] != version {
		return nil, fault.New(fault.Unsupported, "the secret is sealed in a form that this version does not read")
	}
	nonce, body := sealed[1:1+aead.NonceSize()], sealed[1+aead.NonceSize():]
	data, err := aead.Open(nil, nonce, body, aad)
	if err != nil {
		return nil, fault.New(fault.Internal, "the secret does not open with this cluster's key")
	}
	return data, nil
}

// Digest identifies content without revealing it to anybody who lacks the key.
func Digest(key, data []byte) string {
	h := hmac.New(sha256.New, key)
	h.Write(data)
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// File is a secret or config as a task sees it.
type File struct {
	Name     string
	Data     []byte
	UID, GID int
	Mode     os.FileMode
}

// Files lays files out below a memory-backed directory, one directory per instance.
type Files struct{ root string }

// NewFiles mounts a tmpfs at root, unless one is there already.
func NewFiles(root string) (*Files, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("make the secrets' directory: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return nil, fmt.Errorf("look at the secrets' directory: %w", err)
	}
	if st.Type != unix.TMPFS_MAGIC {
		if err := unix.Mount("tutti-secrets", root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
			return nil, fmt.Errorf("mount memory for secrets at %s: %w", root, err)
		}
	}
	return &Files{root: root}, nil
}

// Put writes an instance's files, in place of those it had, and returns their directory.
func (f *Files) Put(instance string, files []File) (string, error) {
	dir := filepath.Join(f.root, instance)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("write secrets: %w", err)
	}
	for _, file := range files {
		path := filepath.Join(dir, file.Name)
		// In place: a container that has the file mounted keeps seeing this one.
		out, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
		if err != nil {
			return "", fmt.Errorf("write secret %s: %w", file.Name, err)
		}
		_, err = out.Write(file.Data)
		err = errors.Join(err, out.Chown(file.UID, file.GID), out.Chmod(file.Mode), out.Close())
		if err != nil {
			return "", fmt.Errorf("write secret %s: %w", file.Name, err)
		}
	}
	return dir, nil
}

// PutFolders lays out the folders at the top of a tar archive, each below the directory that is
// returned, in place of what an earlier archive of that name had. Whoever reads a folder finds all of it
// as it was or all of it as it is: a link leads to the present content, and is replaced at once.
func (f *Files) PutFolders(instance, name string, archive []byte) (string, error) {
	dir := filepath.Join(f.root, instance, name+".d")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("write folders: %w", err)
	}
	sum := sha256.Sum256(archive)
	version := "..v" + hex.EncodeToString(sum[:8])
	tr := tar.NewReader(bytes.NewReader(archive))
	entries := map[string][]string{} // of each folder, those at its top
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", fmt.Errorf("read the archive of folders %s: %w", name, err)
		}
		folder, rest, _ := strings.Cut(strings.Trim(filepath.Clean("/"+h.Name), "/"), "/")
		if folder == "" {
			continue
		}
		at := filepath.Join(dir, folder, version)
		if err := os.MkdirAll(at, 0o755); err != nil {
			return "", err
		}
		if entries[folder] == nil {
			entries[folder] = []string{}
		}
		if rest == "" || h.Typeflag == tar.TypeDir {
			continue
		}
		top, _, _ := strings.Cut(rest, "/")
		if !slices.Contains(entries[folder], top) {
			entries[folder] = append(entries[folder], top)
		}
		path := filepath.Join(at, rest)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return "", err
		}
		out, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
		if err != nil {
			return "", fmt.Errorf("write file %s: %w", h.Name, err)
		}
		_, err = io.Copy(out, tr)
		if err = errors.Join(err, out.Chown(h.Uid, h.Gid), out.Chmod(os.FileMode(h.Mode).Perm()), out.Close()); err != nil {
			return "", fmt.Errorf("write file %s: %w", h.Name, err)
		}
	}
	for folder, tops := range entries {
		if err := turn(filepath.Join(dir, folder), version, tops); err != nil {
			return "", fmt.Errorf("write folder %s: %w", folder, err)
		}
	}
	return dir, nil
}

// present is the link of a folder to its present content; what is seen at its top leads through it.
const present = "..data"

// turn makes a version of a folder the present one, and removes the others.
func turn(dir, version string, tops []string) error {
	next := filepath.Join(dir, "..next")
	if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := errors.Join(os.Symlink(version, next), os.Rename(next, filepath.Join(dir, present))); err != nil {
		return err
	}
	for _, top := range tops {
		if _, err := os.Lstat(filepath.Join(dir, top)); err == nil {
			continue
		}
		if err := os.Symlink(filepath.Join(present, top), filepath.Join(dir, top)); err != nil {
			return err
		}
	}
	have, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range have {
		if n := e.Name(); n != present && n != version && !slices.Contains(tops, n) {
			if err := os.RemoveAll(filepath.Join(dir, n)); err != nil {
				return err
			}
		}
	}
	return nil
}

// Dir returns the directory of files put earlier; fault.NotFound when there is none.
func (f *Files) Dir(instance string) (string, error) {
	dir := filepath.Join(f.root, instance)
	if _, err := os.Stat(dir); err != nil {
		return "", fault.New(fault.NotFound, "no secrets are kept for instance %s", instance)
	}
	return dir, nil
}

// Remove deletes an instance's files.
func (f *Files) Remove(instance string) error { return os.RemoveAll(filepath.Join(f.root, instance)) }

// Close unmounts the memory; everything in it is gone.
func (f *Files) Close() error { return unix.Unmount(f.root, unix.MNT_DETACH) }
