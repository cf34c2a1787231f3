// Package rollout decides the next safe steps of one workload: which instances to create, which
// to take out of traffic, stop or forget, and how an update stands. It is pure: equal input gives
// equal output, and time arrives as an argument.
//
// The workload is seen as slots: the numbers 1 to Count, or one per node for a global workload.
// A slot holds at most one instance that should run, and a second one only while one replaces the
// other. An update walks the slots in batches. Taking part in traffic ends before the stop
// signal: an instance that serves is drained first, and package control stops it once every
// balancer has followed. In a stateful workload a slot never holds two, and slots keep an order.
package rollout
