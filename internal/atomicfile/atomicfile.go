// Package atomicfile replaces files as a whole: a reader, and a process that is started after a
// crash, finds the old content or the new one. It is meant for a file with one writer at a time.
package atomicfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Suffix ends the name of what a crash in the middle of Write may leave beside the file.
const Suffix = ".new"

// Write replaces the file, readable by its owner alone. It does not promise that the new content is
// on the disk yet.
func Write(path string, data []byte) error {
	if err := os.WriteFile(path+Suffix, data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+Suffix, path)
}

// WriteSynced is Write for what must not be lost: when it returns, the new content is on the disk.
func WriteSynced(path string, data []byte) error {
	f, err := os.OpenFile(path+Suffix, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+Suffix, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return errors.Join(dir.Sync(), dir.Close())
}
