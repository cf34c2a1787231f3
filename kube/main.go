// Command tutti-kube is Tutti's Kubernetes API server: that of the Kubernetes project, with its
// controllers, on the cluster's replicated key space. `tutti-kube kustomize DIR` prints what a
// kustomization comes to.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"github.com/tutti-run/tutti/kube/internal/apiserver"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	run := apiserver.Main
	if len(os.Args) == 3 && os.Args[1] == "kustomize" {
		run = kustomize
	}
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "tutti-kube:", err)
		os.Exit(1)
	}
}

// kustomize prints what the kustomization in a directory comes to. Nothing outside of it is read, and
// nothing is executed.
func kustomize(_ context.Context, args []string) error {
	made, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), args[1])
	if err != nil {
		return err
	}
	text, err := made.AsYaml()
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(text)
	return err
}
