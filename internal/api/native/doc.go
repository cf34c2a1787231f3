// Package native is Tutti's own API: HTTP with JSON over a Unix socket that only its owner may
// open. The command line speaks it, and so can curl:
//
//	curl --unix-socket /run/tutti/tutti.sock http://tutti/v1/status
//
// Requests come in as HTTP/1.1 or as unencrypted HTTP/2, become calls of core.Core, and go back
// as one JSON value, or as one value a line where an answer goes on for a while (logs, events).
// A failure is a status code with the body {"error": "a sentence", "kind": "not found"}; in the
// middle of a stream of lines it is a last line of that form. Exec is a stream in both
// directions, for which HTTP/2 is needed.
//
// Client is the other end, with one method per use case; its errors carry the kinds that the
// server's had. What only reads comes from a snapshot of the store, as the views in views.go.
package native
