package model

import "time"

// RolloutPlan says in which order a new revision reaches the instances, beyond what UpdatePolicy
// says of each batch. It does not hold for rolling back, which is done without ceremony.
type RolloutPlan struct {
	// Canary are the steps on the way to all instances; each is held before the next.
	Canary []CanaryStep `json:"canary,omitempty"`
	// BlueGreen starts the whole new revision beside the old one, without traffic, and gives it
	// all of it at once when all are ready.
	BlueGreen bool `json:"blueGreen,omitempty"`
	// Manual waits, when blue and green are there, until people promote.
	Manual bool `json:"manual,omitempty"`
	// Domains is a node key whose values are upgrade domains: instances on the nodes of one value
	// are replaced, and ready, before those of the next, in the order of the values.
	Domains string `json:"domains,omitempty"`
}

// CanaryStep lets a share of the instances have the new revision.
type CanaryStep struct {
	Percent int           `json:"percent"`          // 1 to 99, rising
	Hold    time.Duration `json:"hold,omitempty"`   // once they are ready, before the next step
	Manual  bool          `json:"manual,omitempty"` // the next step waits until people promote
}

// Promotion is how far people let a revision go: past so many steps, of canary, or of blue and green
// the only one.
type Promotion struct {
	RevisionID string `json:"revisionID,omitempty"`
	Steps      int    `json:"steps,omitempty"`
}
