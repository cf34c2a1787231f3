package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

func userCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use: "user", Short: "Let people and programs use the cluster over the network",
		Long: "Users come over the network with a token or a certificate, where servers listen (`tutti up --api-listen`).\n" +
			"Roles are viewer, operator and admin, in one namespace or in the whole cluster, and keys, for programs that keep\n" +
			"their own things in the key space (`tutti keys`). Root on a server needs none.",
	}
	cmd.AddCommand(userListCommand(g), userGrantCommand(g, true), userGrantCommand(g, false), userTokenCommand(g), userCertCommand(g), userRevokeCommand(g),
		&cobra.Command{
			Use: "rm USER…", Short: "Forget users: their tokens and certificates let nobody in any more", Args: arguments(1, -1, "a user"),
			RunE: func(cmd *cobra.Command, args []string) error {
				return g.with(cmd.Context(), func(c *native.Client) error {
					for _, name := range args {
						if err := c.RemoveUser(cmd.Context(), name); err != nil {
							return err
						}
					}
					return nil
				})
			},
		})
	return cmd
}

func userListCommand(g *globals) *cobra.Command {
	return lister(g, &cobra.Command{Use: "ls", Short: "List users", Args: noArguments()},
		func(ctx context.Context, c *native.Client, _ []string) ([]model.User, error) { return c.Users(ctx) },
		func(_ painter, list []model.User) *table {
			t := newTable("NAME", "ROLES", "TOKENS", "AGE")
			for _, u := range list {
				var roles, tokens []string
				for _, g := range u.Grants {
					roles = append(roles, grantText(g))
				}
				for _, k := range u.Tokens {
					text := k.ID
					if !k.Expires.IsZero() {
						text += " until " + k.Expires.Local().Format(time.DateTime)
					}
					tokens = append(tokens, text)
				}
				t.add(u.Name, orDash(strings.Join(roles, ", ")), orDash(strings.Join(tokens, ", ")), ageOf(u.Created))
			}
			return t
		})
}

func grantText(g model.Grant) string {
	if g.Namespace == "" {
		return string(g.Role)
	}
	return g.Namespace + ":" + string(g.Role)
}

// userGrantCommand makes a user, or changes what one may do.
func userGrantCommand(g *globals, create bool) *cobra.Command {
	var roles []string
	cmd := &cobra.Command{
		Use: "create USER --role ROLE", Short: "Make a user",
		Long:    "Make a user with a role: viewer, operator, admin or keys. ROLE alone is for the whole cluster, NAMESPACE:ROLE for\na namespace; with --namespace, ROLE alone is for that one. --role may be given more than once.",
		Example: "  tutti user create anna --role admin\n  tutti user create ci --role shop:operator --role viewer\n  tutti user create ben --role viewer --namespace shop",
		Args:    arguments(1, 1, "a user"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var grants []model.Grant
			for _, text := range roles {
				namespace, role, ok := strings.Cut(text, ":")
				if !ok {
					namespace, role = g.Namespace, text
				}
				grants = append(grants, model.Grant{Role: model.Role(role), Namespace: namespace})
			}
			return g.with(cmd.Context(), func(c *native.Client) error {
				if !create {
					return c.GrantUser(cmd.Context(), args[0], grants)
				}
				if err := c.CreateUser(cmd.Context(), args[0], grants); err != nil {
					return err
				}
				return hint(cmd.OutOrStdout(), fmt.Sprintf("made; `tutti user token %s` or `tutti user cert %s` lets in", args[0], args[0]))
			})
		},
	}
	if !create {
		cmd.Use, cmd.Short = "grant USER --role ROLE", "Replace the roles of a user; none takes all away"
		cmd.Example = "  tutti user grant anna --role viewer\n  tutti user grant anna"
	}
	cmd.Flags().StringArrayVar(&roles, "role", nil, "viewer, operator, admin or keys; NAMESPACE:ROLE for one namespace")
	return cmd
}

func userTokenCommand(g *globals) *cobra.Command {
	var life time.Duration
	cmd := &cobra.Command{
		Use: "token USER", Short: "Make a token for a user; it is printed this once",
		Long:    "Make a token for a user and print it, this once: the cluster keeps a hash of it. Use it with TUTTI_TOKEN, or\nin the header \"Authorization: Bearer\".",
		Example: "  tutti user token ci --expires 720h\n  TUTTI_TOKEN=… tutti --host https://10.0.0.5:7401 status",
		Args:    arguments(1, 1, "a user"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.with(cmd.Context(), func(c *native.Client) error {
				t, err := c.CreateUserToken(cmd.Context(), args[0], life)
				if err != nil {
					return err
				}
				return g.print(cmd.OutOrStdout(), t, func() *table { return tokenTable(t) })
			})
		},
	}
	cmd.Flags().DurationVar(&life, "expires", 0, "how long it is valid, e.g. 720h (default: until it is revoked)")
	return cmd
}

func tokenTable(t core.UserToken) *table { return newTable(t.Token) }

func userCertCommand(g *globals) *cobra.Command {
	var out string
	var life time.Duration
	cmd := &cobra.Command{
		Use: "cert USER --out DIR", Short: "Make a certificate for a user",
		Long:    "Make a key and a certificate for a user, and write them to DIR as cert.pem, key.pem and ca.pem. The key is made\nhere and does not leave this host. Use them with --cert DIR or TUTTI_CERT_PATH.",
		Example: "  tutti user cert anna --out ~/.tutti\n  tutti --host https://10.0.0.5:7401 --cert ~/.tutti ps",
		Args:    arguments(1, 1, "a user"),
		RunE: func(cmd *cobra.Command, args []string) error {
			csr, key, err := wire.NewRequest()
			if err != nil {
				return err
			}
			return g.with(cmd.Context(), func(c *native.Client) error {
				cert, err := c.SignUser(cmd.Context(), args[0], csr, life)
				if err != nil {
					return err
				}
				if err := os.MkdirAll(out, 0o700); err != nil {
					return fmt.Errorf("write the certificate: %w", err)
				}
				for name, data := range map[string][]byte{"cert.pem": cert.Cert, "key.pem": key, "ca.pem": cert.CA} {
					if err := os.WriteFile(filepath.Join(out, name), data, 0o600); err != nil {
						return fmt.Errorf("write the certificate: %w", err)
					}
				}
				return hint(cmd.OutOrStdout(), "cert.pem, key.pem and ca.pem are in "+out)
			})
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "directory to write to (required)")
	cmd.Flags().DurationVar(&life, "expires", core.UserCertificateLife, "how long it is valid")
	if err := cmd.MarkFlagRequired("out"); err != nil {
		panic(err) // the flag was added above
	}
	return cmd
}

func userRevokeCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "revoke USER [TOKEN-ID]", Short: "Take away a token of a user, or all tokens and certificates",
		Example: "  tutti user ls\n  tutti user revoke ci 4k7m2a9x0b1c\n  tutti user revoke ci",
		Args:    arguments(1, 2, "a user, and the ID of a token"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id := ""
			if len(args) == 2 {
				id = args[1]
			}
			return g.doing(cmd, "revoked", func(ctx context.Context, c *native.Client) error { return c.RevokeUser(ctx, args[0], id) })
		},
	}
}
