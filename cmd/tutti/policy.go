package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/model"
)

func namespaceCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use: "namespace", Short: "Shares of the cluster: weights and quotas of namespaces",
		Example: "  tutti namespace ls\n  tutti namespace set default --cpus 16 --memory 64g --weight 2",
	}
	cmd.AddCommand(lister(g, &cobra.Command{Use: "ls", Aliases: []string{"list"}, Short: "List namespaces with what they have and may have", Example: "  tutti namespace ls"},
		func(ctx context.Context, c *native.Client, _ []string) ([]core.Namespace, error) {
			return c.Namespaces(ctx)
		},
		namespaceTable), setNamespaceCommand(g))
	return cmd
}

func namespaceTable(_ painter, list []core.Namespace) *table {
	t := newTable("NAME", "WEIGHT", "INSTANCES", "CORES", "MEMORY")
	of := func(used, quota string, bounded bool) string {
		if bounded {
			return used + " of " + quota
		}
		return used
	}
	cores := func(nano int64) string { return strconv.FormatFloat(float64(nano)/1e9, 'f', -1, 64) }
	for i := range list {
		n := &list[i]
		weight := n.Weight
		if weight == 0 {
			weight = 1
		}
		t.add(n.Name, strconv.FormatFloat(weight, 'g', -1, 64),
			of(fmt.Sprint(n.Instances), fmt.Sprint(n.MaxInstances), n.MaxInstances > 0),
			of(cores(n.Used.NanoCPUs), cores(n.Quota.NanoCPUs), n.Quota.NanoCPUs > 0),
			of(bytesText(n.Used.MemoryBytes), bytesText(n.Quota.MemoryBytes), n.Quota.MemoryBytes > 0))
	}
	return t
}

func setNamespaceCommand(g *globals) *cobra.Command {
	var weight, cpus float64
	var memory string
	var instances int
	var custom []string
	cmd := &cobra.Command{
		Use: "set NAME", Short: "Give a namespace a weight and a quota",
		Long: "Give a namespace a weight against others, for when there is too little for all, and a quota of\n" +
			"what its instances reserve together. What is not given is not bounded; without any flag the\n" +
			"namespace has no quota and weighs 1.",
		Example: "  tutti namespace set default --cpus 16 --memory 64g --instances 200\n  tutti namespace set batch --weight 0.5 --custom gpu=4",
		Args:    arguments(1, 1, "a namespace"),
		RunE: func(cmd *cobra.Command, args []string) error {
			share := model.NamespaceShare{Weight: weight, MaxInstances: instances, Quota: model.Resources{NanoCPUs: int64(cpus * 1e9)}}
			if memory != "" {
				n, err := units.RAMInBytes(memory)
				if err != nil {
					return usagef("--memory %q: give an amount such as 64g", memory)
				}
				share.Quota.MemoryBytes = n
			}
			for _, c := range custom {
				name, number, ok := strings.Cut(c, "=")
				n, err := strconv.ParseInt(number, 10, 64)
				if !ok || err != nil || n < 1 {
					return usagef("--custom %q: give NAME=COUNT, such as gpu=4", c)
				}
				if share.Quota.Custom == nil {
					share.Quota.Custom = map[string]int64{}
				}
				share.Quota.Custom[name] = n
			}
			return g.with(cmd.Context(), func(c *native.Client) error { return c.SetNamespace(cmd.Context(), args[0], share) })
		},
	}
	f := cmd.Flags()
	f.Float64Var(&weight, "weight", 0, "`WEIGHT` against other namespaces, 1 when not given")
	f.Float64Var(&cpus, "cpus", 0, "quota of `CORES`")
	f.StringVar(&memory, "memory", "", "quota of memory, an `AMOUNT` such as 64g")
	f.IntVar(&instances, "instances", 0, "quota of instances, a `COUNT`")
	f.StringArrayVar(&custom, "custom", nil, "quota of a device or metric, `NAME=COUNT`; may be repeated")
	return cmd
}

// parseTaints reads KEY[=VALUE]:EFFECT, which sets a taint, and KEY-, which removes it.
func parseTaints(args []string) (set []model.Taint, remove []string, err error) {
	for _, arg := range args {
		if k, ok := strings.CutSuffix(arg, "-"); ok && k != "" {
			remove = append(remove, k)
			continue
		}
		rest, effect, _ := strings.Cut(arg, ":")
		key, value, _ := strings.Cut(rest, "=")
		if effect == "" {
			effect = "noSchedule"
		}
		if key == "" || effect != "noSchedule" && effect != "preferNoSchedule" && effect != "noExecute" {
			return nil, nil, usagef("%q: give KEY[=VALUE][:EFFECT] to set a taint, with the effect noSchedule, preferNoSchedule or noExecute, or KEY- to remove it", arg)
		}
		set = append(set, model.Taint{Key: key, Value: value, Effect: effect})
	}
	return set, remove, nil
}

func taintCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "taint NODE KEY[=VALUE][:EFFECT]… KEY-…", Short: "Keep work off a node that does not tolerate its taints",
		Long: "Set and remove taints of a node. With the effect noSchedule, which counts when none is given,\n" +
			"only services that tolerate a taint are placed there; with preferNoSchedule others are placed\n" +
			"there when nothing else fits. What runs there already stays, unless the effect is noExecute:\n" +
			"then it is moved away as from a node that is drained, if it does not tolerate the taint.",
		Example: "  tutti node taint node-2 gpu=a100:noSchedule\n  tutti node taint node-2 gpu-",
		Args:    arguments(2, -1, "a node and taints"), ValidArgsFunction: g.complete(1, nodeNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			set, remove, err := parseTaints(args[1:])
			if err != nil {
				return err
			}
			return g.with(cmd.Context(), func(c *native.Client) error { return c.TaintNode(cmd.Context(), args[0], set, remove) })
		},
	}
}

// parseResources reads NAME=COUNT, NAME=DEVICE,DEVICE… and NAME-.
func parseResources(node string, args []string) (r native.NodeResources, err error) {
	r = native.NodeResources{Ref: node, Counts: map[string]int64{}, Devices: map[string][]string{}}
	for _, arg := range args {
		if k, ok := strings.CutSuffix(arg, "-"); ok && k != "" && !strings.Contains(k, "=") {
			r.Remove = append(r.Remove, k)
			continue
		}
		name, value, ok := strings.Cut(arg, "=")
		if !ok || name == "" || value == "" {
			return r, usagef("%q: give NAME=COUNT, NAME=DEVICE,DEVICE or NAME-, such as gpu=4, gpu=GPU-a1,GPU-b2 or gpu-", arg)
		}
		if n, err := strconv.ParseInt(value, 10, 64); err == nil {
			r.Counts[name] = n
		} else {
			r.Devices[name] = strings.Split(value, ",")
		}
	}
	return r, nil
}

func resourcesCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "resources NODE NAME=COUNT|NAME=DEVICE,…|NAME-…", Short: "Say which devices, or how many of anything, a node has",
		Long: "Say which devices a node has, by name, or how many of anything that can be counted; NAME- says that\n" +
			"it has none any more. Services reserve them by number (generic_resources in Compose files,\n" +
			"--generic-resource in Docker); a task reads in DOCKER_RESOURCE_NAME which devices are its own.",
		Example: "  tutti node resources node-2 gpu=GPU-a1,GPU-b2 licence=3\n  tutti node resources node-2 gpu-",
		Args:    arguments(2, -1, "a node and resources"), ValidArgsFunction: g.complete(1, nodeNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := parseResources(args[0], args[1:])
			if err != nil {
				return err
			}
			return g.with(cmd.Context(), func(c *native.Client) error { return c.SetNodeResources(cmd.Context(), r) })
		},
	}
}

func reserveCommand(g *globals) *cobra.Command {
	var cpus float64
	var memory, disk string
	cmd := &cobra.Command{
		Use: "reserve NODE", Short: "Keep something of a node back from instances",
		Long: "Say how much of a node is kept back for the host itself and for what else runs on it. What is not\n" +
			"given is not kept back. Instances that are there already stay.",
		Example: "  tutti node reserve node-2 --cpus 0.5 --memory 1g\n  tutti node reserve node-2",
		Args:    arguments(1, 1, "a node"), ValidArgsFunction: g.complete(1, nodeNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			keep := model.Resources{NanoCPUs: int64(cpus * 1e9)}
			for _, amount := range []struct {
				flag, text string
				to         *int64
			}{{"memory", memory, &keep.MemoryBytes}, {"disk", disk, &keep.DiskBytes}} {
				if amount.text == "" {
					continue
				}
				n, err := units.RAMInBytes(amount.text)
				if err != nil {
					return usagef("--%s %q: give an amount such as 1g", amount.flag, amount.text)
				}
				*amount.to = n
			}
			return g.with(cmd.Context(), func(c *native.Client) error { return c.ReserveNode(cmd.Context(), args[0], keep) })
		},
	}
	f := cmd.Flags()
	f.Float64Var(&cpus, "cpus", 0, "`CORES` to keep back")
	f.StringVar(&memory, "memory", "", "memory to keep back, an `AMOUNT` such as 1g")
	f.StringVar(&disk, "disk", "", "disk to keep back, an `AMOUNT` such as 10g")
	return cmd
}

func trustCommand(g *globals) *cobra.Command {
	var off bool
	cmd := &cobra.Command{
		Use: "trust NODE", Short: "Let the administrator of a host that is an agent have the cluster",
		Long: "Have the Docker socket of a host that is an agent answer as those of servers do. Whoever has that host\n" +
			"then has the whole cluster; without this, an agent that is broken into gives away what it runs only.\n" +
			"Virtual hosts, which share a machine, are trusted by themselves.",
		Example: "  tutti node trust node-4\n  tutti node trust node-4 --off",
		Args:    arguments(1, 1, "a node"), ValidArgsFunction: g.complete(1, nodeNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.with(cmd.Context(), func(c *native.Client) error { return c.TrustNode(cmd.Context(), args[0], !off) })
		},
	}
	cmd.Flags().BoolVar(&off, "off", false, "no more")
	return cmd
}

func overcommitCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "overcommit NODE TIMES", Short: "Let burstable instances reserve more cores than a node has",
		Example: "  tutti node overcommit node-2 1.5\n  tutti node overcommit node-2 1",
		Args:    arguments(2, 2, "a node and a number"), ValidArgsFunction: g.complete(1, nodeNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			times, err := strconv.ParseFloat(args[1], 64)
			if err != nil {
				return usagef("%q is not a number, such as 1.5", args[1])
			}
			return g.with(cmd.Context(), func(c *native.Client) error { return c.Overcommit(cmd.Context(), args[0], times) })
		},
	}
}
