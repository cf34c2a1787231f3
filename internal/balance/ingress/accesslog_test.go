package ingress

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/wire"
)

// accesses reads a log until it has some lines.
func accesses(t *testing.T, dir string, n int, r wire.AccessRequest) (out []wire.Access) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	enough := errors.New("enough")
	r.Options = driver.LogOptions{Tail: -1, Follow: true}
	p := &Process{Logs: dir}
	err := p.Access(ctx, r, func(e driver.LogEntry) error {
		var one wire.Access
		if err := json.Unmarshal(e.Line, &one); err != nil {
			t.Errorf("%q: %v", e.Line, err)
		}
		if out = append(out, one); len(out) == n {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) {
		t.Fatalf("read are %+v, then %v; want %d lines", out, err, n)
	}
	return out
}

// TestAccessLog has both readers of HTTP write lines, of routes that want them.
func TestAccessLog(t *testing.T) {
	hash, err := bcrypt.GenerateFromPassword([]byte("pw"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	a, quiet, guarded := leading("a", "", "shop/a", instance(t, "a1")), leading("quiet", "", "quiet", instance(t, "q")), leading("guarded", "", "guarded", instance(t, "g1"))
	a.AccessLog, a.ServiceID = true, "id-a"
	guarded.AccessLog, guarded.ServiceID, guarded.Protected, guarded.Users = true, "id-g", true, "ben:"+string(hash)+"\n"
	gone := leading("gone", "", "gone", nobody(t))
	gone.AccessLog, gone.ServiceID = true, "id-n"
	dir := t.TempDir()
	in, plain, _ := front(t, &Config{Logs: dir, Routes: []Route{a, quiet, guarded, gone}})
	defer in.access.Load().close()
	began := time.Now().Add(-time.Second)
	total := 0
	for name, client := range both(t) {
		long := strings.Repeat("x", accessText) + "and more"
		_, said, _ := request(t, client, "GET", "http://"+plain, "a", "/p?q=1", "", "User-Agent", "\"odd\" <"+name, "Referer", long)
		request(t, client, "GET", "http://"+plain, "quiet", "/", "")
		request(t, client, "GET", "http://"+plain, "nowhere", "/", "")
		request(t, client, "GET", "http://"+plain, "guarded", "/", "")
		request(t, client, "POST", "http://"+plain, "guarded", "/", "body", "Authorization", "Basic YmVuOnB3")
		_, no, _ := request(t, client, "GET", "http://"+plain, "gone", "/", "")
		total += 4
		list := accesses(t, dir, total, wire.AccessRequest{All: true})[total-4:]
		one := list[0]
		if one.Service != "shop/a" || one.Host != "a" || one.Client != "127.0.0.1" || one.Method != "GET" || one.Target != "/p?q=1" || one.Status != 200 ||
			one.Bytes != int64(len(said)) || one.Instance != "a1" || one.UserAgent != "\"odd\" <"+name || one.Referer != long[:accessText] || one.Time.Before(began) || one.Milliseconds <= 0 {
			t.Errorf("%s: %+v", name, one)
		}
		if one = list[1]; one.Service != "guarded" || one.Status != 401 || one.User != "" || one.Instance != "" {
			t.Errorf("%s, refused: %+v", name, one)
		}
		if one = list[3]; one.Status != 502 || one.Bytes != int64(len(no)) || one.Instance != "nobody" {
			t.Errorf("%s, of nobody: %+v", name, one)
		}
		if one = list[2]; one.Status != 200 || one.User != "ben" || one.Instance != "g1" || one.Method != "POST" {
			t.Errorf("%s, with a password: %+v", name, one)
		}
	}
	for _, one := range accesses(t, dir, total/4, wire.AccessRequest{Services: []string{"id-a"}}) {
		if one.Service != "shop/a" {
			t.Errorf("of the first service: %+v", one)
		}
	}
}

// TestASlowDiskHoldsUpNobody: what it has no room for is dropped, and told.
// TestALogThatCannotBeWrittenSaysSo as long as that is so.
func TestALogThatCannotBeWrittenSaysSo(t *testing.T) {
	full := make(chan error, 1)
	wrote := make(chan struct{})
	l := newAccessLog(func([]driver.LogEntry) error {
		wrote <- struct{}{}
		return <-full
	})
	p := newProxy()
	if got := p.accessState(); got != "ok" {
		t.Errorf("without a log it says %q", got)
	}
	p.access.Store(l)
	for _, err := range []error{errors.New("no space left on device"), nil} {
		l.lines <- accessed{"s", wire.Access{Service: "s"}}
		<-wrote
		full <- err
		want := "ok"
		if err != nil {
			want = err.Error()
		}
		deadline := time.Now().Add(30 * time.Second)
		for p.accessState() != want {
			if time.Now().After(deadline) {
				t.Fatalf("after %v it says %q", err, p.accessState())
			}
			time.Sleep(time.Millisecond)
		}
	}
	go func() {
		for range wrote {
			full <- nil
		}
	}()
	l.close()
	close(wrote)
}

func TestASlowDiskHoldsUpNobody(t *testing.T) {
	came, let, fails := make(chan struct{}, 1), make(chan struct{}), true
	var written []wire.Access
	l := newAccessLog(func(list []driver.LogEntry) error {
		select {
		case came <- struct{}{}:
		default:
		}
		<-let
		if fails {
			fails = false
			return errors.New("the disk is full")
		}
		for _, e := range list {
			var one wire.Access
			if err := json.Unmarshal(e.Line, &one); err != nil || e.Stream != "id" {
				t.Errorf("%q %q: %v", e.Stream, e.Line, err)
			}
			written = append(written, one)
		}
		return nil
	})
	a := leading("a", "", "shop/a")
	a.AccessLog, a.ServiceID = true, "id"
	p := newProxy()
	p.access.Store(l)
	p.put([]Route{a}, nil)
	ask := &asked{host: "a", headers: &fields{}}
	r := p.lead(ask)
	p.done(r, ask, 200, 1, time.Now())
	<-came // the first is being written, and the disk does nothing
	for range accessRoom + 5 {
		p.done(r, ask, 200, 1, time.Now())
	}
	close(let)
	l.close()
	select {
	case <-l.ended:
	case <-time.After(time.Minute):
		t.Fatal("the log does not end")
	}
	dropped := uint64(0)
	written = slices.DeleteFunc(written, func(one wire.Access) bool { dropped += one.Dropped; return one.Dropped > 0 })
	if len(written) != accessRoom || dropped != 6 {
		t.Errorf("%d lines are written, and %d said to be dropped; want %d and 6, one that could not be written and five without room", len(written), dropped, accessRoom)
	}
}
