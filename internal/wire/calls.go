package wire

import (
	"github.com/tutti-run/tutti/internal/driver"
)

// Paths that agents serve to servers.
const (
	PathLogs         = "/agent/logs"          // stream: LogsRequest, then LogsReply until End
	PathExec         = "/agent/exec"          // stream: ExecStart, then ExecInput and ExecOutput
	PathAttach       = "/agent/attach"        // stream: ExecStart without Spec, then ExecInput and ExecOutput
	PathSignal       = "/agent/signal"        // call: SignalRequest → Empty
	PathStats        = "/agent/stats"         // call: TaskRef → driver.Stats
	PathProcesses    = "/agent/processes"     // call: TaskRef → []driver.Process
	PathPause        = "/agent/pause"         // call: PauseRequest → Empty
	PathEnsureImage  = "/agent/image/ensure"  // call: ImageRef → ImageRef
	PathRemoveImage  = "/agent/image/remove"  // call: ImageRef → Empty
	PathRemoveVolume = "/agent/volume/remove" // call: VolumeRef → Empty
	PathBlob         = "/agent/blob/"         // GET <digest>
)

// Empty is an answer without content.
type Empty struct{}

// TaskRef names a task of an instance; an empty Task is the first one.
type TaskRef struct {
	Instance string `json:"instance"`
	Task     string `json:"task,omitempty"`
}

// ImageRef names an image and pins its content.
type ImageRef struct {
	Name   string `json:"name"`
	Digest string `json:"digest,omitempty"`
}

// VolumeRef names a volume.
type VolumeRef struct {
	ID string `json:"id"`
}

// LogsRequest opens a log.
type LogsRequest struct {
	TaskRef
	Options driver.LogOptions `json:"options"`
}

// LogsReply carries entries, or the end of the log.
type LogsReply struct {
	Entries []driver.LogEntry `json:"entries,omitempty"`
	End     *End              `json:"end,omitempty"`
}

// End closes a stream: with nothing, or with an error and its kind.
type End struct {
	Error    string `json:"error,omitempty"`
	Kind     string `json:"kind,omitempty"`
	ExitCode int    `json:"exitCode,omitempty"`
}

// ExecStart opens a process in a task.
type ExecStart struct {
	TaskRef
	Spec   driver.ExecSpec `json:"spec"`
	Stdin  bool            `json:"stdin"`
	Stdout bool            `json:"stdout"`
	Stderr bool            `json:"stderr"`
	// FromStart is for attaching; see driver.Streams.
	FromStart bool `json:"fromStart,omitempty"`
}

// SignalRequest sends a signal, by number, to a task's first process.
type SignalRequest struct {
	TaskRef
	Signal int `json:"signal"`
}

// PauseRequest stops a task's processes where they are, or lets them go on; an empty Task is all of
// the instance's.
type PauseRequest struct {
	TaskRef
	Pause bool `json:"pause"`
}

// ExecInput travels to the process; one field is set.
type ExecInput struct {
	Data   []byte       `json:"data,omitempty"`
	Closed bool         `json:"closed,omitempty"` // end of input
	Resize *driver.Size `json:"resize,omitempty"`
	Signal int          `json:"signal,omitempty"`
}

// ExecOutput travels from the process; one field is set.
type ExecOutput struct {
	Stdout []byte `json:"stdout,omitempty"`
	Stderr []byte `json:"stderr,omitempty"`
	End    *End   `json:"end,omitempty"`
}
