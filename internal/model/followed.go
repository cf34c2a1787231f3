package model

import (
	"github.com/tutti-run/tutti/internal/fault"
)

// Belonging names the object of another platform that a workload is: that platform decides what it is, and
// its tool changes it.
type Belonging struct {
	Platform string `json:"platform"` // "Kubernetes"
	Tool     string `json:"tool"`     // "kubectl"
	Kind     string `json:"kind"`     // "Deployment"
	Name     string `json:"name"`
}

// Refusal is the answer to who wants to change what belongs to another platform; nil for all else.
func (w *Workload) Refusal() error {
	b := w.Belongs
	if b == nil {
		return nil
	}
	if w.Scalable() {
		return fault.New(fault.Unsupported, "%s is the %s %s of %s: here it can be scaled; for all else use %s", w.FullName(), b.Kind, b.Name, b.Platform, b.Tool)
	}
	return fault.New(fault.Unsupported, "%s is the %s %s of %s: use %s", w.FullName(), b.Kind, b.Name, b.Platform, b.Tool)
}

// Scalable reports whether the number of instances is people's to choose.
func (w *Workload) Scalable() bool {
	if w.Followed != nil {
		return !w.Followed.Fixed
	}
	return w.Belongs == nil
}

// Followed is how a workload is that the platform which it belongs to runs by itself, as far as that tells
// of it. Nothing is placed for such a workload: its instances are those of the workloads that it owns (see
// OwnerID), which make room for it in lists.
//
// The workload's Count is how many people want; it differs from Followed.Count from when somebody here asks
// for another number until the platform has been told.
type Followed struct {
	Count     int    `json:"count"`
	Fixed     bool   `json:"fixed,omitempty"`     // the platform has no number that could be changed
	Wanted    int    `json:"wanted,omitempty"`    // of what runs on every matching node: on how many it should
	Updated   int    `json:"updated,omitempty"`   // instances of the present template
	Completed int    `json:"completed,omitempty"` // of jobs
	Failed    int    `json:"failed,omitempty"`    // of jobs
	Failing   bool   `json:"failing,omitempty"`   // it does not become what it should be by itself
	Message   string `json:"message,omitempty"`
}
