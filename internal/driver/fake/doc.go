// Package fake is a driver that runs nothing: a task is a Go function in this process, and what a
// real driver keeps on disk is kept in a State. It is for tests of those who drive; it passes the
// suite in driver/drivertest like any other driver, and works inside testing/synctest.
package fake
