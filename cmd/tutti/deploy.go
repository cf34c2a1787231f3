package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/compose"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/model"
)

// deployFlags are those of deploy.
type deployFlags struct {
	compose.Options
	waiting
	dryRun bool
	prune  bool
}

// deployReport is what deploy prints for programs.
type deployReport struct {
	core.DeployResult
	Outcomes []outcome `json:"outcomes,omitempty"`
}

func deployCommand(g *globals) *cobra.Command {
	d := &deployFlags{}
	cmd := &cobra.Command{
		Use:   "deploy [-f FILE]… [NAME]",
		Short: "Make run what Compose files, Marathon's or Kubernetes' manifests say, or change it to that",
		Long: "Make an application run as Compose files say, or change it to that, and wait until all of it\n" +
			"is ready. Members that the files do not have any more are removed, volumes excepted. Without\n" +
			"-f, compose.yaml of the current directory is read; without NAME, the application is called as\n" +
			"the files say or as the directory.\n\n" +
			"Files may also hold Marathon's apps, pods and groups, in JSON. What a group does not have any more\n" +
			"is removed; an app or a pod is changed alone. They are named by their ids.\n\n" +
			"Files, or directories, may hold manifests of Kubernetes, too, and a directory a kustomization. They are applied by the\n" +
			"server, and fields that others have set are taken over; nothing is removed.\n\n" +
			"The exit code is 0 only when every workload is ready or, a job, has completed.",
		Example: "  tutti deploy shop\n  tutti deploy -f compose.yaml -f production.yaml shop\n" +
			"  tutti deploy -f compose.yaml --dry-run shop\n  tutti deploy -f compose.yaml -d shop\n" +
			"  tutti deploy -f marathon.json\n  tutti deploy -f kubernetes/\n  curl https://example.com/app.json | tutti deploy -f -",
		Args: arguments(0, 1, "one name"), ValidArgsFunction: g.complete(1, applicationNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				d.Name = args[0]
			}
			return d.run(cmd, g)
		},
	}
	f := cmd.Flags()
	f.StringArrayVarP(&d.Files, "file", "f", nil, "Compose file, later ones override earlier ones; or file of Marathon's, or of Kubernetes' manifests; - is the standard input")
	f.StringArrayVar(&d.Profiles, "profile", nil, "profile to enable; may be repeated")
	f.StringArrayVar(&d.EnvFiles, "env-file", nil, "file of variables for the Compose files; may be repeated")
	f.BoolVar(&d.dryRun, "dry-run", false, "check everything, say what would change, and change nothing")
	f.BoolVar(&d.prune, "prune", true, "remove members that the files do not have any more")
	d.bind(f)
	return cmd
}

func (d *deployFlags) run(cmd *cobra.Command, g *globals) error {
	ctx, errOut := cmd.Context(), cmd.ErrOrStderr()
	began := time.Now()
	d.Environment = os.Environ()
	manifests, in, err := d.kubernetesFiles(ctx, cmd.InOrStdin())
	if err != nil {
		return err
	}
	if len(manifests) > 0 {
		return d.runKubernetes(cmd, g, manifests)
	}
	files, err := d.marathonFiles(in)
	if err != nil {
		return err
	}
	if len(files) > 0 {
		return d.runMarathon(cmd, g, files)
	}
	project, err := compose.Load(ctx, d.Options)
	if err != nil {
		return err
	}
	warn(errOut, project.Warnings)
	project.Deployment.DryRun, project.Deployment.KeepOthers = d.dryRun, !d.prune
	return g.with(ctx, func(c *native.Client) error {
		name := project.Deployment.Application
		stop := busy(errOut, func() string { return "deploying " + name })
		result, err := c.Deploy(ctx, project.Deployment)
		stop()
		if err != nil {
			return err
		}
		warn(errOut, result.Warnings)
		out := cmd.OutOrStdout()
		if g.structured() {
			out = errOut // the standard output is for the report
		}
		tellChanges(out, &result, d.dryRun)
		report := deployReport{DeployResult: result}
		if !d.dryRun && !d.detach {
			report.Outcomes, err = d.await(ctx, g, c, &result, out, errOut)
			if err == nil {
				tellDone(ctx, c, out, name, report.Outcomes, time.Since(began))
			}
		}
		if g.structured() {
			err = errors.Join(err, g.print(cmd.OutOrStdout(), report, nil))
		}
		return err
	})
}

func warn(w io.Writer, warnings []string) {
	for _, text := range warnings {
		fmt.Fprintf(w, "%s %s\n", paintFor(w).busy("warning:"), text)
	}
}

// tellChanges says what was changed, or would be.
func tellChanges(w io.Writer, r *core.DeployResult, dry bool) {
	same := 0
	for _, ch := range r.Changes {
		if ch.Action == "unchanged" {
			same++
			continue
		}
		action := ch.Action
		if dry {
			action = "would be " + action
		}
		fmt.Fprintf(w, "%s %s/%s %s\n", ch.Kind, r.Application, ch.Name, action)
	}
	if same == len(r.Changes) {
		fmt.Fprintf(w, "%s is as the files say; nothing was changed\n", r.Application)
	} else if same > 0 {
		fmt.Fprintf(w, "%d of its objects are as they were\n", same)
	}
}

func (d *deployFlags) await(ctx context.Context, g *globals, c *native.Client, r *core.DeployResult, out, errOut io.Writer) ([]outcome, error) {
	name := r.Application
	list, err := c.Workloads(ctx, name)
	if err != nil {
		return nil, err
	}
	goals := goalsOf(list)
	aim(goals, r)
	w := &waiter{g: g, client: c, goals: goals, board: boardFor(out)}
	return w.settle(ctx, d.timeout, "the deployment of "+name, errOut)
}

// aim lets goals be the revisions that a deployment has made: it may have been rolled back by now.
func aim(goals []goal, r *core.DeployResult) {
	for _, ch := range r.Changes {
		full := (&model.Meta{Application: r.Application, Name: ch.Name}).FullName()
		for i := range goals {
			if ch.Revision != "" && goals[i].name == full {
				goals[i].revision = ch.Revision
			}
		}
	}
}

// tellDone sums up, and says where published ports lead.
func tellDone(ctx context.Context, c *native.Client, w io.Writer, name string, list []outcome, took time.Duration) {
	fmt.Fprintf(w, "%s is deployed: %s ready after %s\n", paintFor(w).good(name), counted(len(list), "workload"), tookText(took))
	services, err := c.Services(ctx)
	if err != nil {
		return // this is only a courtesy
	}
	for i := range services {
		if s := &services[i]; s.Application == name {
			for _, p := range s.Ports {
				tellPort(w, s, p)
			}
		}
	}
}

func tellPort(w io.Writer, s *model.Service, p model.ServicePort) {
	if p.Published == 0 {
		return
	}
	where := "every node"
	if p.HostMode {
		where = "the nodes where it runs"
	}
	fmt.Fprintf(w, "%s is at port %d (%s) of %s\n", s.Name, p.Published, cmp.Or(p.Protocol, "tcp"), where)
}
