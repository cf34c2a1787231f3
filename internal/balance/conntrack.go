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
	ctSource, ctSource6                               = 1, 3 // of a tuple's addresses
	ctFilterOrig, ctFilterReply                       = 1, 2
	ctBySource                                        = 1 << 0 // a bit of the filter
)

// mostPicked is how many addresses the kernel is asked to end connections to, for each of which it looks at all; for more they are listed once.
const mostPicked = 32

// cutTo ends the connections that were led to one of the addresses. The kernel does it for each address, as there may be a great many
// connections; where it does not know how (before Linux 6.11), and for IPv6, where its comparison has come out the wrong way, they are
// listed, and ended one by one.
func cutTo(f *family, to map[netip.Addr]bool) error {
	if len(to) == 0 {
		return nil
	}
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("ask for connections: %w", err)
	}
	defer c.Close()
	if f == ipv4 && len(to) <= mostPicked {
		if err := flushTo(c, to); !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	list, err := ledTo(c, f, to)
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

// flushTo has the kernel end connections of IPv4. One that does not know of filters for this takes the answering address for the name of a
// connection, of which the rest is missing, and says EINVAL.
func flushTo(c *netlink.Conn, to map[netip.Addr]bool) error {
	for a := range to {
		e := netlink.NewAttributeEncoder()
		e.Nested(ctTupleReply, func(e *netlink.AttributeEncoder) error {
			e.Nested(ctTupleIP, func(e *netlink.AttributeEncoder) error {
				e.Bytes(ctSource, a.AsSlice())
				return nil
			})
			return nil
		})
		e.Nested(ctFilter, func(e *netlink.AttributeEncoder) error {
			e.Uint32(ctFilterOrig, 0)
			e.Uint32(ctFilterReply, ctBySource)
			return nil
		})
		which, err := e.Encode()
		if err != nil {
			return err
		}
		_, err = c.Execute(netlink.Message{Header: netlink.Header{Type: ctDelete, Flags: netlink.Request | netlink.Acknowledge}, Data: append(ipv4.head(), which...)})
		if err != nil {
			return fmt.Errorf("end connections to %s: %w", a, err)
		}
	}
	return nil
}

// ledTo finds the connections of which one of the addresses answers, each as what names it to the kernel.
func ledTo(c *netlink.Conn, f *family, to map[netip.Addr]bool) (out [][]byte, err error) {
	source := uint16(ctSource)
	if f == ipv6 {
		source = ctSource6
	}
	list, err := c.Execute(netlink.Message{Header: netlink.Header{Type: ctGet, Flags: netlink.Request | netlink.Dump}, Data: f.head()})
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
