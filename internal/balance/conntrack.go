package balance

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Of the kernel's interface to the connections that it follows, as far as it is spoken here.
const (
	ctGet    = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1
	ctDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2

	ctTupleOrig, ctTupleReply, ctID, ctZone, ctFilter = 1, 2, 12, 18, 25
	ctTupleIP                                         = 1
	ctFilterOrig, ctFilterReply                       = 1, 2
	ctBySource                                        = 1 << 0 // a bit of the filter
)

// mostPicked is how many addresses are asked for one by one; for more, everything is listed once.
const mostPicked = 4

// cutTo ends the connections that were led to one of the addresses. The kernel picks those to each of a few, as there may be a great many
// others; one that does not know how (before Linux 5.8), or not of IPv6, where its comparison has come out the wrong way, lists
// all of them.
func cutTo(f *family, to map[netip.Addr]bool) error {
	if len(to) == 0 {
		return nil
	}
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("ask for connections: %w", err)
	}
	defer c.Close()
	var list [][]byte
	if len(to) > mostPicked || f != ipv4 {
		list, err = ledTo(c, f, to)
	} else {
		for a := range to {
			var some [][]byte
			if some, err = ledTo(c, f, map[netip.Addr]bool{a: true}); err != nil {
				break
			}
			list = append(list, some...)
		}
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, one := range list {
		_, err := c.Execute(netlink.Message{
			Header: netlink.Header{Type: ctDelete, Flags: netlink.Request | netlink.Acknowledge}, Data: append(f.head(), one...),
		})
		if err != nil && !errors.Is(err, unix.ENOENT) { // it ended by itself
			errs = append(errs, fmt.Errorf("end a connection: %w", err))
		}
	}
	return errors.Join(errs...)
}

// head is what messages about connections begin with.
func (f *family) head() []byte { return []byte{f.conntrack, unix.NFNETLINK_V0, 0, 0} }

// ledTo finds the connections of which one of the addresses answers, each as what names it to the kernel.
func ledTo(c *netlink.Conn, f *family, to map[netip.Addr]bool) (out [][]byte, err error) {
	e := netlink.NewAttributeEncoder()
	source := uint16(1) // of a tuple's addresses: of IPv4
	if f == ipv6 {
		source = 3
	}
	if f == ipv4 && len(to) == 1 {
		var only netip.Addr
		for only = range to {
		}
		e.Nested(ctTupleReply, func(e *netlink.AttributeEncoder) error {
			e.Nested(ctTupleIP, func(e *netlink.AttributeEncoder) error {
				e.Bytes(source, only.AsSlice())
				return nil
			})
			return nil
		})
		e.Nested(ctFilter, func(e *netlink.AttributeEncoder) error {
			e.Uint32(ctFilterOrig, 0)
			e.Uint32(ctFilterReply, ctBySource)
			return nil
		})
	}
	which, err := e.Encode()
	if err != nil {
		return nil, err
	}
	list, err := c.Execute(netlink.Message{Header: netlink.Header{Type: ctGet, Flags: netlink.Request | netlink.Dump}, Data: append(f.head(), which...)})
	if err != nil {
		return nil, fmt.Errorf("list connections: %w", err)
	}
	for _, m := range list {
		if len(m.Data) < len(f.head()) {
			continue
		}
		attributes, err := netlink.UnmarshalAttributes(m.Data[len(f.head()):])
		if err != nil {
			return nil, fmt.Errorf("read a connection: %w", err)
		}
		var names []netlink.Attribute
		answers := false
		for _, a := range attributes {
			switch a.Type &^ (netlink.Nested | netlink.NetByteOrder) {
			case ctTupleOrig, ctID, ctZone:
				names = append(names, a)
			case ctTupleReply:
				answers = tupleFrom(a.Data, source, to)
			}
		}
		if !answers {
			continue
		}
		one, err := netlink.MarshalAttributes(names)
		if err != nil {
			return nil, err
		}
		out = append(out, one)
	}
	return out, nil
}

// tupleFrom reports whether one direction of a connection comes from one of the addresses.
func tupleFrom(tuple []byte, source uint16, from map[netip.Addr]bool) bool {
	d, err := netlink.NewAttributeDecoder(tuple)
	if err != nil {
		return false
	}
	found := false
	for d.Next() {
		if d.Type() != ctTupleIP {
			continue
		}
		d.Nested(func(d *netlink.AttributeDecoder) error {
			for d.Next() {
				if a, ok := netip.AddrFromSlice(d.Bytes()); ok && d.Type() == source {
					found = found || from[a]
				}
			}
			return nil
		})
	}
	return found && d.Err() == nil
}
