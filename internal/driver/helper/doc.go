// Package helper hands out the program that runs beside every task (cmd/tutti-task). `make build`
// compiles it first and embeds it into tutti (build tag helper); a program that was built without
// it, such as a test, takes that part itself.
package helper
