package service

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"
)

func start(t *testing.T, drain time.Duration, handler http.HandlerFunc) (address string, stop context.CancelFunc, ended chan error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended = make(chan error, 1)
	go func() { ended <- serve(ctx, slog.New(slog.DiscardHandler), listener, drain, handler) }()
	return listener.Addr().String(), stop, ended
}

func TestServeFinishesWhatIsInFlight(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	address, stop, ended := start(t, time.Millisecond, func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-release
		_, _ = io.WriteString(w, "done")
	})
	body := make(chan string, 1)
	go func() {
		answer, err := http.Get("http://" + address + "/slow")
		if err != nil {
			body <- err.Error()
			return
		}
		defer answer.Body.Close()
		text, _ := io.ReadAll(answer.Body)
		body <- string(text)
	}()
	<-entered
	stop()
	time.Sleep(50 * time.Millisecond)
	close(release)
	if got := <-body; got != "done" {
		t.Errorf("request in flight got %q", got)
	}
	if err := <-ended; err != nil {
		t.Errorf("serve: %v", err)
	}
}

func TestServeAnswersWhileItLeaves(t *testing.T) {
	address, stop, ended := start(t, 300*time.Millisecond, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "hello")
	})
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ask := func(conn net.Conn) *http.Response {
		t.Helper()
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: shop\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.ReadAll(answer.Body)
		return answer
	}
	if answer := ask(conn); answer.Close {
		t.Error("the connection was closed though the service stays")
	}
	stop()
	time.Sleep(50 * time.Millisecond)
	if answer := ask(conn); !answer.Close || answer.StatusCode != http.StatusOK {
		t.Errorf("kept connection while leaving: status %d, close %v", answer.StatusCode, answer.Close)
	}
	fresh, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatalf("new connection while leaving: %v", err)
	}
	defer fresh.Close()
	if answer := ask(fresh); answer.StatusCode != http.StatusOK {
		t.Errorf("new connection while leaving: status %d", answer.StatusCode)
	}
	if err := <-ended; err != nil {
		t.Errorf("serve: %v", err)
	}
}

func TestHealth(t *testing.T) {
	address, stop, ended := start(t, 0, func(http.ResponseWriter, *http.Request) {})
	if err := checkHealth("http://" + address + "/healthz"); err != nil {
		t.Error(err)
	}
	t.Setenv("SHOP_BROKEN", "health")
	if err := checkHealth("http://" + address + "/healthz"); err == nil {
		t.Error("a service that is broken on purpose said that it is well")
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("serve: %v", err)
	}
}
