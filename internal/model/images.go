package model

import (
	"maps"
	"slices"
	"time"
)

// ImageSettings are what the cluster knows of registries, and asks of what comes from them.
type ImageSettings struct {
	Registries map[string]Registry `json:"registries,omitempty"` // by host
	Logins     []RegistryLogin     `json:"logins,omitempty"`
	// Names are hosts, with a port where one is needed, under which clients reach the cluster's own registry.
	Names      []string          `json:"names,omitempty"`
	Signatures []SignaturePolicy `json:"signatures,omitempty"`
}

// Registry is how the registry of a host is reached.
type Registry struct {
	Mirrors []string `json:"mirrors,omitempty"` // URLs, asked before the registry itself
	Plain   bool     `json:"plain,omitempty"`   // without TLS
	CA      []byte   `json:"ca,omitempty"`      // PEM; believed besides the authorities of nodes
}

// RegistryLogin is who asks a registry, or for a part of its repositories.
type RegistryLogin struct {
	Prefix string    `json:"prefix"` // a host, and what follows it in the names of images: registry.example.com/shop
	User   string    `json:"user"`
	Since  time.Time `json:"since"`
	// Sealed is the password or token, encrypted with the cluster's secret key.
	Sealed []byte `json:"sealed"`
}

// SignaturePolicy says whose signature images need before they are run.
type SignaturePolicy struct {
	// Pattern is of normalized names without a tag: * stands for what is between two slashes, ** for anything.
	Pattern string `json:"pattern"`
	// Keys are public ones in PEM, of which one has signed; none at all: the images are not run.
	Keys []string `json:"keys"`
}

func (s ImageSettings) clone() ImageSettings {
	s.Registries = maps.Clone(s.Registries)
	for host, r := range s.Registries {
		r.Mirrors, r.CA = slices.Clone(r.Mirrors), slices.Clone(r.CA)
		s.Registries[host] = r
	}
	s.Logins = slices.Clone(s.Logins)
	for i := range s.Logins {
		s.Logins[i].Sealed = slices.Clone(s.Logins[i].Sealed)
	}
	s.Names, s.Signatures = slices.Clone(s.Names), slices.Clone(s.Signatures)
	for i := range s.Signatures {
		s.Signatures[i].Keys = slices.Clone(s.Signatures[i].Keys)
	}
	return s
}
