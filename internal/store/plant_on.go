//go:build plant_ignore_expect

package store

// ignoreExpectations applies change sets without looking at what they expect. Only the simulation
// is built like this, to show that it notices.
const ignoreExpectations = true
