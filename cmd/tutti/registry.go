package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
)

func registryCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use: "registry", Aliases: []string{"registries"}, Short: "Say how image registries are reached, and who asks them",
		Long: "The cluster keeps logins encrypted, and gives one only to the node that pulls an image with it. The longest prefix of\n" +
			"an image's name counts.",
		Example: "  echo $PASSWORD | tutti registry login registry.example.com --user anna\n" +
			"  tutti registry set registry.example.com --mirror https://mirror.example.com --ca own.pem\n  tutti registry name registry.shop.example:7405\n  tutti registry ls",
	}
	cmd.AddCommand(registryListCommand(g), registrySetCommand(g), registryLoginCommand(g), registryLogoutCommand(g), registryNameCommand(g))
	return cmd
}

func registryListCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "ls", Aliases: []string{"list"}, Short: "List what is known of registries", Args: noArguments()}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return g.with(cmd.Context(), func(c *native.Client) error {
			v, err := c.Registries(cmd.Context())
			if err != nil {
				return err
			}
			return g.print(cmd.OutOrStdout(), v, func() *table { return registryTable(v) })
		})
	}
	return cmd
}

func registryTable(v core.RegistriesView) *table {
	t := newTable("REGISTRY", "LOGINS", "MIRRORS", "TLS")
	for _, r := range v.Registries {
		var logins []string
		for _, l := range r.Logins {
			text := l.User
			if l.Prefix != r.Host {
				text += " for " + l.Prefix
			}
			logins = append(logins, text)
		}
		tls := "yes"
		switch {
		case r.Plain:
			tls = "no"
		case len(r.CA) > 0:
			tls = "own authority"
		}
		t.add(r.Host, orDash(strings.Join(logins, ", ")), orDash(strings.Join(r.Mirrors, ", ")), tls)
	}
	t.add(image.RegistryHost, "of the cluster", "-", orDash(strings.Join(v.Names, ", ")))
	return t
}

func registrySetCommand(g *globals) *cobra.Command {
	r := native.RegistryChange{}
	ca := ""
	cmd := &cobra.Command{
		Use: "set HOST", Short: "Say how a registry is reached: mirrors, its authority, without TLS",
		Long: "Say how a registry is reached, in place of what was said before; without flags, as if nothing had been said. Mirrors\n" +
			"are asked first, in their order, with the logins and authorities of their own hosts.",
		Example: "  tutti registry set docker.io --mirror https://mirror.example.com\n  tutti registry set registry.example.com:5000 --ca own.pem",
		Args:    arguments(1, 1, "a registry's host"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.Host = args[0]
			if ca != "" {
				data, err := os.ReadFile(ca)
				if err != nil {
					return err
				}
				r.CA = data
			}
			return g.with(cmd.Context(), func(c *native.Client) error { return c.SetRegistry(cmd.Context(), r) })
		},
	}
	cmd.Flags().StringArrayVar(&r.Mirrors, "mirror", nil, "address that is asked first, such as https://mirror.example.com; may be repeated")
	cmd.Flags().StringVar(&ca, "ca", "", "file with the certificate of the authority that has signed the registry's")
	cmd.Flags().BoolVar(&r.Plain, "plain", false, "reach it without TLS")
	return cmd
}

func registryLoginCommand(g *globals) *cobra.Command {
	r := native.RegistryLogin{}
	token := false
	cmd := &cobra.Command{
		Use: "login PREFIX --user USER", Short: "Keep who asks for images of a registry, or of a part of it",
		Long:    "Keep who asks for images. PREFIX is a registry's host, with what follows it in images' names where the login is for a\npart of them. The password comes from the standard input. The registry is asked whether it takes it.",
		Example: "  echo $PASSWORD | tutti registry login registry.example.com --user anna\n  tutti registry login registry.example.com/shop --user ci < token",
		Args:    arguments(1, 1, "a registry's host"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if r.User == "" && !token {
				return usagef("say who asks: --user")
			}
			data, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), 64<<10))
			if err != nil {
				return fmt.Errorf("read the password: %w", err)
			}
			r.Prefix, r.Password = args[0], strings.TrimRight(string(data), "\r\n")
			if token {
				r.Password, r.IdentityToken = "", r.Password
			}
			return g.with(cmd.Context(), func(c *native.Client) error {
				if err := c.LoginRegistry(cmd.Context(), r); err != nil {
					return err
				}
				return hint(cmd.OutOrStdout(), args[0]+" takes it")
			})
		},
	}
	cmd.Flags().StringVarP(&r.User, "user", "u", "", "who asks")
	cmd.Flags().BoolVar(&token, "identity-token", false, "the standard input has an identity token in place of a password")
	return cmd
}

func registryLogoutCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "logout PREFIX", Short: "Forget a login", Args: arguments(1, 1, "a prefix of `tutti registry ls`"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.with(cmd.Context(), func(c *native.Client) error { return c.LogoutRegistry(cmd.Context(), args[0]) })
		},
	}
}

func registryNameCommand(g *globals) *cobra.Command {
	r := native.RegistryName{}
	cmd := &cobra.Command{
		Use: "name HOST[:PORT]", Short: "Add a name under which clients reach the cluster's own registry",
		Long: "Add a name under which clients reach the cluster's own registry. Images named with it are those that were pushed to any\n" +
			"server, like " + image.RegistryHost + "/… and the servers' addresses with port 7405.",
		Example: "  tutti registry name registry.shop.example:7405",
		Args:    arguments(1, 1, "a host"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.Name = args[0]
			return g.with(cmd.Context(), func(c *native.Client) error { return c.NameRegistry(cmd.Context(), r) })
		},
	}
	cmd.Flags().BoolVar(&r.Remove, "rm", false, "take the name away")
	return cmd
}

// blobs adds up how far the parts of an image have come.
type blobs struct {
	mu sync.Mutex
	of map[string]image.Progress
}

func (b *blobs) tell(p image.Progress) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.of == nil {
		b.of = map[string]image.Progress{}
	}
	b.of[p.Blob] = p
}

func (b *blobs) text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var have, all int64
	for _, p := range b.of {
		have, all = have+p.Bytes, all+max(p.Total, p.Bytes)
	}
	if all == 0 {
		return ""
	}
	return fmt.Sprintf(": %s of %s", bytesText(have), bytesText(all))
}

func pullCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "pull NAME…", Short: "Get images from their registries, as they are there now",
		Example: "  tutti image pull registry.example.com/shop/web:v2",
		Args:    arguments(1, -1, "an image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.with(cmd.Context(), func(c *native.Client) error {
				for _, name := range args {
					var b blobs
					stop := busy(cmd.ErrOrStderr(), func() string { return "pulling " + name + b.text() })
					got, err := c.PullImage(cmd.Context(), native.ImagePull{Ref: name}, b.tell)
					stop()
					if err != nil {
						return err
					}
					if err := hint(cmd.OutOrStdout(), fmt.Sprintf("pulled %s (%s)", shortImage(got.Name), shortDigest(got.Digest))); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}

func pushCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "push NAME|FILE [AS]", Short: "Send an image of the cluster, or an archive, to a registry",
		Long: "Send an image of the cluster to the registry that its name, or the other one, begins with. An archive is taken into the\n" +
			"cluster first. In the cluster's own registry an image is there for all nodes under " + image.RegistryHost + "/….",
		Example: "  tutti image push shop/web:v2 registry.example.com/shop/web:v2\n  tutti image push web.tar " + image.RegistryHost + "/shop/web:v2",
		Args:    arguments(1, 2, "an image, and perhaps another name"), ValidArgsFunction: g.complete(1, imageNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.with(cmd.Context(), func(c *native.Client) error {
				r := native.ImagePush{Ref: args[0], As: slices.Concat(args, []string{""})[1]}
				if st, err := os.Stat(args[0]); err == nil && st.Mode().IsRegular() {
					infos, err := importArchive(cmd, c, args[0], "")
					if err != nil {
						return err
					}
					if len(infos) != 1 {
						return usagef("%s holds %d images; import it, and push them by name", args[0], len(infos))
					}
					r.Ref = infos[0].Name
				}
				var b blobs
				stop := busy(cmd.ErrOrStderr(), func() string { return "pushing " + r.Ref + b.text() })
				got, err := c.PushImage(cmd.Context(), r, b.tell)
				stop()
				if err != nil {
					return err
				}
				return hint(cmd.OutOrStdout(), fmt.Sprintf("pushed %s (%s)", shortImage(got.Name), shortDigest(got.Digest)))
			})
		},
	}
}

func pruneCommand(g *globals) *cobra.Command {
	r := native.ImagePrune{}
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove images that no workload uses, nor a revision that one can return to", Args: noArguments(),
		Example: "  tutti image prune --older-than 168h --dry-run",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.with(cmd.Context(), func(c *native.Client) error {
				gone, err := c.PruneImages(cmd.Context(), r)
				if err != nil {
					return err
				}
				if g.structured() {
					return g.print(cmd.OutOrStdout(), gone, nil)
				}
				var bytes int64
				for i := range gone {
					bytes += gone[i].SizeBytes
					if err := hint(cmd.OutOrStdout(), shortImage(gone[i].Name)); err != nil {
						return err
					}
				}
				verb := "removed"
				if r.DryRun {
					verb = "would be removed"
				}
				return hint(cmd.OutOrStdout(), fmt.Sprintf("%d images of %s %s", len(gone), bytesText(bytes), verb))
			})
		},
	}
	cmd.Flags().DurationVar(&r.OlderThan, "older-than", 0, "only those that came longer ago than this")
	cmd.Flags().BoolVar(&r.DryRun, "dry-run", false, "say what would go, and remove nothing")
	return cmd
}

func policyOfImagesCommand(g *globals) *cobra.Command {
	var keys []string
	p := native.ImagePolicy{}
	remove := false
	cmd := &cobra.Command{
		Use: "policy [PATTERN]", Short: "Say whose signature images need before they are run",
		Long: "Say whose signature images need before they are run. PATTERN is of complete names without a tag: * is what is between two\n" +
			"slashes, ** is anything. One of the keys must have signed the image as `cosign sign --key` does; the signature lies beside it in its\n" +
			"registry. With --refuse none of them is run. Every policy that is about an image counts; what runs already goes on.\n\nWithout PATTERN, the policies are listed.",
		Example: "  tutti image policy 'registry.example.com/shop/**' --key cosign.pub\n  tutti image policy 'docker.io/**' --refuse\n  tutti image policy --rm 'docker.io/**'",
		Args:    arguments(0, 1, "a pattern"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.with(cmd.Context(), func(c *native.Client) error {
				if len(args) == 0 {
					v, err := c.Registries(cmd.Context())
					if err != nil {
						return err
					}
					return g.print(cmd.OutOrStdout(), v.Signatures, func() *table { return signatureTable(v.Signatures) })
				}
				p.Pattern = args[0]
				for _, file := range keys {
					data, err := os.ReadFile(file)
					if err != nil {
						return err
					}
					p.Keys = append(p.Keys, string(data))
				}
				if n := len(p.Keys); (n > 0) == (p.Refuse || remove) || p.Refuse && remove {
					return usagef("say what is wanted of %s: --key, --refuse or --rm", p.Pattern)
				}
				return c.SetImagePolicy(cmd.Context(), p)
			})
		},
	}
	cmd.Flags().StringArrayVar(&keys, "key", nil, "file with a public key in PEM; may be repeated")
	cmd.Flags().BoolVar(&p.Refuse, "refuse", false, "run none of them")
	cmd.Flags().BoolVar(&remove, "rm", false, "take the policy away")
	return cmd
}

func signatureTable(list []model.SignaturePolicy) *table {
	t := newTable("IMAGES", "SIGNED BY")
	for _, p := range list {
		var keys []string
		for _, k := range p.Keys {
			keys = append(keys, image.KeyName(k))
		}
		by := strings.Join(keys, " or ")
		if len(keys) == 0 {
			by = "refused"
		}
		t.add(p.Pattern, by)
	}
	return t
}
