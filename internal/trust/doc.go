// Package trust is the servers' half of who believes whom: it keeps the cluster's own keys sealed in
// the replicated state, admits newcomers, renews certificates, replaces the authority and the join
// tokens, and says which certificates are of members still.
//
// The sealed keys are opened by the key file (package secret), which is in no state; without it, or
// while it is locked, all that needs them is refused by name, and replication goes on. The other
// half, a node's own certificate, is package node's; what connections do with certificates, package
// wire's.
package trust
