// Package server builds and runs the half of a node that holds the cluster's state: replication,
// store, sessions with agents, the leader's work, and the use cases over them. It owns what servers
// ask of each other: proposals, signs of life and membership, and the admission of newcomers.
//
// Package node runs it beside the node half; test/sim runs many of them over simulated networks and
// disks.
package server
