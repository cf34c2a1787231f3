package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// marathonFiles reads the files if they are Marathon's; there are none if they are Compose's. What comes
// through the standard input is Marathon's.
func (d *deployFlags) marathonFiles(in io.Reader) ([]core.Manifest, error) {
	var files []core.Manifest
	var others []string
	for _, name := range d.Files {
		if name == "-" {
			body, err := io.ReadAll(in)
			if err != nil {
				return nil, fmt.Errorf("read the standard input: %w", err)
			}
			if !fromMarathon(body) {
				return nil, fault.New(fault.Unsupported, "the standard input holds none of Marathon's apps, pods and groups in JSON: give Compose files by name, as they refer to files beside them")
			}
			files = append(files, core.Manifest{Name: "standard input", Body: body})
			continue
		}
		body, err := os.ReadFile(name)
		if err != nil || !fromMarathon(body) {
			if err == nil && strings.HasSuffix(name, ".json") && !json.Valid(body) {
				return nil, fault.New(fault.Invalid, "%s: %s", name, syntax(body))
			}
			others = append(others, name) // the reader of Compose files says what is wrong with them
			continue
		}
		files = append(files, core.Manifest{Name: name, Body: body})
	}
	if len(files) == 0 {
		return nil, nil
	}
	switch {
	case len(others) > 0:
		return nil, fault.New(fault.Invalid, "%s is a file of Marathon's, and %s is none: deploy them one after the other", files[0].Name, others[0])
	case d.Name != "":
		return nil, fault.New(fault.Invalid, "%q cannot be given to a file of Marathon's, which has its ids: leave it out", d.Name)
	case len(d.Profiles)+len(d.EnvFiles) > 0:
		return nil, fault.New(fault.Invalid, "--profile and --env-file are for Compose files, and %s is one of Marathon's", files[0].Name)
	}
	return files, nil
}

// fromMarathon reports whether a file has the shape of an app, a pod or a group, or of an array of them.
func fromMarathon(body []byte) bool {
	body = bytes.TrimSpace(body)
	if bytes.HasPrefix(body, []byte("[")) {
		var list []json.RawMessage
		return json.Unmarshal(body, &list) == nil && len(list) > 0 && !slices.ContainsFunc(list, func(one json.RawMessage) bool { return !fromMarathon(one) })
	}
	var o map[string]json.RawMessage
	if json.Unmarshal(body, &o) != nil {
		return false
	}
	_, id := o["id"]
	_, services := o["services"]
	return id && !services
}

// syntax says where a body is no JSON.
func syntax(body []byte) string {
	var v any
	err := json.Unmarshal(body, &v)
	var at *json.SyntaxError
	if !errors.As(err, &at) {
		return fmt.Sprint(err)
	}
	before := body[:min(int(at.Offset), len(body))]
	return fmt.Sprintf("line %d: %v", bytes.Count(before, []byte("\n"))+1, err)
}

func (d *deployFlags) runMarathon(cmd *cobra.Command, g *globals, files []core.Manifest) error {
	ctx, out, errOut := cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	began := time.Now()
	return g.with(ctx, func(c *native.Client) error {
		stop := busy(errOut, func() string { return "deploying " + files[0].Name })
		results, err := c.DeployManifests(ctx, "marathon", core.Manifests{Files: files, DryRun: d.dryRun, KeepOthers: !d.prune})
		stop()
		if err != nil {
			return err
		}
		if g.structured() {
			out = errOut // the standard output is for the report
		}
		var reports []deployReport
		for i := range results {
			if len(results[i].Changes) > 0 {
				warn(errOut, results[i].Warnings)
				tellChanges(out, &results[i], d.dryRun)
				reports = append(reports, deployReport{DeployResult: results[i]})
			}
		}
		if !d.dryRun && !d.detach && len(reports) > 0 {
			var outcomes []outcome
			outcomes, err = d.awaitMarathon(ctx, g, c, results, out, errOut)
			for i := range reports {
				for _, o := range outcomes {
					if application, _ := model.SplitFullName(o.Name); application == reports[i].Application {
						reports[i].Outcomes = append(reports[i].Outcomes, o)
					}
				}
			}
			if err == nil {
				fmt.Fprintf(out, "%s deployed: %s ready after %s\n", paintFor(out).good("all is"), counted(len(outcomes), "workload"), tookText(time.Since(began)))
			}
		}
		if g.structured() {
			err = errors.Join(err, g.print(cmd.OutOrStdout(), reports, nil))
		}
		return err
	})
}

// awaitMarathon waits for the workloads that the files have.
func (d *deployFlags) awaitMarathon(ctx context.Context, g *globals, c *native.Client, results []core.DeployResult, out, errOut io.Writer) ([]outcome, error) {
	list, err := c.Workloads(ctx, "")
	if err != nil {
		return nil, err
	}
	var ids []string
	for i := range list {
		for _, r := range results {
			if r.Application == list[i].Application && slices.ContainsFunc(r.Changes, func(ch core.Change) bool {
				return ch.Kind == model.KindWorkload && ch.Name == list[i].Name && ch.Action != "removed"
			}) {
				ids = append(ids, list[i].ID)
			}
		}
	}
	if len(ids) == 0 {
		return nil, nil
	}
	goals := goalsOf(list, ids...)
	for i := range results {
		aim(goals, &results[i])
	}
	w := &waiter{g: g, client: c, goals: goals, board: boardFor(out)}
	return w.settle(ctx, d.timeout, "the deployment", errOut)
}
