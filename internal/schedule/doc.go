// Package schedule decides on which node each pending instance should run. It is pure: the same
// cluster, requests and seed give the same placements, each with its reason.
//
// Filters rule nodes out and say so; the score ranks what is left. In order: the instances of the
// workload in the failure domains that it spreads over, taints that ask for other nodes, weighted
// preferences, then what the strategy looks at: the instances of the workload on the node and the
// node's load (spread), how full it would be (binPack), how evenly its resources would be used up
// (balance).
//
// Requests of one revision form a class, whose nodes are filtered and scored once. The nodes of a
// class are divided into groups that are alike in every failure domain the class asks about, each
// group a heap by what is left to compare; a placement looks at the groups and at the best node of
// each. Small classes that ask the same of nodes have one such order in common. The choice is the one
// that scanning every node would make.
//
// Requests of a higher priority come first, and those of equal priority so that the namespace with
// the smallest share of the cluster, by its weight, has its turn (dominant-resource fairness). One
// that finds no node may have instances of lower priority give way (preemption); a gang is placed
// as a whole or not at all.
package schedule
