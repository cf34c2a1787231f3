package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/tutti-run/tutti/internal/atomicfile"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// saveAssignment keeps an assignment on disk without what must not be there: secrets.
func saveAssignment(dir string, as *wire.Assignment) error {
	kept := *as
	kept.Secrets = nil
	return save(filepath.Join(dir, as.Instance.ID+".cbor"), &kept)
}

// save replaces a file by the encoded form of v.
func save(path string, v any) error {
	data, err := wire.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	return atomicfile.Write(path, data)
}

// keptStatus is what is kept of an instance's status.
type keptStatus struct {
	Status   model.InstanceStatus `json:"status"`
	Attempts int                  `json:"attempts"`         // restarts that its policy counts
	Starts   uint64               `json:"starts,omitempty"` // that it has followed
}

// saveStatus keeps the latest status, so that an agent that is restarted neither forgets that
// an instance was healthy nor counts its restarts anew.
func saveStatus(dir, instance string, st *keptStatus) error {
	return save(filepath.Join(dir, instance+".status"), st)
}

func loadStatus(dir, instance string) (st keptStatus, ok bool) {
	data, err := os.ReadFile(filepath.Join(dir, instance+".status"))
	if err != nil {
		return st, false
	}
	return st, wire.Unmarshal(data, &st) == nil
}

// dropAssignment forgets an instance; its assignment goes first, so that a crash in between does
// not leave one that seems never to have run.
func dropAssignment(dir, instance string) error {
	for _, name := range []string{instance + ".cbor", instance + ".status"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// loadAssignments returns what was kept. What a crash cut short is removed: the cluster tells it
// again. The error is about the directory, or, joined, about what was damaged.
func loadAssignments(dir string) (kept []*wire.Assignment, damaged, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("read kept assignments: %w", err)
	}
	known := map[string]bool{}
	for _, e := range entries {
		id, isAssignment := strings.CutSuffix(e.Name(), ".cbor")
		if !isAssignment {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, nil, fmt.Errorf("read kept assignments: %w", err)
		}
		as := new(wire.Assignment)
		err = wire.Unmarshal(data, as)
		if err == nil && (as.Instance == nil || as.Template == nil || as.Instance.ID != id) {
			err = errors.New("something is missing in it")
		}
		if err != nil {
			damaged = errors.Join(damaged, fmt.Errorf("kept assignment %s is damaged: %w", e.Name(), err), os.Remove(filepath.Join(dir, e.Name())))
			continue
		}
		known[id] = true
		kept = append(kept, as)
	}
	for _, e := range entries {
		id, isStatus := strings.CutSuffix(e.Name(), ".status")
		if isStatus && !known[id] || strings.HasSuffix(e.Name(), atomicfile.Suffix) {
			damaged = errors.Join(damaged, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return kept, damaged, nil
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
