// Package e2e holds the end-to-end tests: the built program, virtual hosts, real containers and
// the example application, used as people use them. They need root and are built with the tag
// e2e; `make e2e` runs them.
//
// There is one cluster for all of them, brought up by TestMain and taken down at the end, also
// after a failure. Figures that are of interest (gaps, failed requests, times) are logged, never
// asserted where they depend on the machine's speed; what must hold on any machine is asserted.
package e2e
