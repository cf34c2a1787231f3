package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
)

func imageCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use: "image", Aliases: []string{"images"}, Short: "Make, import, pull, push, list and remove images",
		Example: "  tutti image pack --name shop/web:v1 --dir build --entrypoint /web -o web.tar\n  tutti image import web.tar\n  tutti image ls",
	}
	cmd.AddCommand(packCommand(), importCommand(g), pullCommand(g), pushCommand(g), imagesCommand(g), removeImageCommand(g), pruneCommand(g), policyOfImagesCommand(g))
	return cmd
}

// packFlags are those of image pack.
type packFlags struct {
	image.PackOptions
	output     string
	entrypoint []string
	cmd        []string
	labels     []string
	add        []string
	health     healthFlags
}

// healthFlags describe the HEALTHCHECK of an image.
type healthFlags struct {
	shell string
	probe model.Probe
}

func packCommand() *cobra.Command {
	p := &packFlags{}
	cmd := &cobra.Command{
		Use:   "pack --name NAME --dir DIRECTORY -o FILE",
		Short: "Make an image archive from a directory, without a daemon",
		Long: "Make an image archive from a directory that is the image's root file system, and from an\n" +
			"archive to build on where there is one. The same input gives the same bytes. It needs no\n" +
			"cluster.\n\n" +
			"--entrypoint and --cmd take one argument each and may be repeated, or a JSON list.",
		Example: "  tutti image pack --name shop/web:v1 --dir build --entrypoint /web --user 10001 --expose 8080/tcp -o web.tar\n" +
			"  tutti image pack --name shop/web:v2 --base web.tar --add ./site:/srv/site --env VERSION=v2 -o web2.tar\n" +
			"  tutti image pack --name cache:1 --dir root --cmd '[\"redis-server\", \"--save\", \"\"]' -o cache.tar",
		Args: noArguments(),
		RunE: func(cmd *cobra.Command, _ []string) error { return p.run(cmd) },
	}
	f := cmd.Flags()
	f.StringVar(&p.Name, "name", "", "name of the image, such as shop/web:v1")
	f.StringVar(&p.Dir, "dir", "", "root file system to put in")
	f.StringVar(&p.Base, "base", "", "image archive to build on")
	f.StringArrayVar(&p.add, "add", nil, "HOST-PATH:IMAGE-PATH[:MODE], a further file or directory; may be repeated")
	f.StringArrayVar(&p.entrypoint, "entrypoint", nil, "what a container runs")
	f.StringArrayVar(&p.cmd, "cmd", nil, "its arguments, unless others are given")
	f.StringArrayVarP(&p.Settings.Env, "env", "e", nil, "NAME=value; may be repeated")
	f.StringVarP(&p.Settings.WorkingDir, "workdir", "w", "", "directory to run in")
	f.StringVarP(&p.Settings.User, "user", "u", "", "user[:group] to run as")
	f.StringArrayVar(&p.Settings.Volumes, "volume", nil, "path whose content outlives a container; may be repeated")
	f.StringArrayVar(&p.Settings.ExposedPorts, "expose", nil, "port[/protocol] that is served; may be repeated")
	f.StringVar(&p.Settings.StopSignal, "stop-signal", "", "signal that asks it to end (SIGTERM)")
	f.StringArrayVarP(&p.labels, "label", "l", nil, "KEY=value; may be repeated")
	h := &p.health
	f.StringVar(&h.shell, "health-cmd", "", "command that succeeds while all is well: for the shell, or a JSON list")
	f.DurationVar(&h.probe.Interval, "health-interval", 0, "time between two checks")
	f.DurationVar(&h.probe.Timeout, "health-timeout", 0, "time that a check may take")
	f.DurationVar(&h.probe.StartPeriod, "health-start-period", 0, "time in which failures do not count")
	f.IntVar(&h.probe.Retries, "health-retries", 0, "failures in a row that make it unhealthy")
	f.StringVarP(&p.output, "output", "o", "", "archive to write; - is the standard output")
	return cmd
}

func (p *packFlags) run(cmd *cobra.Command) error {
	if err := p.resolve(); err != nil {
		return err
	}
	defer busy(cmd.ErrOrStderr(), func() string { return "packing " + p.Name })()
	if p.output == "-" {
		return image.Pack(cmd.OutOrStdout(), p.PackOptions)
	}
	return writeWhole(p.output, func(w io.Writer) error { return image.Pack(w, p.PackOptions) })
}

// resolve checks the flags and completes the options from them.
func (p *packFlags) resolve() (err error) {
	switch {
	case p.Name == "":
		return usagef("say what the image is called: --name")
	case p.output == "":
		return usagef("say where the archive goes: -o")
	case p.Dir == "" && p.Base == "" && len(p.add) == 0:
		return usagef("say what the image holds: --dir, --base or --add")
	}
	s := &p.Settings
	if s.Entrypoint, err = argv("--entrypoint", p.entrypoint); err != nil {
		return err
	}
	if s.Cmd, err = argv("--cmd", p.cmd); err != nil {
		return err
	}
	for _, e := range s.Env {
		if name, _, ok := strings.Cut(e, "="); !ok || name == "" {
			return usagef("--env %q: give NAME=value", e)
		}
	}
	for _, l := range p.labels {
		k, v, _ := strings.Cut(l, "=")
		if k == "" {
			return usagef("--label %q: give KEY=value", l)
		}
		if s.Labels == nil {
			s.Labels = map[string]string{}
		}
		s.Labels[k] = v
	}
	for _, a := range p.add {
		file, err := parseAdded(a)
		if err != nil {
			return err
		}
		p.Add = append(p.Add, file)
	}
	s.Health, err = p.health.resolve()
	return err
}

// argv is a flag's values, each an argument, or its only value, a JSON list of them.
func argv(flag string, values []string) ([]string, error) {
	if len(values) != 1 || !strings.HasPrefix(values[0], "[") {
		return values, nil
	}
	var out []string
	if err := json.Unmarshal([]byte(values[0]), &out); err != nil {
		return nil, usagef("%s %q is not a JSON list of strings: %w", flag, values[0], err)
	}
	return out, nil
}

func (h *healthFlags) resolve() (*model.Probe, error) {
	probe := h.probe
	switch {
	case h.shell == "" && probe.Interval == 0 && probe.Timeout == 0 && probe.StartPeriod == 0 && probe.Retries == 0:
		return nil, nil
	case h.shell == "":
		return nil, usagef("the other --health flags need --health-cmd")
	case strings.HasPrefix(h.shell, "["):
		list, err := argv("--health-cmd", []string{h.shell})
		probe.Exec = list
		return &probe, err
	}
	probe.Shell = h.shell
	return &probe, nil
}

// parseAdded reads HOST-PATH:IMAGE-PATH[:MODE].
func parseAdded(s string) (image.AddedFile, error) {
	parts := strings.Split(s, ":")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || parts[1] == "" {
		return image.AddedFile{}, usagef("--add %q: give HOST-PATH:IMAGE-PATH[:MODE]", s)
	}
	f := image.AddedFile{Host: parts[0], Path: parts[1]}
	if len(parts) == 3 {
		mode, err := strconv.ParseUint(parts[2], 8, 12)
		if err != nil {
			return f, usagef("--add %q: the mode %q is not octal", s, parts[2])
		}
		f.Mode = os.FileMode(mode)
	}
	return f, nil
}

// writeWhole makes a file that is either there with all its content or, on an error, not at all.
func writeWhole(path string, write func(w io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.Remove(f.Name()) // not there any more once all is well
	defer f.Close()
	if err := write(f); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(f.Name(), path)
}

func importCommand(g *globals) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:     "import FILE…",
		Short:   "Take image archives into the cluster",
		Long:    "Take Docker or OCI image archives, compressed or not, into the cluster. All servers that are\nthere keep a copy. - is the standard input.",
		Example: "  tutti image import web.tar worker.tar\n  docker save nginx | tutti image import -",
		Args:    arguments(1, -1, "an archive"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if name != "" && len(args) > 1 {
				return usagef("--name goes with one archive, %d were given", len(args))
			}
			return g.with(cmd.Context(), func(c *native.Client) error {
				all := []image.Info{}
				for _, path := range args {
					began := time.Now()
					infos, err := importArchive(cmd, c, path, name)
					if err != nil {
						return err
					}
					all = append(all, infos...)
					for i := range infos {
						if g.structured() {
							continue
						}
						text := fmt.Sprintf("imported %s (%s, %s) in %s", shortImage(infos[i].Name), bytesText(infos[i].SizeBytes), shortDigest(infos[i].Digest), tookText(time.Since(began)))
						if err := hint(cmd.OutOrStdout(), text); err != nil {
							return err
						}
					}
				}
				if g.structured() {
					return g.print(cmd.OutOrStdout(), all, nil)
				}
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "name for the archive's only image, in place of its own")
	return cmd
}

func importArchive(cmd *cobra.Command, c *native.Client, path, name string) ([]image.Info, error) {
	in, total, err := openArchive(path)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	counted := &countedReader{r: in}
	stop := busy(cmd.ErrOrStderr(), func() string { return importText(path, counted.n.Load(), total) })
	infos, err := c.ImportImage(cmd.Context(), counted, name)
	stop()
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", path, err)
	}
	return infos, nil
}

// openArchive returns a file or the standard input, and its size, 0 where nobody knows.
func openArchive(path string) (io.ReadCloser, int64, error) {
	if path == "-" {
		return os.Stdin, 0, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return f, 0, err
	}
	return f, info.Size(), nil
}

func importText(path string, sent, total int64) string {
	name := filepath.Base(path)
	switch {
	case total > 0 && sent >= total:
		return fmt.Sprintf("importing %s: %s sent, being unpacked and copied to all servers", name, bytesText(sent))
	case total > 0:
		return fmt.Sprintf("importing %s: %s of %s sent (%d %%)", name, bytesText(sent), bytesText(total), 100*sent/total)
	default:
		return fmt.Sprintf("importing %s: %s sent", name, bytesText(sent))
	}
}

type countedReader struct {
	r io.Reader
	n atomic.Int64
}

func (c *countedReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	return n, err
}

func shortDigest(d string) string {
	_, hex, ok := strings.Cut(d, ":")
	if !ok {
		hex = d
	}
	return model.ShortID(hex)
}

func imagesCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "ls", Aliases: []string{"list"}, Short: "List the images that the cluster keeps", Example: "  tutti image ls"}
	return lister(g, cmd, func(ctx context.Context, c *native.Client, _ []string) ([]native.ImageView, error) {
		return c.Images(ctx)
	},
		func(_ painter, list []native.ImageView) *table {
			t := newTable("NAME", "DIGEST", "SIZE", "NODES", "AGE")
			for i := range list {
				v := &list[i]
				t.add(shortImage(v.Name), shortDigest(v.Digest), bytesText(v.SizeBytes), orDash(strings.Join(v.Nodes, ",")), ageOf(v.Created))
			}
			return t
		})
}

func removeImageCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME…", Aliases: []string{"remove"}, Short: "Remove images that no workload uses",
		Example: "  tutti image rm shop/web:v1",
		Args:    arguments(1, -1, "an image"), ValidArgsFunction: g.complete(-1, imageNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.with(cmd.Context(), func(c *native.Client) error {
				for _, name := range args {
					if err := c.RemoveImage(cmd.Context(), name); err != nil {
						return err
					}
					if err := hint(cmd.OutOrStdout(), name+" is removed"); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}
