// Package dispatch is the server half of node sessions: it tells agents what their nodes should
// run and how the network should look, takes in what they report, and decides whether a node is
// alive.
//
// Any server holds sessions. What agents report goes into the store from there; heartbeats are
// handed to the leader, whose Liveness alone writes a node's status. In the other direction,
// Remote lets the use cases reach into a node: logs, exec, images.
package dispatch
