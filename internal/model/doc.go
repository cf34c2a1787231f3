// Package model holds the nouns of Tutti and nothing else: nodes, workloads, instances,
// services, networks and the rest, as plain values without behaviour beyond validation,
// defaults and cloning. It speaks no foreign vocabulary; adapters translate.
//
// Every object that the cluster replicates implements Object: a Kind that names its table
// and a Meta with its identity. Objects read from a store snapshot are shared between
// goroutines and must never be changed: Clone first.
//
// Desired and observed state live in separate fields with one writer each. Everything
// outside a Status field is desired and written by use cases and reconcilers; a Status is
// observed and written by exactly one owner (the agent for an Instance, the leader for a
// Node and a Workload). The store keeps the two apart when it applies a change, so that
// writers of one never overwrite the other.
//
// Units are in the names: bytes, milliseconds, nano-CPUs (1e9 is one core). Durations are
// time.Duration and travel as nanoseconds.
package model
