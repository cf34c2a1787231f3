package core

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// UserCertificateLife is how long certificates of users are valid, unless something else is asked for.
const UserCertificateLife = 90 * 24 * time.Hour

const longestUserLife = 366 * 24 * time.Hour

// Users lists all. The hashes of their tokens are left out.
func (c *Core) Users(ctx context.Context, who Caller) ([]model.User, error) {
	if _, err := c.begin(who, "user list", ""); err != nil {
		return nil, err
	}
	out := []model.User{}
	for u := range store.List[*model.User](c.Store.Snapshot()) {
		u = u.Clone()
		for i := range u.Tokens {
			u.Tokens[i].Hash = nil
		}
		out = append(out, *u)
	}
	slices.SortFunc(out, func(a, b model.User) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func grantsText(grants []model.Grant) string {
	var out []string
	for _, g := range grants {
		text := string(g.Role)
		if g.Namespace != "" {
			text += " in " + g.Namespace
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}

// CreateUser makes a user, who can do nothing before a token or a certificate is made.
func (c *Core) CreateUser(ctx context.Context, who Caller, name string, grants []model.Grant) (err error) {
	a, err := c.begin(who, "user create", name+": "+grantsText(grants))
	if err != nil {
		return err
	}
	defer a.end(&err)
	if !c.Trust.Sealed() {
		return fault.New(fault.Unavailable, "users can be made once all servers run this version")
	}
	u := &model.User{Meta: model.Meta{ID: model.NewID(), Name: name, Created: time.Now()}, Grants: grants}
	return c.update(ctx, func(snap *store.Snapshot, cs *store.ChangeSet) error {
		if len(u.Grants) == 0 {
			return fault.New(fault.Invalid, "user %s needs a role: viewer, operator, admin or keys", name)
		}
		if err := u.Check(); err != nil {
			return fault.New(fault.Invalid, "%w", err)
		}
		if _, ok := store.ByName[*model.User](snap, "", "", name); ok {
			return fault.New(fault.Conflict, "user %s exists already", name)
		}
		put(cs, u)
		return nil
	})
}

// changeUser changes a user on a copy.
func (c *Core) changeUser(ctx context.Context, name string, change func(u *model.User) error) error {
	return c.update(ctx, func(snap *store.Snapshot, cs *store.ChangeSet) error {
		old, ok := store.ByName[*model.User](snap, "", "", name)
		if !ok {
			return fault.New(fault.NotFound, "user %s does not exist", name)
		}
		u := old.Clone()
		if err := change(u); err != nil {
			return err
		}
		if err := u.Check(); err != nil {
			return fault.New(fault.Invalid, "%w", err)
		}
		put(cs, u)
		return nil
	})
}

// GrantUser replaces what a user may do. It counts at once.
func (c *Core) GrantUser(ctx context.Context, who Caller, name string, grants []model.Grant) (err error) {
	a, err := c.begin(who, "user grant", name+": "+grantsText(grants))
	if err != nil {
		return err
	}
	defer a.end(&err)
	return c.changeUser(ctx, name, func(u *model.User) error { u.Grants = grants; return nil })
}

// RemoveUser forgets a user; tokens and certificates let nobody in any more.
func (c *Core) RemoveUser(ctx context.Context, who Caller, name string) (err error) {
	a, err := c.begin(who, "user remove", name)
	if err != nil {
		return err
	}
	defer a.end(&err)
	return c.update(ctx, func(snap *store.Snapshot, cs *store.ChangeSet) error {
		u, ok := store.ByName[*model.User](snap, "", "", name)
		if !ok {
			return fault.New(fault.NotFound, "user %s does not exist", name)
		}
		cs.Expect(model.KindUser, u.ID, u.Revision)
		cs.Delete(model.KindUser, u.ID)
		return nil
	})
}

// userTokenPrefix begins a user's token and carries the version of its form.
const userTokenPrefix = "tuttiuser1"

// UserToken is a token in the one moment in which it can be read.
type UserToken struct {
	ID      string    `json:"id"`
	Token   string    `json:"token"`
	Expires time.Time `json:"expires,omitzero"`
}

// CreateUserToken makes a token for a user, valid for life, or for ever when that is 0. It is returned
// this once: the state has a hash of it. It names the cluster's authority, by which whoever uses it
// knows the servers.
func (c *Core) CreateUserToken(ctx context.Context, who Caller, name string, life time.Duration) (t UserToken, err error) {
	a, err := c.begin(who, "user token", name)
	if err != nil {
		return UserToken{}, err
	}
	defer a.end(&err)
	if life < 0 {
		return UserToken{}, fault.New(fault.Invalid, "a life of %s is negative", life)
	}
	view, err := c.Trust.View()
	if err != nil {
		return UserToken{}, err
	}
	now := time.Now()
	t.ID = model.ShortID(model.NewID())
	a.what = name + " " + t.ID
	if life > 0 {
		t.Expires = now.Add(life)
	}
	secret := model.NewID() + model.NewID()
	t.Token = strings.Join([]string{userTokenPrefix, view.Authority, t.ID, secret}, "-")
	err = c.changeUser(ctx, name, func(u *model.User) error {
		u.Tokens = slices.DeleteFunc(u.Tokens, func(t model.UserToken) bool { return !t.Expires.IsZero() && now.After(t.Expires) })
		u.Tokens = append(u.Tokens, model.UserToken{ID: t.ID, Hash: hashOf(secret), Created: now, Expires: t.Expires})
		return nil
	})
	if err != nil {
		return UserToken{}, err
	}
	return t, nil
}

func hashOf(secret string) []byte {
	sum := sha256.Sum256([]byte(secret)) // of 240 random bits: nothing to guess
	return sum[:]
}

// RevokeUser takes away one token of a user or, without an ID, all tokens and certificates.
func (c *Core) RevokeUser(ctx context.Context, who Caller, name, tokenID string) (err error) {
	a, err := c.begin(who, "user revoke", strings.TrimSpace(name+" "+tokenID))
	if err != nil {
		return err
	}
	defer a.end(&err)
	return c.changeUser(ctx, name, func(u *model.User) error {
		if tokenID == "" {
			u.Tokens, u.CertificatesFrom = nil, time.Now()
			return nil
		}
		before := len(u.Tokens)
		u.Tokens = slices.DeleteFunc(u.Tokens, func(t model.UserToken) bool { return t.ID == tokenID })
		if len(u.Tokens) == before {
			return fault.New(fault.NotFound, "user %s has no token %s", name, tokenID)
		}
		return nil
	})
}

// SignUser signs a certificate for a user, whose key the caller keeps; 0 is UserCertificateLife.
func (c *Core) SignUser(ctx context.Context, who Caller, name string, csrPEM []byte, life time.Duration) (certPEM []byte, believe wire.Trust, err error) {
	a, err := c.begin(who, "user cert", name)
	if err != nil {
		return nil, wire.Trust{}, err
	}
	defer a.end(&err)
	if life == 0 {
		life = UserCertificateLife
	}
	if life < 0 || life > longestUserLife {
		return nil, wire.Trust{}, fault.New(fault.Invalid, "a life of %s: up to %s is accepted", life, longestUserLife)
	}
	u, ok := store.ByName[*model.User](c.Store.Snapshot(), "", "", name)
	if !ok {
		return nil, wire.Trust{}, fault.New(fault.NotFound, "user %s does not exist", name)
	}
	return c.Trust.IssueUser(u, csrPEM, life)
}

// Directory finds out who somebody is. It is what authenticators ask.
type Directory struct{ Store *store.Store }

// errNobody does not say what was wrong with what was shown.
func errNobody(what string) error {
	return fault.New(fault.Forbidden, "%s is not valid (any more)", what)
}

// ByToken returns who has a user's token.
func (d Directory) ByToken(token string) (Caller, error) {
	parts := strings.Split(token, "-")
	if len(parts) != 4 || parts[0] != userTokenPrefix {
		return Caller{}, errNobody("the token")
	}
	hash, now := hashOf(parts[3]), time.Now()
	for u := range store.List[*model.User](d.Store.Snapshot()) {
		for _, t := range u.Tokens {
			if t.ID != parts[2] || subtle.ConstantTimeCompare(t.Hash, hash) != 1 {
				continue
			}
			if !t.Expires.IsZero() && now.After(t.Expires) {
				return Caller{}, fault.New(fault.Forbidden, "the token has expired on %s", t.Expires.Format(time.DateTime))
			}
			return Caller{Name: u.Name, Grants: u.Grants}, nil
		}
	}
	return Caller{}, errNobody("the token")
}

// ByCertificate returns who holds a certificate of the cluster's authority for a user's ID and name,
// issued at that time.
func (d Directory) ByCertificate(id, name string, issued time.Time) (Caller, error) {
	u, ok := store.Get[*model.User](d.Store.Snapshot(), id)
	if !ok || u.Name != name || issued.Before(u.CertificatesFrom) {
		return Caller{}, errNobody("the certificate")
	}
	return Caller{Name: u.Name, Grants: u.Grants}, nil
}

// changesText sums up what a deployment changed.
func changesText(changes []Change) string {
	var out []string
	for _, ch := range changes {
		if ch.Action != "unchanged" {
			out = append(out, fmt.Sprintf("%s %s %s", ch.Action, ch.Kind, ch.Name))
		}
	}
	if len(out) == 0 {
		return ": nothing changed"
	}
	const most = 12
	if len(out) > most {
		out = append(out[:most], fmt.Sprintf("and %d more", len(out)-most))
	}
	return ": " + strings.Join(out, ", ")
}
