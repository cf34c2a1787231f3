package wire

import (
	"net/http"
	"strings"
	"testing"

	"github.com/tutti-run/tutti/internal/fault"
)

func TestNodesOfNeighbouringVersionsUnderstandEachOther(t *testing.T) {
	versions := map[string]span{"first": {1, 1}, "second": {2, 1}, "third": {3, 2}, "fourth": {4, 3}}
	understand := map[string]bool{"first second": true, "second third": true, "third fourth": true}
	for a, sa := range versions {
		for b, sb := range versions {
			h := http.Header{}
			sa.tell(h)
			err := sb.check(h)
			want := a == b || understand[a+" "+b] || understand[b+" "+a]
			if (err == nil) != want {
				t.Errorf("%s asks %s: %v, want understood %t", a, b, err, want)
			}
			if err != nil && (!fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "upgrade the older one")) {
				t.Errorf("%s asks %s: %v", a, b, err)
			}
		}
	}
	if err := ownSpan.check(http.Header{}); err != nil {
		t.Errorf("without a mark: %v", err)
	}
	if err := ownSpan.check(http.Header{headerProtocol: {"new"}}); !fault.Is(err, fault.Invalid) {
		t.Errorf("with a mark that cannot be read: %v", err)
	}
}
