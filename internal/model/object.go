package model

import (
	"crypto/rand"
	"encoding/base32"
	"strings"
	"time"
)

// Kind names a table of replicated objects.
type Kind string

// The kinds of replicated objects.
const (
	KindNode        Kind = "node"
	KindApplication Kind = "application"
	KindWorkload    Kind = "workload"
	KindRevision    Kind = "revision"
	KindInstance    Kind = "instance"
	KindService     Kind = "service"
	KindNetwork     Kind = "network"
	KindVolume      Kind = "volume"
	KindSecret      Kind = "secret"
	KindConfig      Kind = "config"
	KindImage       Kind = "image"
	KindEvent       Kind = "event"
	KindCluster     Kind = "cluster"
	KindUser        Kind = "user"
	KindPolicy      Kind = "policy"
)

// DefaultNamespace is where objects live whose creator named no namespace.
const DefaultNamespace = "default"

// Meta identifies an object.
type Meta struct {
	// ID is unique for ever and never reused; see NewID.
	ID string `json:"id"`
	// Namespace is the tenant. Cluster-wide objects (nodes, images) leave it empty.
	Namespace string `json:"namespace,omitempty"`
	// Application groups objects that were deployed together; empty when alone.
	Application string `json:"application,omitempty"`
	// Name is unique among objects of one kind, namespace and application.
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels,omitempty"`
	// Created is set once, by whoever creates the object.
	Created time.Time `json:"created"`
	// Revision is the store revision of the object's last change. It is set by the store on
	// reading and ignored on writing.
	Revision uint64 `json:"revision,omitempty"`
	// Extensions keeps fields of a source API that the core does not understand, by adapter
	// name, readable only by that adapter.
	Extensions map[string][]byte `json:"extensions,omitempty"`
}

// FullName is the name with its application in front ("shop/web"), as people write it.
func (m *Meta) FullName() string {
	if m.Application == "" {
		return m.Name
	}
	return m.Application + "/" + m.Name
}

// UniqueName is the key under which no second object of the kind may exist.
func (m *Meta) UniqueName() string { return m.Namespace + "/" + m.Application + "/" + m.Name }

// Object is a replicated noun. Implementations are pointers to structs in this package.
type Object interface {
	Kind() Kind
	GetMeta() *Meta
	// CloneObject returns a deep copy.
	CloneObject() Object
	// AdoptStatus copies the observed part from an older version of the same object: what
	// the store does when a writer of the desired part puts it. Objects without a status do
	// nothing.
	AdoptStatus(from Object)
	// AdoptDesired is the opposite, for a writer of the status: it replaces everything but
	// the status by what the older version holds.
	AdoptDesired(from Object)
}

var idEncoding = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// NewID returns a random identifier of 24 characters (120 bits) from [0-9a-z].
func NewID() string {
	var b [15]byte
	rand.Read(b[:]) // never fails, by its contract
	return idEncoding.EncodeToString(b[:])
}

// ShortID is the first twelve characters of an identifier, for people.
func ShortID(id string) string {
	if len(id) > 12 {
		return id[:12]
	}
	return id
}

// SplitFullName is the inverse of Meta.FullName: "shop/web" gives "shop", "web".
func SplitFullName(full string) (application, name string) {
	if app, n, ok := strings.Cut(full, "/"); ok {
		return app, n
	}
	return "", full
}
