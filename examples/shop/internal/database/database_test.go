package database

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

func TestAway(t *testing.T) {
	for _, c := range []struct {
		err  error
		away bool
	}{
		{nil, false},
		{pgx.ErrNoRows, false},
		{context.Canceled, false},
		{errors.New("the cart is empty"), false},
		{&pgconn.PgError{Code: "23505"}, false},              // unique violation
		{&pgconn.PgError{Code: "57P01"}, true},               // stopped by the administrator
		{&pgconn.PgError{Code: "57P03"}, true},               // starting up
		{fmt.Errorf("begin: %w", io.ErrUnexpectedEOF), true}, // killed
		{fmt.Errorf("ask: %w", context.DeadlineExceeded), true},
		{&net.OpError{Op: "dial", Err: errors.New("no route to host")}, true},
	} {
		if got := Away(c.err); got != c.away {
			t.Errorf("Away(%v) = %v", c.err, got)
		}
	}
}

// A database that accepts connections and then says nothing is how a host that lost its power looks.
func TestDoGivesUpInTime(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	secret := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(secret, []byte("x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	t.Setenv("DB_PASSWORD_FILE", secret)
	t.Setenv("DB_HOST", "127.0.0.1")
	t.Setenv("DB_PORT", port)
	db, err := Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	began := time.Now()
	err = db.Do(t.Context(), func(context.Context, pgx.Tx) error { return nil })
	if !Away(err) {
		t.Errorf("a silent database gave %v", err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("a silent database took %v", took)
	}
}
