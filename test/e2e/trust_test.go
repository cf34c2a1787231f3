//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/api/native"
)

// standing is what `tutti ca` tells.
type standing struct {
	Authority string   `json:"authority"`
	Retiring  string   `json:"retiring"`
	Waiting   []string `json:"waiting"`
	Locked    bool     `json:"locked"`
}

// write writes through all servers until the returned function is called, which fails the test unless
// every write was acknowledged and is there.
func write(t *testing.T) (end func()) {
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	var writers []*writer
	for _, s := range servers {
		for n := range 2 {
			w := &writer{server: s, number: 100 + n}
			writers = append(writers, w)
			running.Go(func() { w.run(ctx) })
		}
	}
	return func() {
		t.Helper()
		stop()
		running.Wait()
		acked := acknowledged(writers)
		for _, w := range writers {
			if w.failed > 0 {
				t.Errorf("%d writes through %s failed", w.failed, w.server)
			}
		}
		for _, s := range servers {
			wantKeys(t, acked, s)
		}
		t.Logf("%d writes, all acknowledged", len(acked))
	}
}

// TestAuthorityAndTokensAreReplacedUnderWrites is docs/operations.md, "Who may do what": no request fails, no
// container ends, and nobody has to do anything on the hosts.
func TestAuthorityAndTokensAreReplacedUnderWrites(t *testing.T) {
	pids := keep(t)
	running := pids()
	before := query[standing](t, "ca")
	tokens := tutti(t, "token") + tutti(t, "token", "--server")
	end := write(t)
	tutti(t, "token", "rotate")
	for _, kind := range [][]string{{"token"}, {"token", "--server"}} {
		if now := strings.TrimSpace(tutti(t, kind...)); strings.Contains(tokens, now) {
			t.Errorf("tutti %s prints the token of before", strings.Join(kind, " "))
		}
	}
	tutti(t, "ca", "rotate")
	refused(t, []string{"being replaced already"}, "ca", "rotate")
	moved := eventually(t, 30*time.Second, "every node has a certificate of the new authority", func() error {
		if now := query[standing](t, "ca"); len(now.Waiting) > 0 {
			return fmt.Errorf("%v have none", now.Waiting)
		}
		return nil
	})
	dropped := eventually(t, time.Minute, "the old authority is dropped", func() error {
		if now := query[standing](t, "ca"); now.Retiring != "" || now.Authority == before.Authority {
			return fmt.Errorf("it is %+v", now)
		}
		return nil
	})
	t.Logf("all nodes moved after %s, the old authority was dropped %s later", moved.Round(time.Millisecond), dropped.Round(time.Millisecond))
	time.Sleep(time.Second) // with the new one alone
	end()
	allWell(t, 10*time.Second)
	if now := pids(); !slices.Equal(now, running) {
		t.Errorf("the containers' processes are %v, want %v", now, running)
	}
}

// TestAutolockOnHosts restarts a server that needs the unlock key: it goes on replicating, refuses what
// needs the keys by name, and is unlocked.
func TestAutolockOnHosts(t *testing.T) {
	host := servers[1]
	at := []string{"--run-dir", filepath.Join(runDir, "hosts", host)}
	key := query[native.UnlockKey](t, "autolock", "on").Key
	t.Cleanup(func() {
		if out, err := run("autolock", "off"); err != nil {
			t.Errorf("turn autolock off: %v\n%s", err, out)
		}
	})
	nodeProcessRestarts(t, host)
	eventually(t, 15*time.Second, host+" is there again, and locked", func() error {
		now, err := tryQuery[standing](append([]string{"ca"}, at...)...)
		if err == nil && !now.Locked {
			err = errors.New("it is not locked")
		}
		return err
	})
	refused(t, []string{"unlock"}, append([]string{"token"}, at...)...)
	eventually(t, 15*time.Second, "all three servers vote", func() error { return voters(t) })
	unlock := func(key string) ([]byte, error) {
		cmd := exec.Command(program, append([]string{"unlock"}, at...)...)
		cmd.Env, cmd.Stdin = environment(), strings.NewReader(key+"\n")
		return cmd.CombinedOutput()
	}
	if out, err := unlock("not the key"); err == nil {
		t.Errorf("it was unlocked by something else: %s", out)
	}
	if out, err := unlock(key); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if token := tutti(t, append([]string{"token"}, at...)...); !strings.HasPrefix(token, "tutti1-") {
		t.Errorf("unlocked, it prints %q as a token", token)
	}
}

// TestKeysOfAComponent is docs/operations.md, "Keys", as far as a single host's commands go.
func TestKeysOfAComponent(t *testing.T) {
	first := strings.TrimSpace(tutti(t, "keys", "put", "/app/leader", "node-1", "--ttl", "30s", "--expect", "0"))
	refused(t, []string{"changed meanwhile"}, "keys", "put", "/app/leader", "node-2", "--expect", "0")
	tutti(t, "keys", "put", "/app/leader", "node-2", "--expect", first)
	if out := tutti(t, "keys", "get", "/app/leader", "--consistency", "linearizable"); out != "node-2" {
		t.Errorf("the key holds %q", out)
	}
	if out := tutti(t, "keys", "get", "/app/leader", "--revision", first); out != "node-1" {
		t.Errorf("at revision %s it held %q", first, out)
	}
	if out := tutti(t, "keys", "ls", "/app/"); !strings.Contains(out, "/app/leader") {
		t.Errorf("it is not listed:\n%s", out)
	}
	tutti(t, "keys", "rm", "--prefix", "/app/")
	if out := tutti(t, "audit", "--since", "1m"); !strings.Contains(out, "put /app/leader") || !strings.Contains(out, "delete /app/…") {
		t.Errorf("the audit log has no changes of keys:\n%s", out)
	}
	tutti(t, "user", "create", "component", "--role", "keys")
	if out := tutti(t, "user", "token", "component"); !strings.Contains(out, "tuttiuser1-") {
		t.Errorf("its token is %q", out)
	}
	tutti(t, "user", "rm", "component")
}
