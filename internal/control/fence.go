//go:build !plant_skip_fence

package control

// skipFence is a planted mistake for the simulation to find: slots of silent nodes are filled
// without waiting for the end of the lease.
const skipFence = false
