// Package pods runs the pods of a Kubernetes API on Tutti.
//
// A Pod stays what its client wrote. Here it becomes a workload of a single instance, whose ID is the
// Pod's UID: the core schedules and runs it, and what it tells of it becomes the Pod's binding, status and
// events. Nodes of Tutti are shown as Nodes, Services are led by the core's balancing, and what the API
// server asks of a kubelet (logs, exec, attach, port-forward) is answered through the native API, which
// reaches any node.
//
// In flow Pods, ConfigMaps, Secrets, Services and EndpointSlices, watched at the API server, and nodes,
// networks and instances, watched at Tutti. Everything is decided anew from these two; nothing is kept.
package pods
