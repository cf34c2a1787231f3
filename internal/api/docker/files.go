package docker

import (
	"cmp"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/swarm"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// findFile says which secret or config a reference means.
func findFile[T model.Object](snap *store.Snapshot, kind, ref string) (T, error) {
	var zero T
	var prefixed []T
	for o := range store.List[T](snap) {
		m := o.GetMeta()
		if m.ID == ref || dockerName(m) == ref {
			return o, nil
		}
		if ref != "" && strings.HasPrefix(m.ID, ref) {
			prefixed = append(prefixed, o)
		}
	}
	if len(prefixed) == 1 {
		return prefixed[0], nil
	}
	return zero, fault.New(fault.NotFound, "%s %s not found", kind, ref)
}

func findSecret(snap *store.Snapshot, ref string) (*model.Secret, error) {
	return findFile[*model.Secret](snap, "secret", ref)
}

func findConfig(snap *store.Snapshot, ref string) (*model.Config, error) {
	return findFile[*model.Config](snap, "config", ref)
}

func annotations(m *model.Meta) swarm.Annotations {
	a := swarm.Annotations{Name: dockerName(m), Labels: map[string]string{}}
	for k, v := range m.Labels {
		a.Labels[k] = v
	}
	return a
}

func swarmMeta(m *model.Meta) swarm.Meta {
	return swarm.Meta{Version: swarm.Version{Index: m.Revision}, CreatedAt: m.Created.UTC(), UpdatedAt: m.Created.UTC()}
}

func secretView(s *model.Secret) swarm.Secret {
	return swarm.Secret{ID: s.ID, Meta: swarmMeta(&s.Meta), Spec: swarm.SecretSpec{Annotations: annotations(&s.Meta), Templating: templating(s.Templated)}}
}

// templateDriver is the only one that there is.
const templateDriver = "golang"

func templating(templated bool) *swarm.Driver {
	if !templated {
		return nil
	}
	return &swarm.Driver{Name: templateDriver}
}

func configView(c *model.Config) swarm.Config {
	return swarm.Config{ID: c.ID, Meta: swarmMeta(&c.Meta), Spec: swarm.ConfigSpec{Annotations: annotations(&c.Meta), Data: c.Data, Templating: templating(c.Templated)}}
}

// listed reports whether an object passes the filters of a list of secrets or configs.
func listed(f filters, m *model.Meta) bool {
	return f.prefix("id", m.ID) && f.prefix("name", dockerName(m)) && f.exact("names", dockerName(m)) && f.labels("label", m.Labels)
}

func (a *API) secretList(w http.ResponseWriter, r *request) error {
	f, err := readFilters(r, "id", "label", "name", "names")
	if err != nil {
		return err
	}
	out := []swarm.Secret{}
	for s := range store.List[*model.Secret](a.snapshot()) {
		if listed(f, &s.Meta) {
			out = append(out, secretView(s))
		}
	}
	slices.SortFunc(out, func(x, y swarm.Secret) int { return strings.Compare(x.Spec.Name, y.Spec.Name) })
	return answer(w, http.StatusOK, out)
}

func (a *API) secretInspect(w http.ResponseWriter, r *request) error {
	s, err := findSecret(a.snapshot(), r.vars["id"])
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, secretView(s))
}

// The most that a secret and a config may hold, in bytes.
const (
	maxSecret = 500 << 10
	maxConfig = 1000 << 10
)

func (a *API) secretCreate(w http.ResponseWriter, r *request) error {
	var spec swarm.SecretSpec
	if err := decode(r, &spec, false); err != nil {
		return err
	}
	switch {
	case spec.Driver != nil:
		return notHonoured("secret driver", spec.Driver.Name)
	case spec.Templating != nil && spec.Templating.Name != templateDriver:
		return notHonoured("--template-driver", spec.Templating.Name)
	case len(spec.Data) == 0 || len(spec.Data) > maxSecret:
		return fault.New(fault.Invalid, "rpc error: code = InvalidArgument desc = secret data must be larger than 0 and less than %d bytes", maxSecret)
	}
	if err := nameable("secret", spec.Name); err != nil {
		return err
	}
	if _, err := findSecret(a.snapshot(), spec.Name); err == nil {
		return fault.New(fault.Conflict, "rpc error: code = AlreadyExists desc = secret %s already exists", spec.Name)
	}
	app, name := placeOf(spec.Name, spec.Labels)
	data := core.SecretData{Meta: model.Meta{Name: name, Labels: spec.Labels}, Data: spec.Data, Templated: spec.Templating != nil}
	d := core.Deployment{Application: app, Members: true, KeepOthers: true, Source: "docker", Secrets: []core.SecretData{data}}
	if _, err := a.Core.Deploy(r.Context(), r.who, d); err != nil {
		return err
	}
	s, err := findSecret(a.snapshot(), spec.Name)
	if err != nil {
		return err
	}
	return answer(w, http.StatusCreated, swarm.SecretCreateResponse{ID: s.ID})
}

func nameable(kind, name string) error {
	if name == "" || model.CheckName(name) != nil {
		return fault.New(fault.Invalid, "rpc error: code = InvalidArgument desc = invalid name %q of a %s, only 63 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]",
			cmp.Or(name, ""), kind)
	}
	return nil
}

func (a *API) secretRemove(w http.ResponseWriter, r *request) error {
	s, err := findSecret(a.snapshot(), r.vars["id"])
	if err != nil {
		return err
	}
	return a.removeFile(w, r, &s.Meta, model.KindSecret)
}

func (a *API) removeFile(w http.ResponseWriter, r *request, m *model.Meta, kind model.Kind) error {
	if err := a.Core.RemoveFile(r.Context(), r.who, kind, m.ID); err != nil {
		if fault.Is(err, fault.Conflict) {
			return fault.New(fault.Invalid, "rpc error: code = InvalidArgument desc = %s '%s' is in use: %w", kind, dockerName(m), err)
		}
		return err
	}
	return done(w, http.StatusNoContent)
}

// relabel checks that an update changes labels only, and of the version that it was made from.
func relabel(r *request, m *model.Meta, name string) error {
	version, err := strconv.ParseUint(r.query.Get("version"), 10, 64)
	if err != nil {
		return fault.New(fault.Invalid, "invalid version '%s': %w", r.query.Get("version"), err)
	}
	if version != m.Revision {
		return fault.New(fault.Internal, "rpc error: code = Unknown desc = update out of sequence")
	}
	if name != dockerName(m) {
		return fault.New(fault.Invalid, "rpc error: code = InvalidArgument desc = only updates to Labels are allowed")
	}
	return nil
}

func (a *API) secretUpdate(w http.ResponseWriter, r *request) error {
	s, err := findSecret(a.snapshot(), r.vars["id"])
	if err != nil {
		return err
	}
	var spec swarm.SecretSpec
	if err := decode(r, &spec, false); err != nil {
		return err
	}
	if err := relabel(r, &s.Meta, spec.Name); err != nil {
		return err
	}
	if len(spec.Data) > 0 {
		return fault.New(fault.Invalid, "rpc error: code = InvalidArgument desc = only updates to Labels are allowed")
	}
	if err := a.Core.LabelFile(r.Context(), r.who, model.KindSecret, s.ID, spec.Labels); err != nil {
		return err
	}
	return done(w, http.StatusOK)
}

func (a *API) configList(w http.ResponseWriter, r *request) error {
	f, err := readFilters(r, "id", "label", "name")
	if err != nil {
		return err
	}
	out := []swarm.Config{}
	for c := range store.List[*model.Config](a.snapshot()) {
		if listed(f, &c.Meta) {
			out = append(out, configView(c))
		}
	}
	slices.SortFunc(out, func(x, y swarm.Config) int { return strings.Compare(x.Spec.Name, y.Spec.Name) })
	return answer(w, http.StatusOK, out)
}

func (a *API) configInspect(w http.ResponseWriter, r *request) error {
	c, err := findConfig(a.snapshot(), r.vars["id"])
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, configView(c))
}

func (a *API) configCreate(w http.ResponseWriter, r *request) error {
	var spec swarm.ConfigSpec
	if err := decode(r, &spec, false); err != nil {
		return err
	}
	switch {
	case spec.Templating != nil && spec.Templating.Name != templateDriver:
		return notHonoured("--template-driver", spec.Templating.Name)
	case len(spec.Data) > maxConfig:
		return fault.New(fault.Invalid, "rpc error: code = InvalidArgument desc = config data must be less than %d bytes", maxConfig)
	}
	if err := nameable("config", spec.Name); err != nil {
		return err
	}
	if _, err := findConfig(a.snapshot(), spec.Name); err == nil {
		return fault.New(fault.Conflict, "rpc error: code = AlreadyExists desc = config %s already exists", spec.Name)
	}
	app, name := placeOf(spec.Name, spec.Labels)
	c := &model.Config{Meta: model.Meta{Name: name, Labels: spec.Labels}, Data: spec.Data, Templated: spec.Templating != nil}
	d := core.Deployment{Application: app, Members: true, KeepOthers: true, Source: "docker", Configs: []*model.Config{c}}
	if _, err := a.Core.Deploy(r.Context(), r.who, d); err != nil {
		return err
	}
	made, err := findConfig(a.snapshot(), spec.Name)
	if err != nil {
		return err
	}
	return answer(w, http.StatusCreated, swarm.ConfigCreateResponse{ID: made.ID})
}

func (a *API) configRemove(w http.ResponseWriter, r *request) error {
	c, err := findConfig(a.snapshot(), r.vars["id"])
	if err != nil {
		return err
	}
	return a.removeFile(w, r, &c.Meta, model.KindConfig)
}

func (a *API) configUpdate(w http.ResponseWriter, r *request) error {
	c, err := findConfig(a.snapshot(), r.vars["id"])
	if err != nil {
		return err
	}
	var spec swarm.ConfigSpec
	if err := decode(r, &spec, false); err != nil {
		return err
	}
	if err := relabel(r, &c.Meta, spec.Name); err != nil {
		return err
	}
	if len(spec.Data) > 0 && string(spec.Data) != string(c.Data) {
		return fault.New(fault.Invalid, "rpc error: code = InvalidArgument desc = only updates to Labels are allowed")
	}
	if err := a.Core.LabelFile(r.Context(), r.who, model.KindConfig, c.ID, spec.Labels); err != nil {
		return err
	}
	return done(w, http.StatusOK)
}
