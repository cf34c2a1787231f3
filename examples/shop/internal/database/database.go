// Package database opens the shop's PostgreSQL and survives its absence: connections are made
// when they are needed, each step has a short limit, and a step that lost its connection is
// tried once more on a new one.
package database

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/tutti-run/tutti/examples/shop/internal/service"
)

const (
	connectTimeout = time.Second
	stepTimeout    = 900 * time.Millisecond
)

// Database is the shop's PostgreSQL.
type Database struct{ pool *pgxpool.Pool }

// Open reads DB_HOST (postgres), DB_PORT (5432), DB_USER, DB_NAME (both shop) and the password
// in the file DB_PASSWORD_FILE (/run/secrets/db_password). It does not connect yet.
func Open(ctx context.Context) (*Database, error) {
	file := service.Setting("DB_PASSWORD_FILE", "/run/secrets/db_password")
	password, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the database's password: %w", err)
	}
	config, err := pgxpool.ParseConfig("sslmode=disable pool_max_conns=8 pool_max_conn_lifetime=5m pool_health_check_period=5s")
	if err != nil {
		return nil, fmt.Errorf("configure the database: %w", err)
	}
	var port uint16
	if _, err := fmt.Sscan(service.Setting("DB_PORT", "5432"), &port); err != nil {
		return nil, fmt.Errorf("read DB_PORT: %w", err)
	}
	conn := config.ConnConfig
	conn.Host = service.Setting("DB_HOST", "postgres")
	conn.Port = port
	conn.User = service.Setting("DB_USER", "shop")
	conn.Database = service.Setting("DB_NAME", "shop")
	conn.Password = strings.TrimRight(string(password), "\r\n")
	conn.Fallbacks = nil
	conn.ConnectTimeout = connectTimeout
	conn.DialFunc = (&net.Dialer{Timeout: connectTimeout}).DialContext
	conn.RuntimeParams["application_name"] = service.Instance()
	config.PingTimeout = stepTimeout / 2
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	return &Database{pool}, nil
}

// Close gives the connections back.
func (d *Database) Close() { d.pool.Close() }

// Do runs step in a transaction, and once more if the first attempt lost its connection or had no
// answer in time; so a step must be safe to run twice. It takes about two seconds at most.
func (d *Database) Do(ctx context.Context, step func(context.Context, pgx.Tx) error) error {
	err := d.once(ctx, step)
	if Away(err) && ctx.Err() == nil {
		d.pool.Reset() // the other idle connections led to the same place
		err = d.once(ctx, step)
	}
	return err
}

func (d *Database) once(ctx context.Context, step func(context.Context, pgx.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	return pgx.BeginFunc(ctx, d.pool, func(tx pgx.Tx) error { return step(ctx, tx) })
}

// Away says whether err means that the database could not be reached, is starting or is
// stopping, rather than that it disliked a statement.
func Away(err error) bool {
	if err == nil || errors.Is(err, pgx.ErrNoRows) || errors.Is(err, context.Canceled) {
		return false
	}
	var said *pgconn.PgError
	if errors.As(err, &said) {
		return strings.HasPrefix(said.Code, "08") || strings.HasPrefix(said.Code, "57P") || said.Code == "53300"
	}
	var network net.Error
	var connect *pgconn.ConnectError
	return errors.As(err, &connect) || errors.As(err, &network) || pgconn.SafeToRetry(err) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, net.ErrClosed) || lostConnection(err)
}

func lostConnection(err error) bool {
	text := err.Error()
	return strings.Contains(text, "unexpected EOF") || strings.Contains(text, "conn closed") || strings.Contains(text, "connection reset")
}
