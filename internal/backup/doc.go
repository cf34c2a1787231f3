// Package backup reads and writes backup files: a snapshot of the cluster's state, which a server
// writes and a new cluster can begin from, with all that is needed to say whether it can be used. It
// does not look into the state.
//
// A file is the line "TUTTI-BACKUP 1", the length of the header (4 bytes, big endian), the header as
// JSON, the state, the state's length (8 bytes, big endian) and the SHA-256 of all before that.
package backup
