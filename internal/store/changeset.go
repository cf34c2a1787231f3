package store

import (
	"fmt"
	"slices"

	"github.com/fxamacker/cbor/v2"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// formatVersion is the first byte of an encoded change set.
const formatVersion = 1

// codec is how objects are encoded. Times keep their nanoseconds, which the library's default
// cuts off: monitor windows and the order of events depend on them.
var codec = func() cbor.EncMode {
	m, err := cbor.EncOptions{Time: cbor.TimeRFC3339NanoUTC}.EncMode()
	if err != nil {
		panic(fmt.Sprintf("the encoding's options are wrong: %v", err))
	}
	return m
}()

type opType uint8

const (
	opPut opType = iota + 1
	opPutStatus
	opDelete
	opExpect
)

type op struct {
	Type     opType          `json:"t"`
	Kind     model.Kind      `json:"k"`
	ID       string          `json:"i"`
	Revision uint64          `json:"r,omitempty"`
	Object   cbor.RawMessage `json:"o,omitempty"`
}

// ChangeSet collects changes that are to happen as a whole or not at all. The zero value is empty.
type ChangeSet struct {
	ops  []op
	puts int
	err  error
}

// Put writes the desired part of an object. The table keeps the Status that the object has there;
// an object that does not exist yet is created as given.
func (c *ChangeSet) Put(obj model.Object) { c.add(opPut, obj) }

// PutStatus writes the observed part of an object and leaves everything else. It does nothing
// when the object is gone or an instance that has ended, and makes the set be refused when objects
// of the kind have no such part.
func (c *ChangeSet) PutStatus(obj model.Object) { c.add(opPutStatus, obj) }

func (c *ChangeSet) add(t opType, obj model.Object) {
	data, err := codec.Marshal(obj)
	if err != nil && c.err == nil {
		c.err = fmt.Errorf("encode %s %s: %w", obj.Kind(), obj.GetMeta().ID, err)
	}
	c.ops = append(c.ops, op{Type: t, Kind: obj.Kind(), ID: obj.GetMeta().ID, Object: data})
	c.puts++
}

// Delete removes an object, if it exists.
func (c *ChangeSet) Delete(kind model.Kind, id string) {
	c.ops = append(c.ops, op{Type: opDelete, Kind: kind, ID: id})
	c.puts++
}

// Expect makes the whole set fail with fault.Conflict unless the object has exactly this
// revision before any of the set's changes; 0 means that it must not exist.
func (c *ChangeSet) Expect(kind model.Kind, id string, revision uint64) {
	c.ops = append(c.ops, op{Type: opExpect, Kind: kind, ID: id, Revision: revision})
}

// Len returns the number of changes; expectations do not count.
func (c *ChangeSet) Len() int { return c.puts }

func (c *ChangeSet) encode() ([]byte, error) {
	if c.err != nil {
		return nil, c.err
	}
	ops := slices.Clone(c.ops)
	slices.SortStableFunc(ops, func(a, b op) int { // expectations first
		switch {
		case a.Type == opExpect && b.Type != opExpect:
			return -1
		case a.Type != opExpect && b.Type == opExpect:
			return 1
		}
		return 0
	})
	body, err := codec.Marshal(ops)
	if err != nil {
		return nil, fmt.Errorf("encode change set: %w", err)
	}
	return append([]byte{formatVersion}, body...), nil
}

func decodeOps(data []byte) ([]op, error) {
	if len(data) == 0 || data[0] != formatVersion {
		return nil, fault.New(fault.Unsupported, "change set of an unknown format; this version reads format %d", formatVersion)
	}
	var ops []op
	if err := cbor.Unmarshal(data[1:], &ops); err != nil {
		return nil, fault.New(fault.Invalid, "decode change set: %w", err)
	}
	return ops, nil
}

func decodeObject(kind model.Kind, data []byte) (model.Object, error) {
	info, ok := kinds[kind]
	if !ok {
		return nil, fault.New(fault.Unsupported, "unknown kind of object %q", kind)
	}
	obj := info.empty()
	if err := cbor.Unmarshal(data, obj); err != nil {
		return nil, fault.New(fault.Invalid, "decode %s: %w", kind, err)
	}
	return obj, nil
}
