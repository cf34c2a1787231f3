package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/tutti-run/tutti/internal/atomicfile"
	"github.com/tutti-run/tutti/internal/fault"
)

// dataFormat is that of a data directory as a whole. It changes when an older version could not
// live with what is there; what is in it (log, snapshots, key file) has formats of its own.
const dataFormat = 1

// formatFile says of what format a data directory is.
type formatFile struct {
	Format  int    `json:"format"`
	Version string `json:"version"` // of the program that made it
}

// checkFormat refuses a data directory that this version cannot read, and marks one that has no
// mark yet: a new one, or one of before there were marks, which is of format 1.
func (c *Config) checkFormat() error {
	path := filepath.Join(c.DataDir, "format")
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		data, err = json.Marshal(formatFile{Format: dataFormat, Version: c.Version})
		if err == nil {
			err = atomicfile.Write(path, append(data, '\n'))
		}
		if err != nil {
			return fmt.Errorf("mark the data directory's format: %w", err)
		}
		return nil
	case err != nil:
		return fmt.Errorf("read the data directory's format: %w", err)
	}
	var f formatFile
	if err := json.Unmarshal(data, &f); err != nil {
		return fault.New(fault.Invalid, "%s cannot be read: %w; it says of what format the data in %s is", path, err, c.DataDir)
	}
	if f.Format != dataFormat {
		return fault.New(fault.Unsupported, "the data in %s is of format %d, made by version %q; this version reads format %d: run the version that made it, or a newer one", c.DataDir, f.Format, f.Version, dataFormat)
	}
	return nil
}
