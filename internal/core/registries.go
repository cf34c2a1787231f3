package core

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/secret"
	"github.com/tutti-run/tutti/internal/store"
)

// Outside is how registries outside of the cluster are reached.
type Outside struct {
	Store *store.Store
	Trust Trust
}

// NoLogin leaves it to the logins that the cluster keeps.
var NoLogin image.Credentials

func imageSettings(snap *store.Snapshot) model.ImageSettings {
	if cl, ok := store.Get[*model.Cluster](snap, model.ClusterID); ok {
		return cl.Images
	}
	return model.ImageSettings{}
}

// below reports whether a name, without its tag, is a prefix or below it.
func below(name, prefix string) bool {
	rest, ok := strings.CutPrefix(name, prefix)
	return ok && (rest == "" || strings.HasPrefix(rest, "/") || strings.HasPrefix(rest, ":") || strings.HasPrefix(rest, "@"))
}

// login finds who asks for a name: the longest prefix counts.
func (o Outside) login(s *model.ImageSettings, name string) (image.Credentials, error) {
	var best *model.RegistryLogin
	for i := range s.Logins {
		if l := &s.Logins[i]; below(name, l.Prefix) && (best == nil || len(l.Prefix) > len(best.Prefix)) {
			best = l
		}
	}
	if best == nil {
		return image.Credentials{}, nil
	}
	c, err := o.open(best.Sealed, loginBinding(best.Prefix))
	if err != nil {
		return c, fmt.Errorf("open the login at %s: %w", best.Prefix, err)
	}
	return c, nil
}

func loginBinding(prefix string) []byte { return []byte("registry " + prefix) }

var workloadBinding = []byte("pull login")

func (o Outside) open(sealed, binding []byte) (c image.Credentials, err error) {
	key, err := o.Trust.SecretKey()
	if err != nil {
		return c, err
	}
	data, err := secret.Open(key, sealed, binding)
	if err != nil {
		return c, err
	}
	return c, json.Unmarshal(data, &c)
}

func sealLogin(key []byte, c image.Credentials, binding []byte) ([]byte, error) {
	data, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	return secret.Seal(key, data, binding)
}

// Reach implements image.Reach for a server: where an image comes from, and who asks for it.
func (o Outside) Reach(_ context.Context, w image.Wanted) ([]image.Endpoint, error) {
	snap := o.Store.Snapshot()
	s := imageSettings(snap)
	host := image.Host(w.Name)
	own := image.DefaultEndpoint(host, s.Registries[host].Plain)
	own.CA = s.Registries[host].CA
	var err error
	if own.Credentials, err = o.login(&s, w.Name); err != nil {
		return nil, err
	}
	if own.Credentials == (image.Credentials{}) && w.Digest != "" {
		for wl := range store.List[*model.Workload](snap) {
			if len(wl.PullLogin) > 0 && usesImage(&wl.Template, w) {
				if own.Credentials, err = o.open(wl.PullLogin, workloadBinding); err != nil {
					return nil, err
				}
				break
			}
		}
	}
	var out []image.Endpoint
	for _, m := range s.Registries[host].Mirrors {
		u, err := url.Parse(m)
		if err != nil {
			return nil, fault.New(fault.Invalid, "mirror %q of %s: %w", m, host, err)
		}
		e := image.Endpoint{URL: m, Mirror: true, CA: s.Registries[u.Host].CA}
		if e.Credentials, err = o.login(&s, u.Host+u.Path); err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return append(out, own), nil
}

func usesImage(t *model.Template, w image.Wanted) bool {
	for ref, digest := range t.Images() {
		if name, err := image.Normalize(ref); err == nil && name == w.Name && (w.Digest == "" || digest == w.Digest) {
			return true
		}
	}
	return false
}

// ForNode is Reach for a node that is to run an image, and for no other.
func (o Outside) ForNode(ctx context.Context, nodeID string, w image.Wanted) ([]image.Endpoint, error) {
	snap := o.Store.Snapshot()
	for i := range store.InstancesOnNode(snap, nodeID) {
		if r, ok := store.Get[*model.Revision](snap, i.RevisionID); ok && usesImage(&r.Template, w) {
			return o.Reach(ctx, w)
		}
	}
	return nil, fault.New(fault.NotFound, "node %s is to run nothing of image %s", nodeID, w.Name)
}

// RegistryView is what there is to say of a registry; passwords are not in it.
type RegistryView struct {
	Host string `json:"host"`
	model.Registry
	Logins []model.RegistryLogin `json:"logins,omitempty"`
}

// RegistriesView is all that is set of registries and images.
type RegistriesView struct {
	Registries []RegistryView          `json:"registries"`
	Names      []string                `json:"names,omitempty"`
	Signatures []model.SignaturePolicy `json:"signatures,omitempty"`
}

// Registries lists the registries that something was said of.
func (c *Core) Registries(ctx context.Context, who Caller) (RegistriesView, error) {
	out := RegistriesView{Registries: []RegistryView{}}
	if _, err := c.begin(who, "registry list", ""); err != nil {
		return out, err
	}
	s := imageSettings(c.Store.Snapshot())
	of := map[string]*RegistryView{}
	at := func(host string) *RegistryView {
		if of[host] == nil {
			of[host] = &RegistryView{Host: host}
		}
		return of[host]
	}
	for host, r := range s.Registries {
		at(host).Registry = r
	}
	for _, l := range s.Logins {
		l.Sealed = nil
		v := at(image.Host(l.Prefix))
		v.Logins = append(v.Logins, l)
	}
	for _, v := range of {
		out.Registries = append(out.Registries, *v)
	}
	slices.SortFunc(out.Registries, func(a, b RegistryView) int { return cmp.Compare(a.Host, b.Host) })
	out.Names, out.Signatures = s.Names, s.Signatures
	return out, nil
}

// changeImages changes what the cluster says of images and registries.
func (c *Core) changeImages(ctx context.Context, who Caller, what string, change func(s *model.ImageSettings) error) error {
	return c.update(ctx, func(snap *store.Snapshot, cs *store.ChangeSet) error {
		old, ok := store.Get[*model.Cluster](snap, model.ClusterID)
		if !ok {
			return fault.New(fault.Unavailable, "the cluster is still being set up")
		}
		cl := old.Clone()
		if err := change(&cl.Images); err != nil {
			return err
		}
		if same(cl.Images, old.Images) {
			return nil
		}
		put(cs, cl)
		event(cs, time.Now(), "registries changed", cl, fmt.Sprintf("%s, by %s through %s", what, who.Name, who.Via))
		return nil
	})
}

var hostPattern = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9.-]*[a-zA-Z0-9])?(:[0-9]{1,5})?$`)

func checkHost(host string) error {
	if !hostPattern.MatchString(host) || host != "localhost" && !strings.ContainsAny(host, ".:") {
		return fault.New(fault.Invalid, "%q is not the host of a registry: a name with a dot, or with a port, is accepted (registry.example.com:5000)", host)
	}
	return nil
}

// SetRegistry says how a registry is reached; nothing said is as without it.
func (c *Core) SetRegistry(ctx context.Context, who Caller, host string, r model.Registry) (err error) {
	a, err := c.begin(who, "registry set", host)
	if err != nil {
		return err
	}
	defer a.end(&err)
	if err := checkHost(host); err != nil {
		return err
	}
	for _, m := range r.Mirrors {
		u, err := url.Parse(m)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.User != nil {
			return fault.New(fault.Invalid, "mirror %q: an address such as https://mirror.example.com is accepted", m)
		}
	}
	if len(r.CA) > 0 {
		if err := image.CheckCA(r.CA); err != nil {
			return err
		}
	}
	return c.changeImages(ctx, who, "registry "+host, func(s *model.ImageSettings) error {
		if same(r, model.Registry{}) {
			delete(s.Registries, host)
			return nil
		}
		if s.Registries == nil {
			s.Registries = map[string]model.Registry{}
		}
		s.Registries[host] = r
		return nil
	})
}

// LoginRegistry keeps who asks for the images below a prefix, which begins with a registry's host, after that
// registry has taken it.
func (c *Core) LoginRegistry(ctx context.Context, who Caller, prefix string, as image.Credentials) (err error) {
	a, err := c.begin(who, "registry login", prefix+" as "+as.User)
	if err != nil {
		return err
	}
	defer a.end(&err)
	host := image.Host(prefix)
	if err := checkHost(host); err != nil {
		return err
	}
	if as.User == "" && as.IdentityToken == "" {
		return fault.New(fault.Invalid, "a login at %s needs a user", host)
	}
	key, err := c.Trust.SecretKey()
	if err != nil {
		return err
	}
	if err := c.checkLogin(ctx, host, as); err != nil {
		return err
	}
	sealed, err := sealLogin(key, as, loginBinding(prefix))
	if err != nil {
		return err
	}
	return c.changeImages(ctx, who, "login at "+prefix, func(s *model.ImageSettings) error {
		s.Logins = slices.DeleteFunc(s.Logins, func(l model.RegistryLogin) bool { return l.Prefix == prefix })
		s.Logins = append(s.Logins, model.RegistryLogin{Prefix: prefix, User: as.User, Since: time.Now().UTC(), Sealed: sealed})
		slices.SortFunc(s.Logins, func(a, b model.RegistryLogin) int { return cmp.Compare(a.Prefix, b.Prefix) })
		return nil
	})
}

// CheckLogin asks a registry, by its host, whether it takes somebody's word; nothing is kept.
func (c *Core) CheckLogin(ctx context.Context, who Caller, host string, as image.Credentials) error {
	if _, err := c.begin(who, "image resolve", host); err != nil {
		return err
	}
	return c.checkLogin(ctx, host, as)
}

func (c *Core) checkLogin(ctx context.Context, host string, as image.Credentials) error {
	r := imageSettings(c.Store.Snapshot()).Registries[host]
	e := image.DefaultEndpoint(host, r.Plain)
	e.CA, e.Credentials = r.CA, as
	return image.Login(ctx, e)
}

// LogoutRegistry forgets a login.
func (c *Core) LogoutRegistry(ctx context.Context, who Caller, prefix string) (err error) {
	a, err := c.begin(who, "registry logout", prefix)
	if err != nil {
		return err
	}
	defer a.end(&err)
	return c.changeImages(ctx, who, "logout at "+prefix, func(s *model.ImageSettings) error {
		n := len(s.Logins)
		s.Logins = slices.DeleteFunc(s.Logins, func(l model.RegistryLogin) bool { return l.Prefix == prefix })
		if len(s.Logins) == n {
			return fault.New(fault.NotFound, "there is no login at %s", prefix)
		}
		return nil
	})
}

// NameRegistry adds a host under which clients reach the cluster's own registry, or takes it away.
func (c *Core) NameRegistry(ctx context.Context, who Caller, name string, remove bool) (err error) {
	a, err := c.begin(who, "registry set", "name "+name)
	if err != nil {
		return err
	}
	defer a.end(&err)
	if err := checkHost(name); err != nil {
		return err
	}
	return c.changeImages(ctx, who, "own name "+name, func(s *model.ImageSettings) error {
		i, has := slices.BinarySearch(s.Names, name)
		switch {
		case remove && !has:
			return fault.New(fault.NotFound, "the cluster's registry has no name %s", name)
		case remove:
			s.Names = slices.Delete(s.Names, i, i+1)
		case !has:
			s.Names = slices.Insert(s.Names, i, name)
		}
		return nil
	})
}

// SetSignaturePolicy says whose signature images of a pattern need; without keys, unless refuse, that is taken away.
func (c *Core) SetSignaturePolicy(ctx context.Context, who Caller, p model.SignaturePolicy, refuse bool) (err error) {
	a, err := c.begin(who, "image policy", p.Pattern)
	if err != nil {
		return err
	}
	defer a.end(&err)
	if p.Pattern == "" {
		return fault.New(fault.Invalid, "a policy needs a pattern of images, such as registry.example.com/shop/** or **")
	}
	for _, k := range p.Keys {
		if _, err := image.PublicKey(k); err != nil {
			return err
		}
	}
	return c.changeImages(ctx, who, "signatures of "+p.Pattern, func(s *model.ImageSettings) error {
		n := len(s.Signatures)
		s.Signatures = slices.DeleteFunc(s.Signatures, func(o model.SignaturePolicy) bool { return o.Pattern == p.Pattern })
		if len(p.Keys) == 0 && !refuse {
			if len(s.Signatures) == n {
				return fault.New(fault.NotFound, "there is no policy for %s", p.Pattern)
			}
			return nil
		}
		s.Signatures = append(s.Signatures, p)
		slices.SortFunc(s.Signatures, func(a, b model.SignaturePolicy) int { return cmp.Compare(a.Pattern, b.Pattern) })
		return nil
	})
}

// matches reports whether a pattern is about a repository.
func matches(pattern, repository string) bool {
	if !strings.Contains(pattern, "**") {
		ok, err := path.Match(pattern, repository)
		return err == nil && ok
	}
	var re strings.Builder
	for i, part := range strings.Split(pattern, "**") {
		if i > 0 {
			re.WriteString(".*")
		}
		re.WriteString(strings.ReplaceAll(regexp.QuoteMeta(part), `\*`, "[^/]*"))
	}
	ok, err := regexp.MatchString("^"+re.String()+"$", repository)
	return err == nil && ok
}

// checkSignature refuses content that a policy wants signed and that is not, and returns whose signatures it has.
// Every policy that is about it counts.
func (c *Core) checkSignature(ctx context.Context, name, digest string, known *model.Image, as image.Credentials) (signed []string, err error) {
	repository, _, _ := strings.Cut(name, "@")
	if i := strings.LastIndex(repository, ":"); i > strings.LastIndex(repository, "/") {
		repository = repository[:i]
	}
	if known != nil && known.Digest == digest {
		signed = known.Signed
	}
	var have []image.Signature
	asked := false
	for _, p := range imageSettings(c.Store.Snapshot()).Signatures {
		if !matches(p.Pattern, repository) {
			continue
		}
		if slices.ContainsFunc(p.Keys, func(k string) bool { return slices.Contains(signed, image.KeyName(k)) }) {
			continue // it was verified before
		}
		if len(p.Keys) == 0 {
			return nil, fault.New(fault.Forbidden, "image %s may not be run: the policy for %s lets none of them", name, p.Pattern)
		}
		if !asked {
			if have, err = c.Images.Signatures(ctx, name, digest, as); err != nil {
				return nil, err
			}
			asked = true
		}
		by := ""
		for _, text := range p.Keys {
			key, err := image.PublicKey(text)
			if err != nil {
				return nil, err
			}
			if slices.ContainsFunc(have, func(s image.Signature) bool { return s.By(key, digest) }) {
				by = image.KeyName(text)
				break
			}
		}
		if by == "" {
			var keys []string
			for _, k := range p.Keys {
				keys = append(keys, image.KeyName(k))
			}
			why := fmt.Sprintf("none of its %d signatures is by", len(have))
			if len(have) == 0 {
				why = "it has no signature; wanted is one by"
			}
			return nil, fault.New(fault.Forbidden, "image %s (%s) may not be run: the policy for %s wants it signed, and %s key %s", name, digest, p.Pattern, why, strings.Join(keys, " or "))
		}
		signed = append(slices.Clone(signed), by)
	}
	return signed, nil
}

// PruneImages makes the cluster forget images that no workload uses, nor a revision to which one can return, and
// that are older than a while. It returns what went, or would go with dry.
func (c *Core) PruneImages(ctx context.Context, who Caller, olderThan time.Duration, dry bool) (gone []*model.Image, err error) {
	a, err := c.begin(who, "image remove", "what is not used")
	if err != nil {
		return nil, err
	}
	a.need.silent = dry
	defer a.end(&err)
	snap := c.Store.Snapshot()
	used := usedImages(snap)
	for img := range store.List[*model.Image](snap) {
		if used[img.Digest] || time.Since(img.Created) < olderThan {
			continue
		}
		if !dry {
			if err := c.removeImage(ctx, img.Name); fault.Is(err, fault.Conflict) || fault.Is(err, fault.NotFound) {
				continue // somebody uses it now, or was faster
			} else if err != nil {
				return gone, err
			}
		}
		gone = append(gone, img)
	}
	return gone, nil
}

// usedImages are the digests of those that workloads and revisions are made of.
func usedImages(snap *store.Snapshot) map[string]bool {
	used := map[string]bool{}
	add := func(t *model.Template) {
		for _, digest := range t.Images() {
			used[digest] = true
		}
	}
	for w := range store.List[*model.Workload](snap) {
		add(&w.Template)
	}
	for r := range store.List[*model.Revision](snap) {
		add(&r.Template)
	}
	return used
}
