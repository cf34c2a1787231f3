//go:build !plant_skip_fsync

package consensus

// skipSync leaves the log unsynced. Only the build tag plant_skip_fsync sets it, to show that the
// simulation finds it.
const skipSync = false
