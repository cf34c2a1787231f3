package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/fxamacker/cbor/v2"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// saveAssignment keeps an assignment on disk without what must not be there: secrets.
func saveAssignment(dir string, as *wire.Assignment) error {
	kept := *as
	kept.Secrets = nil
	data, err := cbor.Marshal(&kept)
	if err != nil {
		return fmt.Errorf("encode assignment %s: %w", as.Instance.ID, err)
	}
	path := filepath.Join(dir, as.Instance.ID+".cbor")
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// saveStatus keeps the latest status, so that an agent that is restarted neither forgets that
// an instance was healthy nor counts its restarts anew.
func saveStatus(dir, instance string, st *model.InstanceStatus) error {
	data, err := cbor.Marshal(st)
	if err != nil {
		return fmt.Errorf("encode status of %s: %w", instance, err)
	}
	path := filepath.Join(dir, instance+".status")
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func loadStatus(dir, instance string) (st model.InstanceStatus, ok bool) {
	data, err := os.ReadFile(filepath.Join(dir, instance+".status"))
	if err != nil {
		return st, false
	}
	return st, cbor.Unmarshal(data, &st) == nil
}

// dropAssignment forgets an instance; its assignment goes last, so that a crash in between
// leaves it known.
func dropAssignment(dir, instance string) error {
	for _, name := range []string{instance + ".status", instance + ".cbor"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func loadAssignments(dir string) ([]*wire.Assignment, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read kept assignments: %w", err)
	}
	var out []*wire.Assignment
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".cbor") {
			continue // a write that a crash cut short
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("read kept assignments: %w", err)
		}
		as := new(wire.Assignment)
		if err := cbor.Unmarshal(data, as); err != nil || as.Instance == nil || as.Template == nil {
			return nil, fmt.Errorf("kept assignment %s is damaged: %w", e.Name(), err)
		}
		out = append(out, as)
	}
	return out, nil
}

// runID names one run of a task: instance, task and run number joined by ".".
func runID(instance, task string, run int) string {
	return instance + "." + task + "." + strconv.Itoa(run)
}

// splitRunID is the inverse of runID; an ID of another form gives run 0.
func splitRunID(id string) (instance, task string, run int) {
	instance, rest, _ := strings.Cut(id, ".")
	i := strings.LastIndexByte(rest, '.')
	if i < 0 {
		return instance, rest, 0
	}
	run, _ = strconv.Atoi(rest[i+1:]) // 0 says that it is none of ours
	return instance, rest[:i], run
}
