// Package wire is the one port through which nodes speak with each other: mutual TLS with
// certificates of the cluster's own authority, HTTP/2 for calls (CBOR both ways), two-way streams
// and blobs, and plain connections for replication between servers, told apart by ALPN.
//
// It owns connections and certificates, and the forms of what crosses (session.go, calls.go);
// it does not know what the messages are for.
package wire
