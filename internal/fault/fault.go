// Package fault is the error vocabulary of Tutti: a handful of kinds that every
// package attaches to its errors, and that every API adapter maps to its own status
// codes in one function. The sentence is for people, the kind is for programs.
package fault

import (
	"errors"
	"fmt"
)

// Kind says what sort of answer an error deserves, never where it came from.
type Kind uint8

// The kinds. Internal is the zero value: an error nobody classified is our fault.
const (
	Internal    Kind = iota // a bug, or a machine that failed us
	Invalid                 // the request can never succeed as written
	NotFound                // the thing named does not exist
	Conflict                // the thing exists, or changed since it was read
	Forbidden               // the caller may not do this
	Unsupported             // understood, but not built: named in docs/compatibility.md
	Exhausted               // a quota, capacity or queue is full; the same request may succeed later
	Unavailable             // no leader, no quorum, node unreachable: try again
	TooOld                  // what was asked for is no longer kept: list again, and go on from there
)

var kindNames = [...]string{"internal", "invalid", "not found", "conflict", "forbidden", "unsupported", "exhausted", "unavailable", "too old"}

// String names the kind in lower case, as it travels between nodes.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// ParseKind is the inverse of Kind.String; an unknown name is Internal.
func ParseKind(name string) Kind {
	for i, n := range kindNames {
		if n == name {
			return Kind(i)
		}
	}
	return Internal
}

type classified struct {
	kind Kind
	err  error
}

func (c *classified) Error() string { return c.err.Error() }
func (c *classified) Unwrap() error { return c.err }

// New returns an error of the kind; format and args are those of fmt.Errorf, %w included.
func New(kind Kind, format string, args ...any) error {
	return &classified{kind: kind, err: fmt.Errorf(format, args...)}
}

// KindOf returns the outermost kind in err's chain, or Internal when there is none.
func KindOf(err error) Kind {
	var c *classified
	if errors.As(err, &c) {
		return c.kind
	}
	return Internal
}

// Is reports whether err carries the kind. A nil error carries none.
func Is(err error, kind Kind) bool { return err != nil && KindOf(err) == kind }
