// Package service is what every process of the shop shares: it starts, answers HTTP, says that
// it is healthy, and leaves without dropping a request.
//
// In flows a handler; out flows a process that obeys SIGTERM and SIGINT: it goes on answering
// for a moment, so that load balancers can take notice, with "Connection: close" on every
// answer, then finishes what is in flight and exits with 0.
package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"
)

// InstanceHeader names, on every answer, the instance that gave it.
const InstanceHeader = "X-Shop-Instance"

// Main runs one service of the shop as this process and does not return. The argument
// "healthcheck" asks the service that runs in the same container how it is, and exits with 0
// when it is well and 1 otherwise. The context that run gets ends with SIGTERM or SIGINT.
func Main(name string, run func(context.Context, *slog.Logger) error) {
	log := slog.New(slog.NewTextHandler(os.Stdout, nil)).With("service", name, "instance", Instance())
	if len(os.Args) > 1 && os.Args[1] == "healthcheck" {
		if err := checkHealth("http://127.0.0.1:" + Setting("PORT", "8080") + "/healthz"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := run(ctx, log)
	stop()
	if err != nil {
		log.Error("service failed", "error", err)
		os.Exit(1)
	}
	log.Info("service stopped")
}

// Setting is the environment variable of that name, or fallback where it is unset or empty.
func Setting(name, fallback string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return fallback
}

// Instance is the name of the container that this process runs in.
func Instance() string {
	name, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return name
}

// Serve answers HTTP on PORT (8080) until ctx ends, goes on for DRAIN_FOR (2s), then finishes
// the requests in flight, for five seconds at most. It adds /healthz, which says only that this
// process can answer: a database that is away does not make its clients unhealthy.
func Serve(ctx context.Context, log *slog.Logger, handler http.Handler) error {
	listener, err := net.Listen("tcp", net.JoinHostPort("", Setting("PORT", "8080")))
	if err != nil {
		return fmt.Errorf("listen for requests: %w", err)
	}
	drain, err := time.ParseDuration(Setting("DRAIN_FOR", "2s"))
	if err != nil {
		return fmt.Errorf("read DRAIN_FOR: %w", err)
	}
	return serve(ctx, log, listener, drain, handler)
}

func serve(ctx context.Context, log *slog.Logger, listener net.Listener, drain time.Duration, handler http.Handler) error {
	var leaving atomic.Bool
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if Setting("SHOP_BROKEN", "") == "health" { // an image that is bad on purpose sets this
			http.Error(w, "broken on purpose", http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.Handle("/", handler)
	instance := Instance()
	server := &http.Server{
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set(InstanceHeader, instance)
			if leaving.Load() {
				w.Header().Set("Connection", "close")
			}
			mux.ServeHTTP(w, r)
		}),
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	log.Info("service ready", "address", listener.Addr().String())

	select {
	case err := <-ended:
		return fmt.Errorf("answer requests: %w", err)
	case <-ctx.Done():
	}
	log.Info("service leaves", "drain", drain)
	leaving.Store(true)
	select {
	case err := <-ended:
		return fmt.Errorf("answer requests: %w", err)
	case <-time.After(drain):
	}
	finish, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := server.Shutdown(finish); err != nil {
		return fmt.Errorf("finish requests in flight: %w", err)
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("answer requests: %w", err)
	}
	return nil
}

// Answer writes value as JSON.
func Answer(w http.ResponseWriter, status int, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // a caller that has gone needs no answer
}

// Refuse answers with a sentence: one that the caller can act on.
func Refuse(w http.ResponseWriter, status int, sentence string) {
	Answer(w, status, map[string]string{"error": sentence})
}

func checkHealth(url string) error {
	client := http.Client{Timeout: time.Second}
	answer, err := client.Get(url)
	if err != nil {
		return fmt.Errorf("ask for health: %w", err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("ask for health: answered %s", answer.Status)
	}
	return nil
}
