// Package compose reads Compose files from the user's disk and says what they mean as a
// core.Deployment. It decides nothing and asks no cluster: the same files and environment give
// the same deployment.
//
// Two readers look at the same files. The reference parser, compose-go, merges, extends, includes
// and interpolates, and gives the project that is translated. Beside it every file is read as a
// tree of YAML nodes, which is how each sentence about a key can name its file and line. On its
// way through that tree each key meets the table in rules.go, where it is honoured, refused or
// ignored with a warning; a key that the table does not have does not exist. Values are judged in
// the translation, where what they mean is known.
//
// Nothing stops at the first problem: all of them come back in one error.
//
// # Defaults
//
// What a file leaves open is decided for production:
//
//   - A service is restarted whenever it ends, as in Docker Swarm; only restart: "no" leaves it
//     alone. A job, which should end, is run again while it fails, unless restart says otherwise.
//   - A service that another one waits for with service_completed_successfully is a job: it runs
//     until it has completed, and again when its definition or image has changed.
//   - Updates replace one instance at a time, the new one first where that is safe (no writable
//     volume or folder of the host, no fixed port or address on the node), are watched for five
//     seconds each, and lead back to what ran before when an instance fails. A rollback goes the
//     same way and stops when it fails too.
//   - Tasks have ten seconds between the stop signal and the end.
//   - A network is an overlay over all nodes, also where the file says bridge.
//   - What the file gives no name of its own is called as in the file, without the project's name
//     in front: the application is the prefix.
package compose
