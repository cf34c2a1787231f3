package access

import (
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
)

func TestReadEnd(t *testing.T) {
	for text, want := range map[string]string{
		"0100007F:1F90":                         "127.0.0.1:8080",
		"0000000000000000FFFF00000100007F:0050": "127.0.0.1:80",
	} {
		if got := readEnd([]byte(text)); got != netip.MustParseAddrPort(want) {
			t.Errorf("%s is read as %s, want %s", text, got, want)
		}
	}
	for _, text := range []string{"", "x", "0100007F", "zz:1", "0100:1"} {
		if got := readEnd([]byte(text)); got.IsValid() {
			t.Errorf("%q is read as %s", text, got)
		}
	}
}

// TestOwn holds that a connection of this very process is let through, and that its owner is known.
func TestOwn(t *testing.T) {
	inner, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := Own(inner)
	defer l.Close()
	c, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if uid, err := ownerOf(got); err != nil || int(uid) != os.Geteuid() {
		t.Errorf("the owner is %d, %v; want %d", uid, err, os.Geteuid())
	}
	if _, err := io.WriteString(got, "hello"); err != nil {
		t.Error(err)
	}
}
