package native

import (
	"net/http/httptest"
	"testing"
	"testing/synctest"
)

// What is watched is sent as soon as it is there, without waiting for more.
func TestWhatIsWatchedIsSentAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := httptest.NewRecorder()
		l := newLines(w)
		stop := l.sendAll(t.Context())
		for _, want := range []string{"1\n", "1\n2\n"} {
			if err := l.add(len(want) / 2); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if got := w.Body.String(); got != want || !w.Flushed {
				t.Errorf("%q is sent before any time has passed (flushed: %v), want %q", got, w.Flushed, want)
			}
		}
		stop()
		if err := l.add(3); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := w.Body.String(); got != "1\n2\n" {
			t.Errorf("after it was stopped %q is sent", got)
		}
	})
}
