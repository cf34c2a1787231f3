// Package atomicfile replaces files as a whole: a reader, and a process that is started after a
// crash, finds the old content or the new one. It is meant for a file with one writer at a time,
// and does not promise that the new content is on the disk yet.
package atomicfile

import "os"

// Suffix ends the name of what a crash in the middle of Write may leave beside the file.
const Suffix = ".new"

// Write replaces the file, readable by its owner alone.
func Write(path string, data []byte) error {
	if err := os.WriteFile(path+Suffix, data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+Suffix, path)
}
