package supervisor

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/model"
)

// The first message on a supervisor's socket says what is wanted.
type request struct {
	Op     string           `json:"op"` // wait, signal, kill, pause, resume, go on, update, stats, processes, exec, attach
	Signal int              `json:"signal,omitempty"`
	Exec   *driver.ExecSpec `json:"exec,omitempty"`
	Stdin  bool             `json:"stdin,omitempty"`
	Bounds *model.Bounds    `json:"bounds,omitempty"`
	// FromStart asks for what was printed before the attach, too.
	FromStart bool `json:"fromStart,omitempty"`
}

// input follows an exec or attach request, any number of times.
type input struct {
	Data   []byte       `json:"data,omitempty"`
	Closed bool         `json:"closed,omitempty"`
	Resize *driver.Size `json:"resize,omitempty"`
	Signal int          `json:"signal,omitempty"`
}

// output is what a supervisor answers: streams, then one with Done.
type output struct {
	Stdout []byte        `json:"stdout,omitempty"`
	Stderr []byte        `json:"stderr,omitempty"`
	Done   bool          `json:"done,omitempty"`
	Exit   int           `json:"exit,omitempty"`
	Error  string        `json:"error,omitempty"`
	Kind   string        `json:"kind,omitempty"`
	Stats  *driver.Stats `json:"stats,omitempty"`

	Processes []driver.Process `json:"processes,omitempty"`
}

const (
	taskFile   = "task.json"
	statusFile = "status.json"
	lockFile   = "lock"
	// bodySuffix, after the name of a supervisor's socket, is the directory that the body may use.
	bodySuffix = ".body"
)

// socketPath is short, whatever the ID: the kernel allows 107 bytes.
func socketPath(runDir, id string) string {
	sum := sha256.Sum256([]byte(id))
	return filepath.Join(runDir, hex.EncodeToString(sum[:10]))
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
