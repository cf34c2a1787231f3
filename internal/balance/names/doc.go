// Package names answers DNS for instances, on every node: services, instances and their aliases,
// each as the asker's own networks see them, and everything else by asking the host's resolvers.
//
// The responder is a process of its own, this same program re-executed, so that names are answered
// also while the agent is away. It reads the network state from a file that the agent
// writes, and tells the agent when it has.
package names
