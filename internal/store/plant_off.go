//go:build !plant_ignore_expect

package store

// ignoreExpectations is a bug that the simulation must find when it is planted; see plant_on.go.
const ignoreExpectations = false
