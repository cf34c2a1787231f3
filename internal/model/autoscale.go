package model

import (
	"slices"
	"time"
)

// Autoscale lets the cluster choose the count of a service between two bounds.
type Autoscale struct {
	Min int `json:"min"`
	Max int `json:"max"`
	// Metrics each ask for a count; the largest is taken. Without any the bounds alone count.
	Metrics []ScaleMetric `json:"metrics,omitempty"`
	// DownAfter is for how long fewer instances must have been enough before some are taken away; 0 is
	// five minutes.
	DownAfter time.Duration `json:"downAfter,omitempty"`
	// Hours change the bounds at times. Where several overlap, the largest of each bound counts.
	Hours []ScaleHours `json:"hours,omitempty"`
}

// ScaleMetricKind says what is measured.
type ScaleMetricKind string

// The metrics: what instances use of the processors and the memory that they reserve (of their limit
// where they reserve none), how many requests a second come to the ingress for them, and the value of a
// query to a Prometheus server.
const (
	ScaleCPU        ScaleMetricKind = "cpu"
	ScaleMemory     ScaleMetricKind = "memory"
	ScaleRequests   ScaleMetricKind = "requests"
	ScalePrometheus ScaleMetricKind = "prometheus"
)

// ScaleMetric asks for so many instances that each has no more than Target: percent of cpu or memory,
// requests a second, or an equal share of what the query yields.
type ScaleMetric struct {
	Kind   ScaleMetricKind `json:"kind"`
	Target float64         `json:"target"`
	Server string          `json:"server,omitempty"` // of prometheus: http://HOST:PORT
	Query  string          `json:"query,omitempty"`
}

// ScaleHours are bounds that hold from each time of a schedule on, for a while.
type ScaleHours struct {
	At       string        `json:"at"` // five fields, as of a cron workload
	TimeZone string        `json:"timeZone,omitempty"`
	For      time.Duration `json:"for"`
	Min      int           `json:"min"`
	Max      int           `json:"max"`
}

// Clone returns a deep copy; nil has none.
func (a *Autoscale) Clone() *Autoscale {
	if a == nil {
		return nil
	}
	c := *a
	c.Metrics, c.Hours = slices.Clone(a.Metrics), slices.Clone(a.Hours)
	return &c
}
