package pods

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

func TestHasteEndsAndRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := 0
		h := &Haste{Begun: func() { begun++ }}
		h.TakeOver(time.Now())
		if h.Left() != 0 || begun != 0 {
			t.Errorf("who takes over from nobody has haste for %s", h.Left())
		}
		start := time.Now()
		time.Sleep(hasteFor + time.Nanosecond)
		h.TakeOver(start)
		time.Sleep(time.Second)
		h.Begin() // there is one
		if h.Left() != hasteFor-time.Second || begun != 1 {
			t.Errorf("haste for %s, begun %d times", h.Left(), begun)
		}
		time.Sleep(hasteFor + hasteRests - time.Second)
		if h.Begin(); h.Left() != 0 || begun != 1 {
			t.Errorf("haste again for %s before what waited had its turn", h.Left())
		}
		time.Sleep(time.Nanosecond)
		if h.Begin(); h.Left() != hasteFor || begun != 2 {
			t.Errorf("haste for %s after it had rested", h.Left())
		}
	})
}

type sent func(*http.Request) (*http.Response, error)

func (f sent) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestWhatNoPodNeedsWaitsInHaste(t *testing.T) {
	for _, c := range []struct {
		method, path string
		waits        bool
	}{
		{"PUT", "/apis/apps/v1/namespaces/default/deployments/web/status", true},
		{"PUT", "/apis/apps/v1/namespaces/default/deployments/web", false},
		{"PUT", "/apis/apps/v1/namespaces/default/deployments/status", false}, // one of that name
		{"PUT", "/apis/apps/v1/namespaces/default/replicasets/web-1/status", false},
		{"PUT", "/api/v1/namespaces/default/endpoints/web", true},
		{"POST", "/api/v1/namespaces/default/endpoints", true},
		{"GET", "/api/v1/namespaces/default/endpoints/web", false},
		{"PUT", "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/web-1", false},
		{"POST", "/api/v1/namespaces/default/pods", false},
		{"POST", "/api/v1/namespaces/endpoints/pods", false},
	} {
		synctest.Test(t, func(t *testing.T) {
			h := &Haste{}
			h.Begin()
			start := time.Now()
			var after time.Duration
			next := h.Wrap(sent(func(*http.Request) (*http.Response, error) {
				after = time.Since(start)
				return &http.Response{}, nil
			}))
			r, err := http.NewRequestWithContext(t.Context(), c.method, "https://server"+c.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := next.RoundTrip(r); err != nil {
				t.Fatal(err)
			}
			if waited := after == hasteFor; waited != c.waits || !waited && after != 0 {
				t.Errorf("%s %s is sent after %s", c.method, c.path, after)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		h := &Haste{}
		h.Begin()
		next := h.Wrap(sent(func(*http.Request) (*http.Response, error) { return nil, errors.New("it was sent") }))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, "PUT", "https://server/api/v1/namespaces/default/endpoints/web", nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := next.RoundTrip(r); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("what nobody waits for any more ends with %v", err)
		}
	})
}
