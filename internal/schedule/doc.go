// Package schedule decides on which node each pending instance should run. It is pure: the same
// view, requests and seed give the same placements, each with its reason.
//
// Filters rule nodes out and say so; the score ranks what is left: fewest instances of the same
// workload first (spread), over the failure domains that the template names before that, then the
// node with the least share of its resources taken. Requests of one revision form a class, whose
// static filters are evaluated once.
package schedule
