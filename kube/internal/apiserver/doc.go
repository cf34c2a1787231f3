// Package apiserver runs one Kubernetes API server and, where it is their turn, the controllers of
// Kubernetes, in this process. Both are the Kubernetes project's, unchanged: this package makes their
// keys and command lines, and ends all of it together.
//
// All servers of a cluster have the same authorities and the same key for tokens of service accounts:
// the first one makes them, and keeps them in the key space, sealed with a key that only servers have.
// They are Kubernetes' own, and not signed by the cluster's authority: Kubernetes lets whoever may
// approve certificates choose their subject, and a node of Tutti is known by that.
package apiserver
