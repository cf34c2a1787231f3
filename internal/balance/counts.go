package balance

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/wire"
)

// What comes to services is counted by the kernel, in a table of its own: an element of a few sets for each virtual IP
// and each published port, with a counter in it. The table stays when the other one is written anew, whichever agent
// does that, and an element stays whatever changes behind it; so counts go on from the first connection until the
// service is gone. A connection is counted where it comes in, and nowhere else, as only there it is led anywhere.
const (
	countsName = TableName + "-counts"
	// countsLayout is a chain without rules that says what is in the table: a program that made it otherwise has
	// another one.
	countsLayout = "layout-1"

	begun = "begun-" // connections; the rest of the name says at what
	moved = "moved-" // bytes of each direction
	atIP  = "ips"    // virtual IP
	atOne = "at"     // address, protocol, port
	atAny = "ports"  // protocol, port
)

// counted says in which sets a frontend is counted, and by which key; "" is in none: ports of a virtual IP count as that.
func (k FrontendKey) counted() (at, key string) {
	set, _, key := (&Frontend{FrontendKey: k}).keyed()
	switch {
	case set == virtualIPs:
		return atIP, key
	case !k.Node:
		return "", ""
	case set == portsAt:
		return atOne, key
	}
	return atAny, key
}

// direction is one of a connection's two, as the kernel has it in a register: 0 is that of who began it.
func direction(d byte) string { return string([]byte{d, 0, 0, 0}) }

func countersOf(keys []FrontendKey) (out []element) {
	for _, k := range keys {
		at, key := k.counted()
		if at == "" {
			continue
		}
		out = append(out, element{set: begun + at, key: key}, element{set: moved + at, key: key + direction(0)}, element{set: moved + at, key: key + direction(1)})
	}
	return out
}

// newCounts is the table of counts of a version of IP.
func newCounts(f *family) (*table, error) {
	conn, err := connect()
	if err != nil {
		return nil, err
	}
	b := &table{family: f, conn: conn, t: &nftables.Table{Name: countsName, Family: f.nft}, all: map[string]*nftables.Set{}}
	number := nftables.TypeInteger
	service := []nftables.SetDatatype{nftables.TypeInetProto, nftables.TypeInetService}
	for at, key := range map[string][]nftables.SetDatatype{atIP: {f.addr}, atOne: append([]nftables.SetDatatype{f.addr}, service...), atAny: service} {
		for _, of := range []string{begun, moved} {
			if of == moved {
				key = append(slices.Clone(key), number)
			}
			s := &nftables.Set{Table: b.t, Name: of + at, KeyType: key[0], Counter: true}
			if len(key) > 1 {
				s.KeyType, s.Concatenation = nftables.MustConcatSetType(key...), true
			}
			b.all[s.Name] = s
		}
	}
	return b, nil
}

// buildCounts makes the table with nothing in its sets.
func (b *table) buildCounts() error {
	b.conn.AddTable(b.t)
	b.conn.DelTable(b.t)
	b.conn.AddTable(b.t)
	for _, s := range b.sets() {
		if err := b.conn.AddSet(s, nil); err != nil {
			return fmt.Errorf("add %s: %w", s.Name, err)
		}
	}
	b.conn.AddChain(&nftables.Chain{Name: countsLayout, Table: b.t})
	accept := nftables.ChainPolicyAccept
	base := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, prio nftables.ChainPriority) *nftables.Chain {
		return b.conn.AddChain(&nftables.Chain{Name: name, Table: b.t, Type: kind, Hooknum: hook, Priority: &prio, Policy: &accept})
	}
	// The first packet of a connection, before it is led anywhere. A rule that does not match leaves it to the next.
	before, n := *nftables.ChainPriorityNATDest-10, b.words()
	done := verdict(expr.VerdictAccept)
	for _, c := range []*nftables.Chain{base("begins", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, before), base("begins-here", nftables.ChainTypeNAT, nftables.ChainHookOutput, before)} {
		dst := load(b.dst, b.size, word0)
		b.rule(c, dst, in(begun+atIP, word0), done)
		b.rule(c, append(append([]expr.Any{dst}, service(word0+n)...), in(begun+atOne, word0), done)...)
		b.rule(c, append(append(here(), service(word0)...), in(begun+atAny, word0), done)...)
	}
	// Every packet of what was led, after what may not pass was dropped: by what was asked for at first.
	after := *nftables.ChainPriorityFilter + 10
	asked := func(key expr.CtKey, register uint32) expr.Any { return &expr.Ct{Key: key, Register: register} } // in the direction of who began
	way := func(register uint32) expr.Any { return &expr.Ct{Key: expr.CtKeyDIRECTION, Register: register} }
	to := func(register uint32) []expr.Any {
		return []expr.Any{meta(expr.MetaKeyL4PROTO, register), asked(expr.CtKeyPROTODST, register+1), way(register + 2)}
	}
	for name, hook := range map[string]*nftables.ChainHook{"passes": nftables.ChainHookForward, "comes": nftables.ChainHookInput, "goes": nftables.ChainHookOutput} {
		c := base(name, nftables.ChainTypeFilter, hook, after)
		b.rule(c, &expr.Ct{Key: expr.CtKeySTATUS, Register: reg1},
			&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(ledAway), Xor: make([]byte, 4)},
			equal(reg1, make([]byte, 4)), done)
		dst := asked(expr.CtKeyDST, word0)
		b.rule(c, dst, way(word0+n), in(moved+atIP, word0), done)
		b.rule(c, append(append([]expr.Any{dst}, to(word0+n)...), in(moved+atOne, word0), done)...)
		b.rule(c, append(to(word0), in(moved+atAny, word0), done)...)
	}
	return nil
}

// ledAway is the bit of a connection's status that says that it was led to another address than it asked for.
const ledAway = 1 << 5

// countsThere reports whether the table is there, and is as this program makes it.
func (b *table) countsThere() bool {
	chains, err := b.conn.ListChainsOfTableFamily(b.nft)
	return err == nil && slices.ContainsFunc(chains, func(c *nftables.Chain) bool {
		return c.Table.Name == countsName && c.Name == countsLayout
	})
}

// count follows which frontends there are. Nobody is kept from being served because something cannot be counted.
func (b *Balance) count(s *side, d *delta) {
	if s.inForce == nil {
		s.counting = false
		return
	}
	var err error
	if s.counting {
		err = changeCounts(s.family, countersOf(d.uncounted), countersOf(d.counted))
	} else {
		err = keepCounts(s.family, countersOf(slices.Collect(maps.Keys(s.inForce.led))))
	}
	if s.counting = err == nil; err != nil {
		b.Log.Warn("what comes to services cannot be counted", "version", s.name, "error", err)
	}
}

func changeCounts(f *family, gone, come []element) error {
	if len(gone)+len(come) == 0 {
		return nil
	}
	b, err := newCounts(f)
	if err != nil {
		return err
	}
	return b.exchange(gone, come)
}

// exchange takes elements away and adds others, at once.
func (b *table) exchange(gone, come []element) error {
	if err := b.send(gone, b.conn.SetDeleteElements); err != nil {
		return err
	}
	if err := b.send(come, b.conn.SetAddElements); err != nil {
		return err
	}
	return b.conn.Flush()
}

// keepCounts has the table count what is wanted, and leaves what it has counted.
func keepCounts(f *family, wanted []element) error {
	b, err := newCounts(f)
	if err != nil {
		return err
	}
	var had []element
	if !b.countsThere() {
		if err := b.buildCounts(); err != nil {
			return err
		}
		return b.exchange(nil, wanted)
	}
	for name, set := range b.sets() {
		list, err := b.conn.GetSetElements(set)
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		for i := range list {
			had = append(had, element{set: name, key: string(list[i].Key)})
		}
	}
	return b.exchange(differ(had, wanted))
}

// Counts tells what came to services by this node so far, since each was first led to here.
func (b *Balance) Counts(ctx context.Context) ([]wire.ServiceCount, error) {
	sums := map[wire.ServiceEntrance]*wire.ServiceCount{}
	for _, s := range b.sides {
		b.mu.Lock()
		entrances := map[element]wire.ServiceEntrance{}
		if s.inForce != nil && s.counting {
			for k, f := range s.inForce.led {
				if at, key := k.counted(); at != "" {
					entrances[element{set: at, key: key}] = entranceOf(k, f.owner)
				}
			}
		}
		b.mu.Unlock()
		if len(entrances) == 0 {
			continue
		}
		t, err := newCounts(s.family)
		if err != nil {
			return nil, err
		}
		for _, at := range []string{atIP, atOne, atAny} {
			for _, of := range []string{begun, moved} {
				list, err := t.conn.GetSetElements(t.sets()[of+at])
				if err != nil {
					return nil, fmt.Errorf("read what was counted for %s: %w", s.name, err)
				}
				for i := range list {
					e := &list[i]
					if e.Counter == nil || e.Counter.Packets == 0 {
						continue
					}
					key, way := string(e.Key), ""
					if of == moved {
						key, way = key[:len(key)-4], key[len(key)-4:]
					}
					entrance, known := entrances[element{set: at, key: key}]
					if !known {
						continue // it came or went meanwhile
					}
					sum := sums[entrance]
					if sum == nil {
						sum = &wire.ServiceCount{ServiceEntrance: entrance}
						sums[entrance] = sum
					}
					switch way {
					case "":
						sum.Connections += e.Counter.Packets
					case direction(0):
						sum.Sent += e.Counter.Bytes
					default:
						sum.Received += e.Counter.Bytes
					}
				}
			}
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	out := make([]wire.ServiceCount, 0, len(sums))
	for _, c := range sums {
		out = append(out, *c)
	}
	slices.SortFunc(out, func(a, b wire.ServiceCount) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Instance, b.Instance), cmp.Compare(a.IP, b.IP), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
	})
	return out, nil
}

func entranceOf(k FrontendKey, owner source) (e wire.ServiceEntrance) {
	if owner.held {
		e.Instance = owner.id
	} else {
		e.Service = owner.id
	}
	if k.IP.IsValid() {
		e.IP = k.IP.String()
	}
	if e.Port = k.Port; k.Port != 0 {
		e.Protocol = map[uint8]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_SCTP: "sctp"}[k.Protocol]
	}
	return e
}
