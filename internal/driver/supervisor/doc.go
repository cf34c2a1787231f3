// Package supervisor is what drivers of real processes have in common. Beside every run of a task
// lives a small process, its supervisor, in a session of its own: it outlives the agent, starts the
// task, keeps its output in log files, records how it ended, and starts further processes in it on
// request. What a task's processes are, a container or plain processes of the host, is the Body's
// affair (driver/oci, driver/process). The agent's side, Driver, only reads the run's directory and
// talks to the supervisor over a socket, so that a new agent finds everything as it was.
//
// A run's directory holds task.json (what was asked for), status.json (how it is, replaced as a
// whole at each change), the log, and lock, which the supervisor holds while it lives: a run that
// is not over and whose lock is free has lost its supervisor, and is brought to an end.
package supervisor
