// Program answer serves HTTP at port 8080 and says which version it is: the text of /version in its image.
// One called bad is never healthy. With the argument check it is the health check of the one beside it, and
// with once it says a word and ends.
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "once" {
		fmt.Println("done")
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "check" {
		resp, err := http.Get("http://127.0.0.1:8080/health")
		if err != nil || resp.StatusCode != http.StatusOK {
			fmt.Println(resp, err)
			os.Exit(1)
		}
		return
	}
	text, err := os.ReadFile("/version")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	version := strings.TrimSpace(string(text))
	name, _ := os.Hostname() // only told
	server := &http.Server{Addr: ":8080", Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Shop-Version", version)
		w.Header().Set("X-Shop-Instance", name)
		if version == "bad" {
			w.WriteHeader(http.StatusInternalServerError)
		}
		fmt.Fprintln(w, version, name)
	})}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		time.Sleep(500 * time.Millisecond) // for requests whose connection was made before it was taken out of the traffic
		end, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		server.Shutdown(end)
		os.Exit(0)
	}()
	fmt.Fprintln(os.Stderr, server.ListenAndServe())
	if ctx.Err() == nil {
		os.Exit(1)
	}
	select {}
}
