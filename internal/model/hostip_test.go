package model_test

import (
	"testing"

	"github.com/tutti-run/tutti/internal/model"
)

func TestPortsOnOneAddress(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"", "", true}, {"", "127.0.0.1", true}, {"0.0.0.0", "127.0.0.1", true}, {"::", "127.0.0.1", true}, {"127.0.0.1", "127.0.0.1", true},
		{"127.0.0.1", "::ffff:127.0.0.1", true}, {"127.0.0.1", "192.0.2.1", false}, {"::1", "127.0.0.1", false},
	} {
		a, b := model.HostPort{Protocol: "tcp", Published: 80, HostIP: c.a}, model.HostPort{Protocol: "tcp", Published: 80, HostIP: c.b}
		if a.Clashes(&b) != c.same || b.Clashes(&a) != c.same {
			t.Errorf("port 80 of %q and of %q clash: %v", c.a, c.b, !c.same)
		}
		if b.Protocol = "udp"; a.Clashes(&b) {
			t.Error("ports of two protocols clash")
		}
	}
}
