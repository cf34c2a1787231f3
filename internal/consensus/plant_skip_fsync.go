//go:build plant_skip_fsync

package consensus

// skipSync is a planted bug: the log is acknowledged without being synced.
const skipSync = true
