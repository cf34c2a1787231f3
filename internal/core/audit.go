package core

import (
	"context"
	"slices"
	"time"
)

// AuditEntry is one change, or one that was refused: who made it, from where and through which API,
// what it was about, and what became of it. Contents and keys are never in it.
type AuditEntry struct {
	Time      time.Time `json:"time"`
	User      string    `json:"user"`
	From      string    `json:"from,omitempty"`
	Via       string    `json:"via"`
	UseCase   string    `json:"useCase"`
	What      string    `json:"what,omitempty"`
	Namespace string    `json:"namespace,omitempty"`
	Result    string    `json:"result"` // done, or the kind of the error
	Error     string    `json:"error,omitempty"`
	Server    string    `json:"server,omitempty"` // that it was asked of
}

// Frequent reports whether there may be thousands of its like a second. Such entries are kept apart, so that
// they do not push out what people do.
func (e *AuditEntry) Frequent() bool { return e.UseCase == keysChange }

// AuditQuery chooses entries; what is empty chooses all.
type AuditQuery struct {
	Since time.Time `json:"since,omitzero"`
	User  string    `json:"user,omitempty"`
	Limit int       `json:"limit,omitempty"` // the latest; 0 is 1,000
}

// AuditLog keeps entries.
type AuditLog interface {
	// Record keeps an entry; it does not fail the change that it is about.
	Record(e AuditEntry)
	// Read returns the entries of all servers by time, and the names of those that did not answer.
	Read(ctx context.Context, q AuditQuery) (entries []AuditEntry, silent []string, err error)
}

// AuditReport is what the servers have in their audit logs.
type AuditReport struct {
	Entries []AuditEntry `json:"entries"`
	// Silent are servers that did not answer: their part is missing.
	Silent []string `json:"silent,omitempty"`
}

const auditLimit = 1000

// Audited returns what the audit logs of all servers hold.
func (c *Core) Audited(ctx context.Context, who Caller, q AuditQuery) (AuditReport, error) {
	if _, err := c.begin(who, "audit", ""); err != nil {
		return AuditReport{}, err
	}
	if q.Limit <= 0 {
		q.Limit = auditLimit
	}
	if c.Audit == nil {
		return AuditReport{Entries: []AuditEntry{}}, nil
	}
	entries, silent, err := c.Audit.Read(ctx, q)
	if entries == nil {
		entries = []AuditEntry{}
	}
	slices.Sort(silent)
	return AuditReport{Entries: entries[max(0, len(entries)-q.Limit):], Silent: silent}, err
}
