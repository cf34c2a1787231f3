// Command tutti-kube is Tutti's Kubernetes API server: that of the Kubernetes project, with its
// controllers, on the cluster's replicated key space.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/tutti-run/tutti/kube/internal/apiserver"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := apiserver.Main(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "tutti-kube:", err)
		os.Exit(1)
	}
}
