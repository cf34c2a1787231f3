package model

import (
	"strings"
	"time"
)

// Application is a named set of objects that are deployed, listed and removed together.
// Its Name is its identity; members carry it in Meta.Application.
type Application struct {
	Meta
	// Source says which language it came in, e.g. "compose".
	Source  string `json:"source,omitempty"`
	Version int    `json:"version"` // counts deployments, from 1
}

// WorkloadKind says how instances of a workload come and go.
type WorkloadKind string

// The workload kinds.
const (
	ServiceWorkload   WorkloadKind = "service"   // keep Count running
	GlobalWorkload    WorkloadKind = "global"    // one per matching node
	JobWorkload       WorkloadKind = "job"       // run until Count completions
	GlobalJobWorkload WorkloadKind = "globalJob" // once per matching node
	CronWorkload      WorkloadKind = "cron"
	StatefulWorkload  WorkloadKind = "stateful" // slots with names and volumes of their own, one writer in each
	// A single instance, which nothing takes the place of once it has ended or is lost: whoever made
	// the workload makes another one.
	SingleWorkload WorkloadKind = "single"
)

// StartOrder says how the slots of a stateful workload come and go.
type StartOrder string

// Ordered, which is also what "" means, starts a slot once all before it are ready and ends it once
// all after it have ended. Parallel waits for no other slot.
const (
	Ordered  StartOrder = "ordered"
	Parallel StartOrder = "parallel"
)

// Workload says what should run.
type Workload struct {
	Meta
	Type  WorkloadKind `json:"type"`
	Count int          `json:"count"`
	Start StartOrder   `json:"start,omitempty"` // of a stateful workload
	// Exclusive, of a single one, has its instance run under the node's lease: it is lost only once it
	// has surely ended.
	Exclusive bool `json:"exclusive,omitempty"`
	// Template is the desired template; RevisionID its identity (see Template.Hash).
	Template   Template `json:"template"`
	RevisionID string   `json:"revisionID"`
	// PreviousRevisionID is where a rollback leads.
	PreviousRevisionID string       `json:"previousRevisionID,omitempty"`
	Update             UpdatePolicy `json:"update"`
	Rollback           UpdatePolicy `json:"rollback"`
	Plan               RolloutPlan  `json:"plan,omitzero"`
	DependsOn          []Dependency `json:"dependsOn,omitempty"`
	// Rebalance lets instances move to nodes that came, or came back, where they would be placed now.
	Rebalance bool `json:"rebalance,omitempty"`
	// MinAvailable is how many instances stay ready when others are to give way to more important
	// work, or to end before they are replaced as their node is drained; 0 lets all of them.
	MinAvailable int        `json:"minAvailable,omitempty"`
	Autoscale    *Autoscale `json:"autoscale,omitempty"` // of a service; chooses Count
	Job          JobPolicy  `json:"job,omitzero"`        // of job, globalJob and cron
	Cron         CronPolicy `json:"cron,omitzero"`       // of cron
	// EndFirst chooses which instances of a service go when it is scaled down; "" is those in the
	// highest slots.
	EndFirst EndOrder `json:"endFirst,omitempty"`
	// Maintenance are the times in which instances move that the cluster, or a drain, moves; without
	// any they do at any time.
	Maintenance []Window `json:"maintenance,omitempty"`
	// Unreachable says what becomes of instances whose node is down.
	Unreachable UnreachablePolicy `json:"unreachable,omitzero"`
	// OwnerID is the cron workload that a job is a run of, or the followed workload that an instance of
	// another platform is of.
	OwnerID string `json:"ownerID,omitempty"`
	// Belongs is what it is to another platform, which made it; Followed is how that keeps it.
	Belongs  *Belonging `json:"belongs,omitempty"`
	Followed *Followed  `json:"followed,omitempty"`
	// Suspended scales to zero and remembers the count.
	Suspended bool `json:"suspended,omitempty"`
	// LaidOut gives a suspended workload that keeps what ended (Template.KeepEnded) its instances before it was ever started:
	// they have nodes, and files there, and are held.
	LaidOut bool `json:"laidOut,omitempty"`
	// Paused freezes the workload: what runs is kept up, and no instance gets another revision.
	Paused bool `json:"paused,omitempty"`
	// Proceed grows when people want an update that failed to go on; Promoted is how far they let
	// one go that waits for them.
	Proceed  uint64    `json:"proceed,omitempty"`
	Promoted Promotion `json:"promoted,omitzero"`
	// Starts counts how often people started it. An instance that is behind runs once more: in
	// place if it is kept (Template.KeepEnded), in its slot's next instance otherwise.
	Starts uint64 `json:"starts,omitempty"`
	// StopWithin, while suspended, takes the place of the template's StopGrace.
	StopWithin *time.Duration `json:"stopWithin,omitempty"`
	// RemoveWhenEnded removes the workload once its instances have ended for good.
	RemoveWhenEnded bool `json:"removeWhenEnded,omitempty"`
	// PullLogin is who asks registries for its images, encrypted with the cluster's secret key.
	PullLogin []byte `json:"pullLogin,omitempty"`
	// Generation grows with every change that people make; Status.Generation follows it.
	Generation uint64         `json:"generation"`
	Status     WorkloadStatus `json:"status"`
}

// EndOrder says which instances go first.
type EndOrder string

// The orders.
const (
	YoungestFirst EndOrder = "youngest"
	OldestFirst   EndOrder = "oldest"
)

// UnreachablePolicy says for how long an instance is waited for whose node is down; it is out of
// the traffic meanwhile, and goes on as before when the node is back in time. Without a policy it is
// given up, and replaced, at once.
type UnreachablePolicy struct {
	ReplaceAfter time.Duration `json:"replaceAfter,omitempty"`
	Never        bool          `json:"never,omitempty"` // it is waited for until its node is removed
}

// Window is a span of time that begins at each time of a schedule.
type Window struct {
	At       string        `json:"at"` // five fields, as of a cron workload
	TimeZone string        `json:"timeZone,omitempty"`
	For      time.Duration `json:"for"`
}

// WorkloadStatus is observed; its writer is the leader.
type WorkloadStatus struct {
	Generation uint64        `json:"generation"`
	Rollout    RolloutStatus `json:"rollout,omitzero"`
	Cron       CronStatus    `json:"cron,omitzero"`
	// Released is the revision whose dependencies were all met once: its instances start
	// without waiting again.
	Released string `json:"released,omitempty"`
	// Waiting says, while not released, for what.
	Waiting string `json:"waiting,omitempty"`
}

// RolloutState is the state of the latest update.
type RolloutState string

// States of an update. Paused, completed, rolledBack and failed are final until the next change.
const (
	RolloutNone       RolloutState = ""
	RolloutUpdating   RolloutState = "updating"
	RolloutPaused     RolloutState = "paused"
	RolloutCompleted  RolloutState = "completed"
	RolloutRolling    RolloutState = "rollingBack"
	RolloutRolledBack RolloutState = "rolledBack"
	RolloutFailed     RolloutState = "failed"
)

// RolloutStatus tells how an update goes.
type RolloutStatus struct {
	State    RolloutState `json:"state,omitempty"`
	Revision string       `json:"revision,omitempty"` // the revision being rolled out
	From     string       `json:"from,omitempty"`     // the revision it replaces
	Message  string       `json:"message,omitempty"`
	Started  time.Time    `json:"started,omitzero"`
	Finished time.Time    `json:"finished,omitzero"`
	// LastStep is when the latest batch was begun, for the delay between batches.
	LastStep time.Time `json:"lastStep,omitzero"`
	// Failures counts instances of the revision that failed within the monitor window.
	Failures int `json:"failures,omitempty"`
	// Step counts the steps of the plan that are behind, StepSince is since when the next one is
	// reached and held, Domain the upgrade domain that is being walked.
	Step      int       `json:"step,omitempty"`
	StepSince time.Time `json:"stepSince,omitzero"`
	Domain    string    `json:"domain,omitempty"`
	Proceeded uint64    `json:"proceeded,omitempty"` // follows the workload's Proceed
}

// UpdatePolicy says how one revision replaces another.
type UpdatePolicy struct {
	Parallelism     int           `json:"parallelism"` // 0: all at once
	Delay           time.Duration `json:"delay,omitempty"`
	Monitor         time.Duration `json:"monitor,omitempty"`
	MaxFailureRatio float64       `json:"maxFailureRatio,omitempty"`
	Order           UpdateOrder   `json:"order,omitempty"`
	OnFailure       FailureAction `json:"onFailure,omitempty"`
	// MaxSurge and MaxUnavailable, where one of them is not 0, take the place of Parallelism and
	// Order: so many new instances beside old ones, and so many slots that do not serve, at a time.
	MaxSurge       int `json:"maxSurge,omitempty"`
	MaxUnavailable int `json:"maxUnavailable,omitempty"`
}

// UpdateOrder says whether the new instance or the end of the old one comes first.
type UpdateOrder string

// The update orders.
const (
	StopFirst  UpdateOrder = "stopFirst"
	StartFirst UpdateOrder = "startFirst"
)

// FailureAction says what a failing update does.
type FailureAction string

// The failure actions.
const (
	PauseOnFailure    FailureAction = "pause"
	ContinueOnFailure FailureAction = "continue"
	RollBackOnFailure FailureAction = "rollBack"
	WaitOnFailure     FailureAction = "wait" // until those that fail are ready; what runs stays meanwhile
)

// Dependency holds back the first start of a revision.
type Dependency struct {
	// Workload is a name within the same application, a full name ("shop/db"), or, with a slash in
	// front ("/db"), the name of a workload outside any application.
	Workload  string              `json:"workload"`
	Condition DependencyCondition `json:"condition"`
	Optional  bool                `json:"optional,omitempty"` // absent is as good as met
	// Restart restarts the dependent when the dependency was restarted by an update.
	Restart bool `json:"restart,omitempty"`
}

// DependencyCondition is what a dependency must have reached.
type DependencyCondition string

// The conditions: one instance running, one healthy, all healthy, all completed with exit code 0.
const (
	DependencyReady     DependencyCondition = "ready"
	DependencyStarted   DependencyCondition = "started"
	DependencyHealthy   DependencyCondition = "healthy"
	DependencyCompleted DependencyCondition = "completed"
)

// Names returns the application and the name of what a workload of an application depends on.
func (d *Dependency) Names(application string) (app, name string) {
	if app, name, full := strings.Cut(d.Workload, "/"); full {
		return app, name
	}
	return application, d.Workload
}

// Revision keeps a template that a workload had, so that it can return to it.
// Its ID is workload ID and template hash, joined by ".".
type Revision struct {
	Meta
	WorkloadID string   `json:"workloadID"`
	Hash       string   `json:"hash"`
	Number     int      `json:"number"`
	Template   Template `json:"template"`
}

func (a *Application) Kind() Kind          { return KindApplication }
func (a *Application) GetMeta() *Meta      { return &a.Meta }
func (a *Application) CloneObject() Object { return a.Clone() }
func (a *Application) AdoptStatus(Object)  {}
func (a *Application) AdoptDesired(Object) {}

func (w *Workload) Kind() Kind              { return KindWorkload }
func (w *Workload) GetMeta() *Meta          { return &w.Meta }
func (w *Workload) CloneObject() Object     { return w.Clone() }
func (w *Workload) AdoptStatus(from Object) { w.Status = from.(*Workload).Status }
func (w *Workload) AdoptDesired(from Object) {
	status := w.Status
	*w = *from.(*Workload).Clone()
	w.Status = status
}

func (r *Revision) Kind() Kind          { return KindRevision }
func (r *Revision) GetMeta() *Meta      { return &r.Meta }
func (r *Revision) CloneObject() Object { return r.Clone() }
func (r *Revision) AdoptStatus(Object)  {}
func (r *Revision) AdoptDesired(Object) {}
