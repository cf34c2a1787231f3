package server

import (
	"strings"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/consensus"
)

var noon = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

// servers reads a letter for each, called a, b, c …: l is alive and has a vote, n is alive and has none, d and x have
// been dead for an hour with and without a vote, r has been for a second, with one.
func servers(letters string) (out []memberView) {
	for i, c := range letters {
		name := string(rune('a' + i))
		m := memberView{Server: consensus.Server{ID: name, Voter: strings.ContainsRune("ldr", c)}, Name: name, Known: true, Live: c == 'l' || c == 'n'}
		switch c {
		case 'd', 'x':
			m.Since = noon.Add(-time.Hour)
		case 'r':
			m.Since = noon.Add(-time.Second)
		}
		out = append(out, m)
	}
	return out
}

func TestWhoCanLoseTheVote(t *testing.T) {
	for _, c := range []struct {
		servers, id string
		refused     bool
	}{
		{"l", "a", true},
		{"ll", "a", false},
		{"ld", "a", true},
		{"ld", "b", false},
		{"lll", "a", false},
		{"lld", "c", false},
		{"lld", "a", true}, // one of two would be left
		{"llld", "a", false},
		{"lllddd", "a", true},
		{"lnnn", "a", true},
		{"lln", "c", false}, // has none
		{"ll", "z", false},
	} {
		if why := lossRefused(servers(c.servers), c.id); (why != "") != c.refused {
			t.Errorf("of %s, %s: %q, want refused %t", c.servers, c.id, why, c.refused)
		}
	}
}

func TestDeadServersAreRemovedWhenTheyWereReplaced(t *testing.T) {
	for _, c := range []struct {
		servers, want string
	}{
		{"lll", ""},
		{"lld", ""},     // two would be left
		{"llnd", ""},    // its replacement has no vote yet
		{"llld", "d"},   // replaced
		{"lllr", ""},    // may come back
		{"lllld", "e"},  // of five
		{"llldd", "d"},  // one after the other
		{"lldd", ""},    // no majority anyway
		{"lldddd", ""},  // neither here
		{"lllx", "d"},   // had no vote
		{"lllxd", "d"},  // the same
		{"llx", "c"},    // the same
		{"lllddx", "d"}, // whatever comes first
		{"llllll", ""},
	} {
		if got := longDead(servers(c.servers), noon, time.Minute); got != c.want {
			t.Errorf("of %s %q is removed, want %q", c.servers, got, c.want)
		}
		if got := longDead(servers(c.servers), noon, 0); got != "" {
			t.Errorf("of %s %q is removed although none is to be", c.servers, got)
		}
	}
}
