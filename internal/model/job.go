package model

import "time"

// Job reports whether instances of the kind are to run to their end.
func (k WorkloadKind) Job() bool { return k == JobWorkload || k == GlobalJobWorkload }

// Ends reports whether what the kind runs is to come to an end: jobs, and the runs of a schedule.
func (k WorkloadKind) Ends() bool { return k.Job() || k == CronWorkload }

// PerNode reports whether the kind runs once on every matching node, rather than Count times.
func (k WorkloadKind) PerNode() bool { return k == GlobalWorkload || k == GlobalJobWorkload }

// JobPolicy says how the instances of a job, and of each run of a cron workload, are run. Count is
// how many have to complete.
type JobPolicy struct {
	Parallelism int `json:"parallelism,omitempty"` // at once; 0: all
	// BackoffLimit is how many failures, restarts in place included, the job survives: failed
	// instances are replaced, after a pause that doubles, until there are more. At 0 a failed
	// instance stays failed, and only the restart policy counts.
	BackoffLimit int `json:"backoffLimit,omitempty"`
	// Deadline is how long the job may take in all; 0: as long as it likes.
	Deadline time.Duration `json:"deadline,omitempty"`
}

// CronPolicy says when a cron workload starts a run, which is a job of its own.
type CronPolicy struct {
	Schedule string      `json:"schedule,omitempty"` // five fields, or @hourly and the like; see package cron
	TimeZone string      `json:"timeZone,omitempty"` // IANA name; "" is UTC
	Overlap  CronOverlap `json:"overlap,omitempty"`  // "" is allow
	// StartWithin is how late a run may start that was due while nobody could start it; later it is
	// left out. 0: however late. Of several that were missed, the latest is started.
	StartWithin time.Duration `json:"startWithin,omitempty"`
	// KeepCompleted and KeepFailed are how many ended runs are kept for people to look at.
	KeepCompleted int `json:"keepCompleted,omitempty"`
	KeepFailed    int `json:"keepFailed,omitempty"`
}

// CronOverlap says what happens when a run is due and an earlier one has not ended.
type CronOverlap string

// The overlap policies: both run; the new one is left out; the old one is ended.
const (
	OverlapAllow   CronOverlap = "allow"
	OverlapForbid  CronOverlap = "forbid"
	OverlapReplace CronOverlap = "replace"
)

// CronStatus is observed; its writer is the leader.
type CronStatus struct {
	Last    time.Time `json:"last,omitzero"`   // the time of the schedule that was dealt with last
	Next    time.Time `json:"next,omitzero"`   // when the next run is due
	Active  int       `json:"active,omitzero"` // runs that have not ended
	Skipped string    `json:"skipped,omitempty"`
}
