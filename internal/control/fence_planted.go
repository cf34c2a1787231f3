//go:build plant_skip_fence

package control

const skipFence = true
