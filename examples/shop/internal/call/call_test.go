package call

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"
)

func TestFirst(t *testing.T) {
	broken := errors.New("broken")
	hang := func(ctx context.Context) (int, error) { <-ctx.Done(); return 0, ctx.Err() }
	fail := func(context.Context) (int, error) { return 0, broken }
	give := func(n int) func(context.Context) (int, error) {
		return func(context.Context) (int, error) { return n, nil }
	}
	for _, c := range []struct {
		name  string
		tries []func(context.Context) (int, error)
		want  int
		err   error
	}{
		{"the first answers", []func(context.Context) (int, error){give(1), give(2)}, 1, nil},
		{"the first fails", []func(context.Context) (int, error){fail, give(2)}, 2, nil},
		{"the first hangs", []func(context.Context) (int, error){hang, give(2)}, 2, nil},
		{"hang, fail, answer", []func(context.Context) (int, error){hang, fail, give(3)}, 3, nil},
		{"all fail", []func(context.Context) (int, error){fail, fail, fail}, 0, broken},
		{"all hang", []func(context.Context) (int, error){hang, hang}, 0, context.DeadlineExceeded},
		{"hang and fail", []func(context.Context) (int, error){hang, fail}, 0, context.DeadlineExceeded},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			var n atomic.Int32
			got, err := first(ctx, len(c.tries), 5*time.Millisecond, func(ctx context.Context) (int, error) {
				return c.tries[n.Add(1)-1](ctx)
			}, nil)
			if got != c.want || !errors.Is(err, c.err) {
				t.Errorf("got %d, %v; want %d, %v", got, err, c.want, c.err)
			}
		})
	}
}

func TestFirstDropsLateResults(t *testing.T) {
	release, dropped := make(chan struct{}), make(chan int, 1)
	var n atomic.Int32
	got, err := first(t.Context(), 2, time.Millisecond, func(context.Context) (int, error) {
		if n.Add(1) == 1 {
			<-release
			return 1, nil
		}
		return 2, nil
	}, func(late int) { dropped <- late })
	if got != 2 || err != nil {
		t.Fatalf("got %d, %v", got, err)
	}
	close(release)
	if late := <-dropped; late != 1 {
		t.Errorf("dropped %d", late)
	}
}

func TestAsk(t *testing.T) {
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch n := asked.Add(1); r.URL.Path {
		case "/flaky":
			if n == 1 {
				http.Error(w, "not now", http.StatusServiceUnavailable)
				return
			}
			_, _ = w.Write([]byte(`{"n": 7}`))
		case "/wrong":
			w.WriteHeader(http.StatusConflict)
			_, _ = w.Write([]byte(`{"error": "the cart is empty"}`))
		case "/hangs":
			<-r.Context().Done()
		}
	}))
	defer server.Close()
	client := New(server.URL)

	var out struct{ N int }
	if _, err := client.Ask(t.Context(), "GET", "/flaky", nil, &out); err != nil || out.N != 7 {
		t.Errorf("flaky: %v, %+v", err, out)
	}
	asked.Store(0)
	var refusal *Refusal
	if _, err := client.Ask(t.Context(), "POST", "/wrong", out, nil); !errors.As(err, &refusal) || refusal.Status != 409 || refusal.Sentence != "the cart is empty" {
		t.Errorf("wrong: %v", err)
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("a refusal was asked for %d times", n)
	}
	asked.Store(0)
	began := time.Now()
	if _, err := client.Ask(t.Context(), "GET", "/hangs", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("hangs: %v", err)
	}
	if n := asked.Load(); n != maxAsks {
		t.Errorf("a service that hangs was asked %d times in %v", n, time.Since(began))
	}
}
