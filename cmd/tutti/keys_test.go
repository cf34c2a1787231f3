package main

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
)

func TestKeys(t *testing.T) {
	c := newTown(t)
	c.server()
	put := func(args string) uint64 {
		t.Helper()
		out, _, err := c.tutti(strings.Fields("keys put " + args)...)
		revision, notNumber := strconv.ParseUint(strings.TrimSpace(out), 10, 64)
		if err != nil || notNumber != nil {
			t.Fatalf("keys put %s: %q, %v", args, out, err)
		}
		return revision
	}
	first := put("/app/a one --expect 0 --ttl 90s")
	put("/app/a two --expect " + strconv.FormatUint(first, 10))
	put("/app/b three")
	if _, _, err := c.tutti("keys", "put", "/app/a", "x", "--expect", "0"); !fault.Is(err, fault.Conflict) {
		t.Errorf("a key that exists was made: %v", err)
	}
	c.says("keys get /app/a", "two")
	c.says("keys get /app/a --consistency stale", "two")
	c.says("keys ls /app/ --consistency linearizable", "/app/b")
	if _, _, err := c.tutti("keys", "get", "/app/a", "--consistency", "odd"); err == nil || !strings.Contains(err.Error(), "linearizable and stale") {
		t.Errorf("an odd consistency gave %v", err)
	}
	c.says("keys get /app/a --revision "+strconv.FormatUint(first, 10), "one")
	c.says("keys get /app/a -o json", `"value": "dHdv"`, `"version": 2`)
	c.says("keys ls /app/", "/app/a   two", "/app/b   three")
	c.says("keys ls --revision "+strconv.FormatUint(first, 10), "/app/a   one     "+strconv.FormatUint(first, 10), "1m30s")
	out, rest, err := c.tutti("keys", "ls", "--limit", "1")
	if err != nil || !strings.HasPrefix(rest, "1 more; go on with --continue ") || strings.Contains(out, "/app/b") {
		t.Errorf("a page: %q, %q, %v", out, rest, err)
	}
	c.says("keys ls "+rest[strings.Index(rest, "--continue"):], "/app/b")
	c.says("keys rm --prefix /app/")
	if _, _, err := c.tutti("keys", "get", "/app/a"); !fault.Is(err, fault.NotFound) {
		t.Errorf("a removed key: %v", err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	root := rootCommand(&globals{})
	var seen strings.Builder
	root.SetOut(&seen)
	root.SetArgs([]string{"--run-dir", c.dir, "keys", "watch", "/app/", "--after", strconv.FormatUint(first-1, 10)})
	if err := root.ExecuteContext(ctx); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"created /app/a one", "changed /app/a two", "created /app/b three", "deleted /app/a", "deleted /app/b"} {
		if !strings.Contains(seen.String(), want) {
			t.Errorf("the watch lacks %q:\n%s", want, seen.String())
		}
	}
}
