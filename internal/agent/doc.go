// Package agent is the node half of Tutti: it makes the instances that the cluster assigned to
// this node real, keeps them so, and says how they are.
//
// In flow assignments and the network state, from a session with any server; out flow statuses
// and heartbeats. Beneath it are the drivers (tasks), images, volumes, secrets, the overlay and
// the balancer, each behind an interface of its own here.
//
// One goroutine per instance owns that instance's life; it alone starts, probes, restarts and
// stops its tasks. What it needs to go on after the agent was killed is on disk: the assignment
// (assignments/<instance>.cbor), the latest status beside it, and, in the driver's care, which runs
// exist and how they ended. The agent therefore adopts what runs, also without any server to ask;
// and it remembers how new the assignments were that it got (revision), so that no server that
// lags behind, or has just been started, can take instances away that it does not know of yet.
package agent
