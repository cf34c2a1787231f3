package store

import (
	"bytes"
	"slices"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/store/tree"
)

// What a key and its value may take.
const (
	MaxKeyBytes   = 4 << 10
	MaxValueBytes = 4 << 20
)

// KeyValue is a key as it was at some time. It is shared and must not be changed, its value
// included.
type KeyValue struct {
	Key   string
	Value []byte
	// Created is the revision at which the key came into being, Modified that of its last put.
	Created, Modified uint64
	// Version counts the puts since it came into being, from 1.
	Version uint64
	// TTL is how long the key stays without another put; 0 is for ever.
	TTL time.Duration
}

// KeyChange is what became of one key. Old is nil when it came into being, New when it was deleted.
type KeyChange struct{ Old, New *KeyValue }

// Key returns the key that was changed.
func (c KeyChange) Key() string {
	if c.New != nil {
		return c.New.Key
	}
	return c.Old.Key
}

// Keys is the key space at one revision.
type Keys struct {
	tree     tree.Tree[*KeyValue]
	revision uint64
}

func atKey(key string) func(*KeyValue) int {
	return func(kv *KeyValue) int { return strings.Compare(kv.Key, key) }
}

// Revision returns the revision of the last change that the view shows.
func (k Keys) Revision() uint64 { return k.revision }

// Len returns the number of all keys.
func (k Keys) Len() int { return k.tree.Len() }

// Get returns what a key holds.
func (k Keys) Get(key string) (*KeyValue, bool) { return k.tree.Get(atKey(key)) }

// Range yields the keys from one on and before another, in order; an empty end means all that
// follow.
func (k Keys) Range(from, to string) func(yield func(*KeyValue) bool) {
	return func(yield func(*KeyValue) bool) {
		k.tree.From(atKey(from), func(kv *KeyValue) bool { return (to == "" || kv.Key < to) && yield(kv) })
	}
}

// Count returns how many keys Range would yield.
func (k Keys) Count(from, to string) int {
	n := 0
	for range k.Range(from, to) {
		n++
	}
	return n
}

// PrefixEnd returns the key behind all that begin with prefix, for Range and its like; "" is the
// end of everything.
func PrefixEnd(prefix string) string {
	end := []byte(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return string(end[:i+1])
		}
	}
	return ""
}

// Keys returns the key space as the snapshot shows it.
func (s *Snapshot) Keys() Keys { return Keys{s.state.keys, s.state.revision} }

// KeysAt returns the key space as it was at a revision. It fails with ErrTooOld when the changes
// since then are no longer kept, and with fault.Unavailable when this server has not come so far.
func (s *Store) KeysAt(revision uint64) (Keys, error) {
	past, base, err := s.history.since(revision)
	if err != nil {
		return Keys{}, err
	}
	if base.revision < revision {
		return Keys{}, fault.New(fault.Unavailable, "revision %d is not reached yet: this server is at %d", revision, base.revision)
	}
	if len(past) == 0 {
		return Keys{base.tree, revision}, nil
	}
	e := base.tree.Edit()
	for _, changes := range past {
		for _, c := range slices.Backward(changes) {
			undoKey(&e, c)
		}
	}
	return Keys{e.Share(), revision}, nil
}

// undoKey takes a change back.
func undoKey(e *tree.Edit[*KeyValue], c KeyChange) {
	if c.Old == nil {
		e.Remove(atKey(c.New.Key))
	} else {
		e.Put(c.Old, atKey(c.Old.Key))
	}
}

// copied returns a value that keeps nothing else in memory.
func copied(value []byte) []byte {
	if len(value) == 0 {
		return []byte{}
	}
	return bytes.Clone(value)
}
