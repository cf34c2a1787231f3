package native

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/trust"
	"github.com/tutti-run/tutti/internal/wire"
)

// Paths of tokens, the authority, the unlock key, users and the audit log.
const (
	pathRotateTokens = "/v1/token/rotate" // RotateTokens
	pathAuthority    = "/v1/ca"           // → trust.View
	pathRotateCA     = "/v1/ca/rotate"    // RotateAuthority
	pathDropCA       = "/v1/ca/drop"      // {}
	pathAutolock     = "/v1/autolock"     // Switch → UnlockKey
	pathUnlockKey    = "/v1/unlock-key"   // UnlockKeyRequest → UnlockKey
	pathUnlock       = "/v1/unlock"       // UnlockKey
	pathUsers        = "/v1/users"        // → []model.User; POST: UserGrants, who is made
	pathUserGrant    = "/v1/users/grant"  // UserGrants
	pathUserRemove   = "/v1/users/remove" // Ref
	pathUserToken    = "/v1/users/token"  // UserLife → core.UserToken
	pathUserCert     = "/v1/users/cert"   // UserCertRequest → UserCert
	pathUserRevoke   = "/v1/users/revoke" // UserRevoke
	pathAudit        = "/v1/audit"        // ?since ?user ?limit → core.AuditReport
)

// RotateTokens chooses the join tokens that are replaced.
type RotateTokens struct {
	Server bool `json:"server,omitempty"`
	Agent  bool `json:"agent,omitempty"`
}

// RotateAuthority replaces the authority.
type RotateAuthority struct {
	Window time.Duration `json:"window,omitempty"` // 0 is seven days
}

// Switch turns something on or off.
type Switch struct {
	On bool `json:"on"`
}

// UnlockKeyRequest asks for the unlock key, a new one if Rotate is set.
type UnlockKeyRequest struct {
	Rotate bool `json:"rotate,omitempty"`
}

// UnlockKey is what opens servers after they were started.
type UnlockKey struct {
	Key string `json:"key,omitempty"`
}

// UserGrants says what a user may do.
type UserGrants struct {
	Name   string        `json:"name"`
	Grants []model.Grant `json:"grants"`
}

// UserLife asks for something that lasts so long; 0 is what is usual.
type UserLife struct {
	Name string        `json:"name"`
	Life time.Duration `json:"life,omitempty"`
}

// UserCertRequest asks for a certificate.
type UserCertRequest struct {
	UserLife
	CSR []byte `json:"csr"` // PEM
}

// UserCert is a certificate and the authorities by which servers are known, in PEM.
type UserCert struct {
	Cert []byte `json:"cert"`
	CA   []byte `json:"ca"`
}

// UserRevoke takes away a token or, when none is named, all tokens and certificates.
type UserRevoke struct {
	Name  string `json:"name"`
	Token string `json:"token,omitempty"` // ID
}

func (s *server) trustRoutes(mux *http.ServeMux) {
	c := s.Core
	get := func(path string, h http.HandlerFunc) { mux.HandleFunc("GET "+path, h) }
	post := func(path string, h http.HandlerFunc) { mux.HandleFunc("POST "+path, h) }
	post(pathRotateTokens, change(s, func(ctx context.Context, who core.Caller, r RotateTokens) (done, error) {
		return done{}, c.RotateTokens(ctx, who, r.Server, r.Agent)
	}))
	get(pathAuthority, read(s, func(ctx context.Context, who core.Caller, _ query) (trust.View, error) { return c.Authority(ctx, who) }))
	post(pathRotateCA, change(s, func(ctx context.Context, who core.Caller, r RotateAuthority) (done, error) {
		return done{}, c.RotateAuthority(ctx, who, r.Window)
	}))
	post(pathDropCA, change(s, func(ctx context.Context, who core.Caller, _ done) (done, error) {
		return done{}, c.DropAuthority(ctx, who)
	}))
	post(pathAutolock, change(s, func(ctx context.Context, who core.Caller, r Switch) (UnlockKey, error) {
		key, err := c.SetAutolock(ctx, who, r.On)
		return UnlockKey{key}, err
	}))
	post(pathUnlockKey, change(s, func(ctx context.Context, who core.Caller, r UnlockKeyRequest) (UnlockKey, error) {
		key, err := c.UnlockKey(ctx, who, r.Rotate)
		return UnlockKey{key}, err
	}))
	post(pathUnlock, change(s, func(ctx context.Context, who core.Caller, r UnlockKey) (done, error) {
		return done{}, c.Unlock(ctx, who, r.Key)
	}))
	get(pathUsers, read(s, func(ctx context.Context, who core.Caller, _ query) ([]model.User, error) { return c.Users(ctx, who) }))
	post(pathUsers, change(s, func(ctx context.Context, who core.Caller, r UserGrants) (done, error) {
		return done{}, c.CreateUser(ctx, who, r.Name, r.Grants)
	}))
	post(pathUserGrant, change(s, func(ctx context.Context, who core.Caller, r UserGrants) (done, error) {
		return done{}, c.GrantUser(ctx, who, r.Name, r.Grants)
	}))
	post(pathUserRemove, byRef(s, c.RemoveUser))
	post(pathUserToken, change(s, func(ctx context.Context, who core.Caller, r UserLife) (core.UserToken, error) {
		return c.CreateUserToken(ctx, who, r.Name, r.Life)
	}))
	post(pathUserCert, change(s, func(ctx context.Context, who core.Caller, r UserCertRequest) (UserCert, error) {
		cert, believe, err := c.SignUser(ctx, who, r.Name, r.CSR, r.Life)
		return UserCert{Cert: cert, CA: believe.CA}, err
	}))
	post(pathUserRevoke, change(s, func(ctx context.Context, who core.Caller, r UserRevoke) (done, error) {
		return done{}, c.RevokeUser(ctx, who, r.Name, r.Token)
	}))
	get(pathAudit, read(s, func(ctx context.Context, who core.Caller, q query) (core.AuditReport, error) {
		since, err := q.time("since")
		if err != nil {
			return core.AuditReport{}, err
		}
		limit, err := q.number("limit", 0)
		if err != nil {
			return core.AuditReport{}, err
		}
		return c.Audited(ctx, who, core.AuditQuery{Since: since, User: q.Get("user"), Limit: limit})
	}))
}

// RotateTokens replaces join tokens.
func (c *Client) RotateTokens(ctx context.Context, r RotateTokens) error {
	return postDone(ctx, c, pathRotateTokens, r)
}

// Authority tells how the cluster's authority and keys are.
func (c *Client) Authority(ctx context.Context) (trust.View, error) {
	return get[trust.View](ctx, c, pathAuthority, nil)
}

// RotateAuthority makes another authority take over.
func (c *Client) RotateAuthority(ctx context.Context, window time.Duration) error {
	return postDone(ctx, c, pathRotateCA, RotateAuthority{window})
}

// DropAuthority stops believing the authority that was replaced.
func (c *Client) DropAuthority(ctx context.Context) error {
	return postDone(ctx, c, pathDropCA, done{})
}

// SetAutolock turns autolock on, and returns the unlock key, or off.
func (c *Client) SetAutolock(ctx context.Context, on bool) (string, error) {
	k, err := post[UnlockKey](ctx, c, pathAutolock, Switch{on})
	return k.Key, err
}

// UnlockKey returns the unlock key, a new one if it is to be replaced.
func (c *Client) UnlockKey(ctx context.Context, rotate bool) (string, error) {
	k, err := post[UnlockKey](ctx, c, pathUnlockKey, UnlockKeyRequest{rotate})
	return k.Key, err
}

// Unlock opens the keys of the server that the client is connected to.
func (c *Client) Unlock(ctx context.Context, key string) error {
	return postDone(ctx, c, pathUnlock, UnlockKey{key})
}

// Users lists all.
func (c *Client) Users(ctx context.Context) ([]model.User, error) {
	return get[[]model.User](ctx, c, pathUsers, nil)
}

// CreateUser makes a user.
func (c *Client) CreateUser(ctx context.Context, name string, grants []model.Grant) error {
	return postDone(ctx, c, pathUsers, UserGrants{name, grants})
}

// GrantUser replaces what a user may do.
func (c *Client) GrantUser(ctx context.Context, name string, grants []model.Grant) error {
	return postDone(ctx, c, pathUserGrant, UserGrants{name, grants})
}

// RemoveUser forgets a user.
func (c *Client) RemoveUser(ctx context.Context, name string) error {
	return postDone(ctx, c, pathUserRemove, Ref{name})
}

// CreateUserToken makes a token for a user.
func (c *Client) CreateUserToken(ctx context.Context, name string, life time.Duration) (core.UserToken, error) {
	return post[core.UserToken](ctx, c, pathUserToken, UserLife{name, life})
}

// SignUser makes a certificate for a user and the key of the request.
func (c *Client) SignUser(ctx context.Context, name string, csrPEM []byte, life time.Duration) (UserCert, error) {
	return post[UserCert](ctx, c, pathUserCert, UserCertRequest{UserLife: UserLife{name, life}, CSR: csrPEM})
}

// RevokeUser takes away a token or, when none is named, all tokens and certificates.
func (c *Client) RevokeUser(ctx context.Context, name, tokenID string) error {
	return postDone(ctx, c, pathUserRevoke, UserRevoke{name, tokenID})
}

// Audit returns what the servers' audit logs hold.
func (c *Client) Audit(ctx context.Context, q core.AuditQuery) (core.AuditReport, error) {
	values := url.Values{"user": {q.User}, "limit": {strconv.Itoa(q.Limit)}}
	setTime(values, "since", q.Since)
	return get[core.AuditReport](ctx, c, pathAudit, values)
}

// Remote is a cluster that is reached over the network.
type Remote struct {
	URL   string // https://host:port
	Token string // of a user
	// CertPEM and KeyPEM are a user's certificate; CAPEM are the authorities by which servers are known.
	// Without any, the token names the one.
	CertPEM, KeyPEM, CAPEM []byte
	// Namespace is where names are meant to be.
	Namespace string
}

// DialRemote returns a client for a server over the network. It does not connect yet; see Ping.
func DialRemote(r Remote) (*Client, error) {
	config, err := wire.ForPeopleOf(r.CAPEM, r.CertPEM, r.KeyPEM, r.Token)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(r.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "" && u.Path != "/" {
		return nil, errHost(r.URL)
	}
	c := newClient(u.Host)
	c.scheme, c.host, c.token, c.namespace = "https", u.Host, r.Token, r.Namespace
	c.transport.Protocols.SetHTTP2(true)
	c.transport.Protocols.SetUnencryptedHTTP2(false)
	c.transport.TLSClientConfig = config
	return c, nil
}
