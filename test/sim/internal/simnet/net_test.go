package simnet

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// connected returns both ends of a connection between two hosts.
func connected(t *testing.T, n *Net) (a, b net.Conn) {
	t.Helper()
	from, to := n.Up("a"), n.Up("b")
	l, err := to.Listen(t.Context(), "b:1")
	if err != nil {
		t.Fatal(err)
	}
	if a, err = from.Dial(t.Context(), "b:1"); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func TestBytesArriveInOrderWhateverTheWeather(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		a, b := connected(t, n)
		n.SetWeather(Weather{Latency: time.Millisecond, Jitter: 50 * time.Millisecond, Loss: 0.3, Late: 0.3, LateBy: time.Second})
		rnd := rand.New(rand.NewPCG(1, 1))
		var sent bytes.Buffer
		for range 200 {
			data := make([]byte, 1+rnd.IntN(100))
			data[0] = byte(rnd.Uint32())
			sent.Write(data)
			if _, err := a.Write(data); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(rnd.IntN(int(10 * time.Millisecond))))
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(b)
		if err != nil || !bytes.Equal(got, sent.Bytes()) {
			t.Errorf("%d of %d bytes arrived, or in another order: %v", len(got), sent.Len(), err)
		}
		b.Close()
		time.Sleep(time.Minute)
		if n.Open() != 0 {
			t.Errorf("%d connections are left", n.Open())
		}
	})
}

func TestACutHoldsUpAndThenEndsConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		a, b := connected(t, n)
		n.Cut("a", "b")
		if _, err := a.Write([]byte("late")); err != nil {
			t.Fatal(err)
		}
		if err := b.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Read(make([]byte, 4)); err == nil {
			t.Error("something came through the cut")
		}
		n.HealAll()
		if err := b.SetReadDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 4)
		if _, err := io.ReadFull(b, got); err != nil || string(got) != "late" {
			t.Errorf("after the cut came %q, %v", got, err)
		}
		n.Cut("b", "a")
		n.Cut("a", "b")
		began := time.Now()
		if _, err := a.Write([]byte("lost")); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Read(got); err == nil || time.Since(began) > keepAliveEnd+time.Second {
			t.Errorf("the connection ended after %s with %v", time.Since(began), err)
		}
		a.Close()
		b.Close()
		time.Sleep(time.Minute)
	})
}

func TestADeadProcessReachesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		old := n.Up("a")
		to := n.Up("b")
		if _, err := to.Listen(t.Context(), "b:1"); err != nil {
			t.Fatal(err)
		}
		n.Down("a", false)
		n.Up("a")
		if _, err := old.Dial(context.Background(), "b:1"); err == nil {
			t.Error("the process of before connected")
		}
	})
}
