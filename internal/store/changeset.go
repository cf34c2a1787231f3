package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// Formats of encoded change sets, their first byte. Servers of two versions that follow each other
// work in one cluster while it is upgraded, and must apply every set alike. So a new format (one
// with another kind of object, or another change) is read one version before it is written, and a
// server that meets a format newer than it knows stops: see ApplyAll.
const (
	formatCBOR   = 1 // a list of changes in CBOR; read, not written any more
	formatBinary = 2 // written
	formatNewest = formatBinary
)

// codec is how objects are encoded. Times keep their nanoseconds, which the library's default
// cuts off: monitor windows and the order of events depend on them.
var codec = func() cbor.UserBufferEncMode {
	m, err := cbor.EncOptions{Time: cbor.TimeRFC3339NanoUTC}.UserBufferEncMode()
	if err != nil {
		panic(fmt.Sprintf("the encoding's options are wrong: %v", err))
	}
	return m
}()

type opType uint8

// The numbers are part of the format.
const (
	opPut            opType = iota + 1 // kind, ID, object
	opPutStatus                        // kind, ID, object
	opDelete                           // kind, ID
	opExpect                           // kind, ID, revision
	opPutKey                           // key, value, milliseconds to live
	opDeleteKey                        // key
	opDeleteKeys                       // first key, key behind the last
	opExpectKey                        // key, revision
	opDeleteKeyIfOld                   // key, revision
)

// ChangeSet collects changes that are to happen as a whole or not at all. The zero value is empty.
// Expectations are of the state before, wherever they stand; changes happen in their order.
type ChangeSet struct {
	expects []byte
	changes []byte
	puts    int
	made    madeBy
	err     error
	encoded bytes.Buffer // the latest object
}

// madeBy is an object that only this set makes.
type madeBy struct {
	kind model.Kind
	id   string
}

// Put writes the desired part of an object. The table keeps the Status that the object has there;
// an object that does not exist yet is created as given.
func (c *ChangeSet) Put(obj model.Object) { c.add(opPut, obj) }

// PutStatus writes the observed part of an object and leaves everything else. It does nothing
// when the object is gone or an instance that has ended, and makes the set be refused when objects
// of the kind have no such part.
func (c *ChangeSet) PutStatus(obj model.Object) { c.add(opPutStatus, obj) }

func (c *ChangeSet) add(t opType, obj model.Object) {
	c.encoded.Reset()
	if err := codec.MarshalToBuffer(obj, &c.encoded); err != nil {
		c.fail(fmt.Errorf("encode %s %s: %w", obj.Kind(), obj.GetMeta().ID, err))
	}
	data := c.encoded.Bytes()
	if need := len(c.changes) + len(data) + 128; need > cap(c.changes) { // a large set grows often
		c.changes = slices.Grow(c.changes, max(need, 2*cap(c.changes))-len(c.changes))
	}
	c.change(t, string(obj.Kind()), obj.GetMeta().ID)
	c.changes = appendBytes(c.changes, data)
	if obj.Kind() == model.KindEvent {
		c.made = madeBy{obj.Kind(), obj.GetMeta().ID}
	}
}

// Delete removes an object, if it exists.
func (c *ChangeSet) Delete(kind model.Kind, id string) { c.change(opDelete, string(kind), id) }

// Expect makes the whole set fail with fault.Conflict unless the object has exactly this
// revision before any of the set's changes; 0 means that it must not exist.
func (c *ChangeSet) Expect(kind model.Kind, id string, revision uint64) {
	c.expects = append(c.expects, byte(opExpect))
	c.expects = appendBytes(c.expects, string(kind))
	c.expects = appendBytes(c.expects, id)
	c.expects = binary.AppendUvarint(c.expects, revision)
	if revision == 0 && c.made.id == "" {
		c.made = madeBy{kind, id}
	}
}

// PutKey writes a key's value. With a time to live, which is counted in milliseconds, the key is
// deleted when it was not written for that long, by the leader; 0 keeps it.
func (c *ChangeSet) PutKey(key string, value []byte, ttl time.Duration) {
	if err := CheckKey(key); err != nil {
		c.fail(err)
	}
	if len(value) > MaxValueBytes {
		c.fail(fault.New(fault.Invalid, "the value of key %q has %d bytes; %d are accepted at most", key, len(value), MaxValueBytes))
	}
	if ttl < 0 || ttl > 0 && ttl < time.Millisecond {
		c.fail(fault.New(fault.Invalid, "the time to live of key %q is %v; none, or a millisecond and more, is accepted", key, ttl))
	}
	c.change(opPutKey, key)
	c.changes = appendBytes(c.changes, value)
	c.changes = binary.AppendUvarint(c.changes, uint64(ttl.Milliseconds()))
}

// DeleteKey removes a key, if it exists.
func (c *ChangeSet) DeleteKey(key string) { c.change(opDeleteKey, key) }

// DeleteKeys removes all keys from one on and before another; an empty end removes all that follow.
func (c *ChangeSet) DeleteKeys(from, to string) { c.change(opDeleteKeys, from, to) }

// DeleteKeyIf removes a key if it was last written at exactly this revision; otherwise it does
// nothing, and the set's other changes happen all the same.
func (c *ChangeSet) DeleteKeyIf(key string, revision uint64) {
	c.change(opDeleteKeyIfOld, key)
	c.changes = binary.AppendUvarint(c.changes, revision)
}

// ExpectKey makes the whole set fail with fault.Conflict unless the key was last written at exactly
// this revision before any of the set's changes; 0 means that it must not exist.
func (c *ChangeSet) ExpectKey(key string, revision uint64) {
	c.expects = append(c.expects, byte(opExpectKey))
	c.expects = appendBytes(c.expects, key)
	c.expects = binary.AppendUvarint(c.expects, revision)
}

func (c *ChangeSet) change(t opType, names ...string) {
	c.changes = append(c.changes, byte(t))
	for _, n := range names {
		c.changes = appendBytes(c.changes, n)
	}
	c.puts++
}

func (c *ChangeSet) fail(err error) {
	if c.err == nil {
		c.err = err
	}
}

func appendBytes[T string | []byte](to []byte, s T) []byte {
	return append(binary.AppendUvarint(to, uint64(len(s))), s...)
}

// Len returns the number of changes; expectations do not count.
func (c *ChangeSet) Len() int { return c.puts }

func (c *ChangeSet) encode() ([]byte, error) {
	if c.err != nil {
		return nil, c.err
	}
	out := make([]byte, 1, 1+len(c.expects)+len(c.changes))
	out[0] = formatBinary
	return append(append(out, c.expects...), c.changes...), nil
}

// op is a decoded change. What it holds is part of the encoded set.
type op struct {
	kind     []byte // of objects
	id       []byte // ID or key
	value    []byte // object or value, or the key behind the last
	revision uint64
	ttl      time.Duration
	opType   opType
}

// opReader reads the changes of an encoded set one by one.
type opReader struct {
	rest []byte
	old  []op // of a set in CBOR
}

func readOps(data []byte) (opReader, error) {
	switch {
	case len(data) == 0:
		return opReader{}, fault.New(fault.Invalid, "a change set without a format")
	case data[0] == formatBinary:
		return opReader{rest: data[1:]}, nil
	case data[0] == formatCBOR:
		old, err := readCBOR(data[1:])
		return opReader{old: old}, err
	}
	return opReader{}, fault.New(fault.Unsupported, "change set of format %d; this version reads formats %d to %d", data[0], formatCBOR, formatNewest)
}

// next reads a change; it returns false at the end.
func (r *opReader) next(o *op) (bool, error) {
	if len(r.old) > 0 {
		*o, r.old = r.old[0], r.old[1:]
		return true, nil
	}
	if len(r.rest) == 0 {
		return false, nil
	}
	*o = op{opType: opType(r.rest[0])}
	f := fields{rest: r.rest[1:]}
	switch o.opType {
	case opPut, opPutStatus:
		o.kind, o.id, o.value = f.bytes(), f.bytes(), f.bytes()
	case opDelete:
		o.kind, o.id = f.bytes(), f.bytes()
	case opExpect:
		o.kind, o.id, o.revision = f.bytes(), f.bytes(), f.number()
	case opPutKey:
		o.id, o.value = f.bytes(), f.bytes()
		o.ttl = time.Duration(f.number()) * time.Millisecond
	case opDeleteKey:
		o.id = f.bytes()
	case opDeleteKeys:
		o.id, o.value = f.bytes(), f.bytes()
	case opExpectKey, opDeleteKeyIfOld:
		o.id, o.revision = f.bytes(), f.number()
	default:
		return false, fault.New(fault.Unsupported, "unknown change %d", o.opType)
	}
	if f.short {
		return false, fault.New(fault.Invalid, "decode change set: it is cut short")
	}
	r.rest = f.rest
	return true, nil
}

// fields takes fields off encoded data.
type fields struct {
	rest  []byte
	short bool
}

func (f *fields) number() uint64 {
	v, n := binary.Uvarint(f.rest)
	if n <= 0 {
		f.short = true
		return 0
	}
	f.rest = f.rest[n:]
	return v
}

func (f *fields) bytes() []byte {
	n := f.number()
	if n > uint64(len(f.rest)) {
		f.short = true
		return nil
	}
	out := f.rest[:n:n]
	f.rest = f.rest[n:]
	return out
}

// readCBOR reads a set of format 1, in which expectations come first.
func readCBOR(data []byte) ([]op, error) {
	var list []struct {
		Type     opType          `json:"t"`
		Kind     string          `json:"k"`
		ID       string          `json:"i"`
		Revision uint64          `json:"r"`
		Object   cbor.RawMessage `json:"o"`
	}
	if err := cbor.Unmarshal(data, &list); err != nil {
		return nil, fault.New(fault.Invalid, "decode change set: %w", err)
	}
	out := make([]op, len(list))
	for i, l := range list {
		if l.Type == 0 || l.Type > opExpect {
			return nil, fault.New(fault.Unsupported, "unknown change %d", l.Type)
		}
		out[i] = op{opType: l.Type, kind: []byte(l.Kind), id: []byte(l.ID), revision: l.Revision, value: l.Object}
	}
	return out, nil
}

// CheckKey says what is wrong with a key, if anything is.
func CheckKey(key string) error {
	switch {
	case key == "":
		return fault.New(fault.Invalid, "a key is empty")
	case len(key) > MaxKeyBytes:
		return fault.New(fault.Invalid, "key %q… has %d bytes; %d are accepted at most", key[:64], len(key), MaxKeyBytes)
	case strings.ContainsRune(key, 0):
		return fault.New(fault.Invalid, "key %q holds a zero byte", key)
	}
	return nil
}

func decodeObject(info *kindInfo, data []byte) (model.Object, error) {
	obj := info.empty()
	if err := cbor.Unmarshal(data, obj); err != nil {
		return nil, fault.New(fault.Invalid, "decode %s: %w", info.kind, err)
	}
	return obj, nil
}
