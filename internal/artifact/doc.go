// Package artifact fetches what processes of the host are made of: programs and archives, by URL.
// Everything is verified against its digest before anything is done with it, kept in a cache by
// that digest, and put into a task's sandbox directory, archives unpacked. What an archive holds
// cannot lead out of the sandbox: not by its names, not by its links.
package artifact
