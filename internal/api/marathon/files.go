package marathon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// Deploy makes files of apps, pods and groups true together: each holds one, or an array of them, as one
// would put it. What stands in the way of that is ended. It is for programs of Tutti's own.
func (a *API) Deploy(ctx context.Context, who core.Caller, m core.Manifests) ([]core.DeployResult, error) {
	hr, err := http.NewRequestWithContext(ctx, http.MethodPut, "/v2/groups", nil)
	if err != nil {
		return nil, err
	}
	r := &request{Request: hr, query: hr.URL.Query(), who: who}
	if err := a.begin(r); err != nil {
		return nil, err
	}
	var done *planned
	err = a.again(r, func() (err error) {
		c := &change{apps: map[string]*app{}, pods: map[string]*pod{}, force: true, dry: m.DryRun}
		for _, f := range m.Files {
			if err := a.gatherFile(r, c, f, m.KeepOthers); err != nil {
				return err
			}
		}
		done, err = a.carry(r, c)
		return err
	})
	if err != nil {
		return nil, plainly("", err)
	}
	if !m.DryRun {
		a.told(r, "/v2/groups", nil)
	}
	return append(done.results, done.removed()...), nil
}

// removed are the workloads that are taken away, which core does not list.
func (p *planned) removed() (out []core.DeployResult) {
	for i := range p.rec.Affected {
		t := &p.rec.Affected[i]
		if t.Gone {
			application, name := placeOf(t.Path)
			out = append(out, core.DeployResult{Application: application, Changes: []core.Change{{Action: "removed", Kind: model.KindWorkload, Name: name}}})
		}
	}
	return out
}

// plainly is an error as people read it who gave files, and not requests.
func plainly(file string, err error) error {
	var inv *invalid
	if !errors.As(err, &inv) || len(inv.details) == 0 {
		if file != "" && errors.As(err, &inv) {
			return fault.New(fault.Invalid, "%s: %s", file, inv.message)
		}
		return err
	}
	var lines []string
	for _, d := range inv.details {
		lines = append(lines, strings.TrimPrefix(file+" ", " ")+d.Path+": "+strings.Join(d.Errors, ", "))
	}
	return fault.New(fault.Invalid, "%s", strings.Join(lines, "\n"))
}

// gatherFile reads a file into a change.
func (a *API) gatherFile(r *request, c *change, f core.Manifest, keepOthers bool) error {
	if body := bytes.TrimSpace(f.Body); len(body) > 0 && body[0] == '[' {
		var list []json.RawMessage
		if err := json.Unmarshal(body, &list); err != nil {
			return plainly(f.Name, badJSON("/", err.Error()))
		}
		for i, one := range list {
			if err := a.gather(r, c, one, keepOthers); err != nil {
				return plainly(fmt.Sprintf("%s (%d)", f.Name, i), err)
			}
		}
		return nil
	}
	return plainly(f.Name, a.gather(r, c, f.Body, keepOthers))
}

// gather reads an app, a pod or a group into a change, whichever it looks like.
func (a *API) gather(r *request, c *change, body []byte, keepOthers bool) error {
	o, err := readObject(body)
	if err != nil {
		return err
	}
	p := &problems{}
	path, ok := resolvePath("/", o.text("id"))
	_, apps := o["apps"]
	_, groups := o["groups"]
	_, pods := o["pods"]
	_, containers := o["containers"]
	_, run := o["run"]
	isGroup := apps || groups || pods
	switch {
	case !ok || o.text("id") == "" || path == "/" && !isGroup:
		p.add("/id", idSentence)
	case run:
		p.refuse("/run", "a job of Metronome in a file (put it with POST /v1/jobs)")
	case c.apps[path] != nil || c.pods[path] != nil:
		p.add("/id", path+" is there twice")
	case isGroup:
		return a.gatherGroup(r, c, path, body, keepOthers)
	case containers:
		if e := a.find(r.snap, r.ns, path); e == nil {
			if err := a.free(r, path); err != nil {
				return err
			}
		}
		c.pods[path] = readPod(o, path, p)
	default:
		if _, err := a.update(r, c, path, o, false); err != nil {
			return err
		}
		if c.apps[path] == nil {
			return fault.New(fault.Unsupported, "%s was made with another API of Tutti: change it where it was made", path)
		}
	}
	return p.err()
}

func (a *API) gatherGroup(r *request, c *change, path string, body []byte, keepOthers bool) error {
	if err := a.noApp(r, path); err != nil {
		return err
	}
	u := &groupUpdate{}
	p := &problems{}
	readInto(body, u, "/", p)
	if u.ScaleBy != nil || u.Version != "" && len(u.Apps)+len(u.Groups)+len(u.Pods) == 0 {
		p.add("/", "it says what is to be done to a group, and not what is in it")
	}
	if err := p.err(); err != nil {
		return err
	}
	if c.groups == nil {
		c.groups, c.versions = groupsOf(r.snap, r.ns).clone(), map[string][]byte{}
	}
	a.collect(r, c, path, "", u, p)
	if err := p.err(); err != nil {
		return err
	}
	if !keepOthers {
		a.removeRest(r, c, path)
	}
	a.keepGroup(r, c, path)
	return nil
}
