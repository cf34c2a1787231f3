// Package node builds a whole node from its parts, in reading order: who it is (identity.go), the
// server half (server.go), the half that runs instances (worker.go), and what takes both away
// again (teardown.go). Nothing else knows all parts, and only the program imports it.
//
// A node's data directory outlives everything: identity, replicated log, images, volumes, runs.
// Its run directory holds what a reboot may wipe: sockets, namespaces, mounts, secrets.
package node
