// Package autoscale decides how many instances a service should have, by what they use (next.go), and
// how many hosts a cluster, by what waits for a place (hosts.go). It is pure: package control measures,
// asks, and changes the counts; package provision asks for hosts and gives them back.
//
// The rule for instances is that of the Kubernetes HorizontalPodAutoscaler: the count at which each instance would
// have its target, left alone within a tenth of it. More is added at once, and less is taken away when
// it was enough throughout a window, so that a short lull costs nothing.
package autoscale
