package consensus

import (
	"testing"
	"testing/synctest"
	"time"
)

// A read waits for the word of a server that is silent, and is then taken out: the read goes on with
// those that are left, and nothing waits for ever, the end least of all.
func TestAReadOutlivesTheServerItWaitsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := simulate(t, 2)
		if err := s.write(0, "before"); err != nil {
			t.Fatal(err)
		}
		s.transports[0].DisconnectAll()
		s.transports[1].DisconnectAll()
		read := make(chan error, 1)
		go func() { read <- s.rafts[0].Sync(t.Context()) }()
		synctest.Wait()
		if err := s.rafts[0].RemoveServer(t.Context(), "s1"); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-read:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Error("the read waits for ever")
		}
		s.end()
	})
}
