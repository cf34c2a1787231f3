// Package oci runs tasks as containers, by libcontainer, each under a small supervisor: this same
// program, re-executed, in a session of its own. The supervisor outlives the agent; it creates the
// container, keeps its output in log files, records how it ended, and starts further processes in
// it on request. The agent's side only reads the run's directory and talks to the supervisor over
// a socket, so that a new agent finds everything as it was.
//
// A run's directory holds task.json (what was asked for), status.json (how it is, replaced as a
// whole at each change), the log, and lock, which the supervisor holds while it lives: a run that
// is not over and whose lock is free has lost its supervisor, and is brought to an end.
package oci
