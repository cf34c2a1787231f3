package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v4"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/node"
)

// manifest is one object of Kubernetes.
type manifest struct {
	file       string
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
	} `json:"metadata"`
	body []byte // JSON
}

func (m *manifest) String() string { return strings.ToLower(m.Kind) + "/" + m.Metadata.Name }

// kustomizations are the names of files that make a directory a kustomization.
var kustomizations = []string{"kustomization.yaml", "kustomization.yml", "Kustomization"}

// kubernetesFiles reads the files if they are Kubernetes' manifests, or directories of them; there are none
// if they are others'. What came through the standard input is returned, for who reads it otherwise.
func (d *deployFlags) kubernetesFiles(ctx context.Context, in io.Reader) (list []manifest, rest io.Reader, err error) {
	var others []string
	rest = in
	for _, name := range d.Files {
		var found []manifest
		if name == "-" {
			body, err := io.ReadAll(in)
			if err != nil {
				return nil, nil, fmt.Errorf("read the standard input: %w", err)
			}
			rest = bytes.NewReader(body)
			found, err = manifestsIn("standard input", body)
			if err != nil {
				return nil, nil, err
			}
		} else if found, err = kubernetesFile(ctx, name); err != nil {
			return nil, nil, err
		}
		if len(found) == 0 {
			others = append(others, name)
		}
		list = append(list, found...)
	}
	switch {
	case len(list) == 0:
		return nil, rest, nil
	case len(others) > 0:
		return nil, nil, fault.New(fault.Invalid, "%s holds manifests of Kubernetes, and %s holds none: deploy them one after the other", list[0].file, others[0])
	case d.Name != "":
		return nil, nil, fault.New(fault.Invalid, "%q cannot be given to manifests of Kubernetes, which have their names: leave it out", d.Name)
	case len(d.Profiles)+len(d.EnvFiles) > 0:
		return nil, nil, fault.New(fault.Invalid, "--profile and --env-file are for Compose files, and %s holds manifests of Kubernetes", list[0].file)
	}
	// What others need comes first; the rest stays in the order of the files.
	rank := map[string]int{"Namespace": -2, "CustomResourceDefinition": -1}
	slices.SortStableFunc(list, func(a, b manifest) int { return cmp.Compare(rank[a.Kind], rank[b.Kind]) })
	return list, rest, nil
}

// kubernetesFile reads a file, a directory of files or a kustomization.
func kubernetesFile(ctx context.Context, name string) ([]manifest, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, nil // the reader of Compose files says so
	}
	if !info.IsDir() {
		body, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		return manifestsIn(name, body)
	}
	for _, k := range kustomizations {
		if _, err := os.Stat(filepath.Join(name, k)); err == nil {
			return kustomize(ctx, name)
		}
	}
	entries, err := os.ReadDir(name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	var list []manifest
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); e.IsDir() || ext != ".yaml" && ext != ".yml" && ext != ".json" {
			continue
		}
		body, err := os.ReadFile(filepath.Join(name, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		found, err := manifestsIn(filepath.Join(name, e.Name()), body)
		if err != nil {
			return nil, err
		}
		list = append(list, found...)
	}
	if len(list) == 0 {
		return nil, fault.New(fault.Invalid, "%s is a directory without manifests of Kubernetes or a kustomization: give a file", name)
	}
	return list, nil
}

// kustomize has the program for Kubernetes' API put a kustomization together.
func kustomize(ctx context.Context, dir string) ([]manifest, error) {
	program, err := node.FindKubernetes("")
	if err != nil {
		return nil, err
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, program, "kustomize", dir)
	cmd.Stderr = &said
	body, err := cmd.Output()
	if err != nil {
		return nil, fault.New(fault.Invalid, "%s: %s", dir, strings.TrimPrefix(cmp.Or(strings.TrimSpace(said.String()), err.Error()), "tutti-kube: "))
	}
	return manifestsIn(dir, body)
}

// manifestsIn returns the objects of Kubernetes in a file; none if it does not begin with one.
func manifestsIn(file string, body []byte) ([]manifest, error) {
	var list []manifest
	documents := yaml.NewDecoder(bytes.NewReader(body))
	for {
		var o map[string]any
		switch err := documents.Decode(&o); {
		case errors.Is(err, io.EOF):
			return list, nil
		case err != nil && len(list) == 0:
			return nil, nil // somebody else's, or nobody's
		case err != nil:
			return nil, fault.New(fault.Invalid, "%s: %v", file, err)
		}
		if o == nil {
			continue
		}
		found, err := manifestsOf(file, o)
		switch {
		case err != nil:
			return nil, err
		case found == nil && len(list) == 0:
			return nil, nil
		case found == nil:
			return nil, fault.New(fault.Invalid, "%s: an object after %s has no apiVersion, kind or metadata.name", file, &list[len(list)-1])
		}
		list = append(list, found...)
	}
}

func manifestsOf(file string, o map[string]any) ([]manifest, error) {
	if items, ok := o["items"].([]any); ok && o["apiVersion"] != nil {
		var list []manifest
		for _, item := range items {
			one, _ := item.(map[string]any)
			found, err := manifestsOf(file, one)
			if err == nil && found == nil {
				err = fault.New(fault.Invalid, "%s: a member of a list has no apiVersion, kind or metadata.name", file)
			}
			if err != nil {
				return nil, err
			}
			list = append(list, found...)
		}
		return list, nil
	}
	m := manifest{file: file}
	body, err := json.Marshal(o)
	if err != nil || json.Unmarshal(body, &m) != nil || m.APIVersion == "" || m.Kind == "" || m.Metadata.Name == "" {
		return nil, nil
	}
	m.body = body
	return []manifest{m}, nil
}

// applied is what became of one manifest.
type applied struct {
	Object    string `json:"object"`
	Namespace string `json:"namespace,omitempty"`
	Action    string `json:"action"`
	Detail    string `json:"detail,omitempty"` // why it is not ready yet, when that was waited for
}

func (d *deployFlags) runKubernetes(cmd *cobra.Command, g *globals, list []manifest) error {
	ctx, out, errOut := cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	if cmd.Flags().Changed("prune") && d.prune {
		return fault.New(fault.Unsupported, "--prune is not for manifests of Kubernetes, which are not an application: delete what is not wanted any more")
	}
	if g.structured() {
		out = errOut // the standard output is for the report
	}
	began := time.Now()
	path := os.Getenv("KUBECONFIG")
	if g.Host == "" {
		if err := g.with(ctx, func(c *native.Client) (err error) {
			path, err = g.kubeconfig(ctx, filepath.Dir(c.Socket()))
			return err
		}); err != nil {
			return err
		}
	}
	if path == "" {
		return fault.New(fault.Unavailable, "%s holds manifests of Kubernetes, whose API is not answered here: `tutti kubernetes enable`; with --host, set KUBECONFIG", list[0].file)
	}
	api, err := openKubernetes(path)
	if err != nil {
		return err
	}
	defer api.close()
	api.namespace = cmp.Or(g.Namespace, "default")
	var report []*applied
	var waits []*applying
	same := 0
	for i := range list {
		a, err := api.apply(ctx, &list[i], d.dryRun)
		if err != nil {
			return fmt.Errorf("%s: %s: %w", list[i].file, &list[i], err)
		}
		report, waits = append(report, &a.applied), append(waits, a)
		if a.Action == "unchanged" {
			same++
			continue
		}
		action := a.Action
		if d.dryRun {
			action = "would be " + action
		}
		fmt.Fprintf(out, "%s %s\n", a.Object, action)
	}
	if same > 0 {
		fmt.Fprintf(out, "%d of %s are as they were\n", same, counted(len(list), "object"))
	}
	if !d.dryRun && !d.detach {
		stop := busy(errOut, func() string { return "waiting for " + counted(len(list), "object") })
		err = api.await(ctx, waits, d.timeout)
		stop()
		if err == nil {
			fmt.Fprintf(out, "%s deployed: %s as wanted after %s\n", paintFor(out).good("all is"), counted(len(list), "object"), tookText(time.Since(began)))
		}
	}
	if g.structured() {
		err = errors.Join(err, g.print(cmd.OutOrStdout(), report, nil))
	}
	return err
}

// podReference makes "pod/NAME", which is how kubectl calls a Pod, what the cluster calls it.
func podReference(ref string) string {
	for _, kind := range []string{"pod/", "pods/", "po/"} {
		if name, ok := strings.CutPrefix(ref, kind); ok {
			return "kubernetes/" + name
		}
	}
	return ref
}
