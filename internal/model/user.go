package model

import (
	"fmt"
	"slices"
	"time"
)

// User is a person or a program that uses the cluster's APIs.
type User struct {
	Meta
	Grants []Grant `json:"grants,omitempty"`
	// Tokens are those that admit the user; only hashes of them are kept.
	Tokens []UserToken `json:"tokens,omitempty"`
	// CertificatesFrom is the time before which certificates of the user were issued in vain.
	CertificatesFrom time.Time `json:"certificatesFrom,omitzero"`
}

// Grant gives a role in one namespace, or in the whole cluster when Namespace is empty.
type Grant struct {
	Role      Role   `json:"role"`
	Namespace string `json:"namespace,omitempty"`
}

// Role is what a user may do.
type Role string

// The roles, each with all that the ones before may do: look; change what runs; change who may.
const (
	RoleViewer   Role = "viewer"
	RoleOperator Role = "operator"
	RoleAdmin    Role = "admin"
)

// RoleKeys is for components that keep their own things in the general key space: all keys, and
// nothing else. Of the other roles only that of an admin has it.
const RoleKeys Role = "keys"

var roles = []Role{RoleViewer, RoleOperator, RoleAdmin}

// Includes reports whether the role may do all that the other one may. A role that does not exist
// includes none.
func (r Role) Includes(other Role) bool {
	if other == RoleKeys {
		return r == RoleKeys || r == RoleAdmin
	}
	mine, theirs := slices.Index(roles, r), slices.Index(roles, other)
	return mine >= 0 && theirs >= 0 && mine >= theirs
}

// UserToken is what is kept of a token that its user has.
type UserToken struct {
	ID      string    `json:"id"`
	Hash    []byte    `json:"hash"` // SHA-256 of the secret
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"` // zero: never
}

// MaxUserTokens is how many tokens a user may have.
const MaxUserTokens = 100

// Check says what is wrong with a user, nil when nothing is.
func (u *User) Check() error {
	if err := CheckName(u.Name); err != nil {
		return fmt.Errorf("user name %w", err)
	}
	if u.Namespace != "" || u.Application != "" {
		return fmt.Errorf("user %s: users are of the whole cluster; grants have namespaces", u.Name)
	}
	for _, g := range u.Grants {
		if g.Role != RoleKeys && !slices.Contains(roles, g.Role) {
			return fmt.Errorf("user %s: role %q: viewer, operator, admin and keys are accepted", u.Name, g.Role)
		}
		if g.Role == RoleKeys && g.Namespace != "" {
			return fmt.Errorf("user %s: role %s in namespace %s: keys are of no namespace; the role is accepted for the whole cluster", u.Name, g.Role, g.Namespace)
		}
		if g.Namespace != "" {
			if err := CheckName(g.Namespace); err != nil {
				return fmt.Errorf("user %s: namespace %w", u.Name, err)
			}
		}
	}
	if len(u.Tokens) > MaxUserTokens {
		return fmt.Errorf("user %s has %d tokens; %d are accepted: revoke some", u.Name, len(u.Tokens), MaxUserTokens)
	}
	return nil
}

func (u *User) Kind() Kind          { return KindUser }
func (u *User) GetMeta() *Meta      { return &u.Meta }
func (u *User) CloneObject() Object { return u.Clone() }
func (u *User) AdoptStatus(Object)  {}
func (u *User) AdoptDesired(Object) {}
