package docker

import (
	"archive/tar"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/registry"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// nameToMake is the name of an image that is to be made: of a repository and a tag, which is latest
// unless it is said.
func nameToMake(repo, tag string) (string, error) {
	if repo == "" {
		return "", notHonoured("an image without a name", "repo")
	}
	n, err := reference.ParseNormalizedNamed(repo)
	if err != nil {
		return "", fault.New(fault.Invalid, "invalid reference format")
	}
	if t, ok := n.(reference.Tagged); ok && tag == "" {
		tag = t.Tag()
	}
	to, err := reference.WithTag(reference.TrimNamed(n), cmp.Or(tag, "latest"))
	if err != nil {
		return "", fault.New(fault.Invalid, "invalid tag format")
	}
	return to.String(), nil
}

// spool is a directory for what an image is made of while it is made.
func spool() (dir string, remove func(), err error) {
	dir, err = os.MkdirTemp("", "tutti-image-")
	return dir, func() { os.RemoveAll(dir) }, err
}

// make makes an image and takes it into the cluster.
func (a *API) make(r *request, o image.ExtendOptions) (image.Info, error) {
	pr, pw := io.Pipe()
	go func() { pw.CloseWithError(image.Extend(pw, o)) }()
	infos, err := a.Core.ImportImage(r.Context(), r.who, pr, o.Name)
	pr.Close()
	if err != nil {
		return image.Info{}, err
	}
	if len(infos) != 1 {
		return image.Info{}, fault.New(fault.Internal, "%d images were made of one", len(infos))
	}
	return infos[0], nil
}

// imageImport makes an image of a file system that the client sends.
func (a *API) imageImport(w http.ResponseWriter, r *request) error {
	if src := r.query.Get("fromSrc"); src != "-" {
		return notHonoured("docker import from a URL", src)
	}
	o := image.ExtendOptions{Comment: cmp.Or(r.query.Get("message"), "Imported from -"), CreatedBy: "docker import", Created: time.Now()}
	var err error
	if o.Name, err = nameToMake(r.query.Get("repo"), r.query.Get("tag")); err != nil {
		return err
	}
	if o.Settings, err = instructions(r.query["changes"]); err != nil {
		return err
	}
	body, err := decompressed(r.Body)
	if err != nil {
		return err
	}
	defer body.Close()
	dir, remove, err := spool()
	if err != nil {
		return err
	}
	defer remove()
	o.Layer = filepath.Join(dir, "layer.tar")
	if err := writeTar(o.Layer, func(tw *tar.Writer) error { return copyTar(tw, body, func(*tar.Header) bool { return true }) }); err != nil {
		return fault.New(fault.Invalid, "read the archive: %w", err)
	}
	info, err := a.make(r, o)
	if err != nil {
		return err
	}
	(&progress{w: w}).say(progressLine{Status: info.Digest})
	return nil
}

func writeTar(file string, write func(*tar.Writer) error) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	tw := tar.NewWriter(f)
	return errors.Join(write(tw), tw.Close(), f.Close())
}

// copyTar copies the entries of an archive that are wanted.
func copyTar(tw *tar.Writer, r io.Reader, wanted func(*tar.Header) bool) error {
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if !wanted(h) {
			continue
		}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(tw, tr); err != nil {
			return err
		}
	}
}

// commit makes an image of a container: the layers of its image, and what it changed of them.
func (a *API) commit(w http.ResponseWriter, r *request) error {
	var config container.Config
	if err := decode(r, &config, true); err != nil {
		return err
	}
	o := image.ExtendOptions{Comment: r.query.Get("comment"), Author: r.query.Get("author"), Created: time.Now()}
	var err error
	if o.Name, err = nameToMake(r.query.Get("repo"), r.query.Get("tag")); err != nil {
		return err
	}
	snap := a.snapshot()
	b, err := a.findBox(snap, r.query.Get("container"))
	if err != nil {
		return err
	}
	if b, err = a.laidOut(r, b); err != nil {
		return err
	}
	own, _ := a.configs(r.Context(), b)
	o.Settings = settingsOf(own)
	o.Settings = overlay(o.Settings, settingsOf(&config))
	changes, err := instructions(r.query["changes"])
	if err != nil {
		return err
	}
	o.Settings = overlay(o.Settings, changes)
	path, args := a.command(r.Context(), b.spec())
	o.CreatedBy = strings.TrimSpace(path + " " + strings.Join(args, " "))

	dir, remove, err := spool()
	if err != nil {
		return err
	}
	defer remove()
	if pause := r.query.Get("pause"); (pause == "" || r.flag("pause")) && b.state() == container.StateRunning {
		if err := a.Core.Pause(r.Context(), r.who, b.instance.ID, true); err != nil {
			return err
		}
		defer func() {
			if err := a.Core.Pause(r.lifetime, r.who, b.instance.ID, false); err != nil {
				a.Log.Warn("a container that was paused for a commit could not go on", "container", b.id, "error", err)
			}
		}()
	}
	o.Layer, o.Base = filepath.Join(dir, "layer.tar"), filepath.Join(dir, "base.tar")
	if err := a.changedFiles(r, b, o.Layer); err != nil {
		return fmt.Errorf("read what container %s changed: %w", b.name, err)
	}
	if o.Base, err = a.exported(r, b.spec().Image, b.spec().Digest, dir); err != nil {
		return err
	}
	info, err := a.make(r, o)
	if err != nil {
		return err
	}
	return answer(w, http.StatusCreated, container.CommitResponse{ID: info.Digest})
}

// exported writes an image to an archive of a directory.
func (a *API) exported(r *request, name, digest, dir string) (string, error) {
	if _, err := a.Core.Images.Ensure(r.Context(), name, digest, func(image.Progress) {}); err != nil {
		return "", err
	}
	named := ""
	for img := range store.List[*model.Image](a.snapshot()) {
		if img.Digest == digest {
			named = img.Name
		}
	}
	if named == "" {
		return "", fault.New(fault.Conflict, "the image of the container has no name any more: give it one")
	}
	file := filepath.Join(dir, "base.tar")
	f, err := os.Create(file)
	if err != nil {
		return "", err
	}
	return file, errors.Join(a.Core.Images.Export(r.Context(), f, []string{named}), f.Close())
}

// changedFiles writes the layer that a container has made: its files as they are that it added or
// changed, and marks of those that it removed.
func (a *API) changedFiles(r *request, b *box, file string) error {
	f := core.Files{Ref: b.instance.ID, Task: b.spec().Name}
	list, err := a.Core.FileChanges(r.Context(), r.who, f)
	if err != nil {
		return err
	}
	there, gone := map[string]bool{}, []string(nil)
	for _, c := range list {
		if name := strings.Trim(path.Clean(c.Path), "/"); c.Kind == core.FileDeleted {
			gone = append(gone, name)
		} else {
			there[name] = true
		}
	}
	return writeTar(file, func(tw *tar.Writer) error {
		pr, pw := io.Pipe()
		go func() { pw.CloseWithError(a.Core.ExportFiles(r.Context(), r.who, f, pw)) }()
		defer pr.Close()
		if err := copyTar(tw, pr, func(h *tar.Header) bool { return there[strings.Trim(path.Clean(h.Name), "/")] }); err != nil {
			return err
		}
		slices.Sort(gone)
		for _, name := range gone {
			mark := path.Join(path.Dir(name), ".wh."+path.Base(name))
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: mark, Mode: 0o600}); err != nil {
				return err
			}
		}
		return nil
	})
}

// settingsOf is what of a container's configuration an image can have.
func settingsOf(c *container.Config) image.Settings {
	s := image.Settings{Entrypoint: c.Entrypoint, Cmd: c.Cmd, User: c.User, WorkingDir: c.WorkingDir, StopSignal: c.StopSignal, Labels: c.Labels}
	for _, e := range c.Env {
		if !strings.HasPrefix(e, "constraint:") {
			s.Env = append(s.Env, e)
		}
	}
	for p := range c.ExposedPorts {
		s.ExposedPorts = append(s.ExposedPorts, p.String())
	}
	for v := range c.Volumes {
		s.Volumes = append(s.Volumes, v)
	}
	slices.Sort(s.ExposedPorts)
	slices.Sort(s.Volumes)
	s.Health, _, _ = probe(c.Healthcheck, nil) // which was read when the container was made
	return s
}

// overlay puts settings over others.
func overlay(under, over image.Settings) image.Settings {
	if len(over.Entrypoint) > 0 {
		under.Entrypoint, under.Cmd = over.Entrypoint, nil
	}
	if len(over.Cmd) > 0 {
		under.Cmd = over.Cmd
	}
	under.Env = mergeEnv(under.Env, over.Env)
	under.User, under.WorkingDir, under.StopSignal = cmp.Or(over.User, under.User), cmp.Or(over.WorkingDir, under.WorkingDir), cmp.Or(over.StopSignal, under.StopSignal)
	under.ExposedPorts, under.Volumes = append(under.ExposedPorts, over.ExposedPorts...), append(under.Volumes, over.Volumes...)
	labels := map[string]string{}
	for _, m := range []map[string]string{under.Labels, over.Labels} {
		for k, v := range m {
			labels[k] = v
		}
	}
	if under.Labels = labels; over.Health != nil {
		under.Health = over.Health
	}
	return under
}

// instructions reads lines of a Dockerfile that change an image's configuration.
func instructions(lines []string) (s image.Settings, err error) {
	s.Labels = map[string]string{}
	for _, line := range lines {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		rest = strings.TrimSpace(rest)
		if rest == "" {
			return s, fault.New(fault.Invalid, "%q: a change is an instruction and what it says", line)
		}
		switch strings.ToUpper(word) {
		case "CMD":
			s.Cmd = commandLine(rest)
		case "ENTRYPOINT":
			s.Entrypoint = commandLine(rest)
		case "ENV", "LABEL":
			key, value, ok := strings.Cut(rest, "=")
			if !ok {
				key, value, _ = strings.Cut(rest, " ")
			}
			if value = strings.Trim(value, `"'`); strings.ToUpper(word) == "ENV" {
				s.Env = append(s.Env, key+"="+value)
			} else {
				s.Labels[key] = value
			}
		case "EXPOSE":
			s.ExposedPorts = append(s.ExposedPorts, strings.Fields(rest)...)
		case "USER":
			s.User = rest
		case "WORKDIR":
			s.WorkingDir = rest
		case "STOPSIGNAL":
			s.StopSignal = rest
		case "VOLUME":
			var list []string
			if json.Unmarshal([]byte(rest), &list) != nil {
				list = strings.Fields(rest)
			}
			s.Volumes = append(s.Volumes, list...)
		case "HEALTHCHECK":
			test, ok := strings.CutPrefix(rest, "CMD ")
			if !ok {
				return s, notHonoured("a change of HEALTHCHECK other than CMD", line)
			}
			s.Health = &model.Probe{Interval: 30 * time.Second, Timeout: 30 * time.Second, Retries: 3}
			if json.Unmarshal([]byte(test), &s.Health.Exec) != nil {
				s.Health.Shell = test
			}
		default:
			return s, notHonoured("a change of the image by "+word, line)
		}
	}
	return s, nil
}

// commandLine reads a list in JSON, or a line for a shell.
func commandLine(text string) []string {
	var list []string
	if json.Unmarshal([]byte(text), &list) == nil {
		return list
	}
	return []string{"/bin/sh", "-c", text}
}

// credentials reads who asks a registry, from the header in which clients say it.
func credentials(r *request) (image.Credentials, error) {
	text := r.Header.Get(registry.AuthHeader)
	if text == "" {
		return image.Credentials{}, nil
	}
	data, err := base64.URLEncoding.DecodeString(text)
	if err != nil {
		if data, err = base64.RawURLEncoding.DecodeString(strings.TrimRight(text, "=")); err != nil {
			return image.Credentials{}, fault.New(fault.Invalid, "invalid %s header: %w", registry.AuthHeader, err)
		}
	}
	var c registry.AuthConfig
	if err := json.Unmarshal(data, &c); err != nil {
		return image.Credentials{}, fault.New(fault.Invalid, "invalid %s header: %w", registry.AuthHeader, err)
	}
	return image.Credentials{User: c.Username, Password: c.Password, IdentityToken: c.IdentityToken}, nil
}

// auth asks a registry whether it takes a user's word.
func (a *API) auth(w http.ResponseWriter, r *request) error {
	var c registry.AuthConfig
	if err := decode(r, &c, false); err != nil {
		return err
	}
	as := image.Credentials{User: c.Username, Password: c.Password, IdentityToken: c.IdentityToken}
	if err := a.Core.CheckLogin(r.Context(), r.who, image.ServerHost(c.ServerAddress), as); err != nil {
		if fault.Is(err, fault.Forbidden) {
			_ = answer(w, http.StatusUnauthorized, map[string]string{"message": err.Error()})
			return nil
		}
		return err
	}
	return answer(w, http.StatusOK, registry.AuthResponse{Status: "Login Succeeded"})
}

// imagePush sends an image to its registry.
func (a *API) imagePush(w http.ResponseWriter, r *request) error {
	if err := ownPlatform(r); err != nil {
		return err
	}
	as, err := credentials(r)
	if err != nil {
		return err
	}
	name, err := nameToMake(r.vars["name"], r.query.Get("tag"))
	if err != nil {
		return err
	}
	to, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return fault.New(fault.Internal, "the image is called %s: %w", name, err)
	}
	p := &progress{w: w}
	p.say(progressLine{Status: fmt.Sprintf("The push refers to repository [%s]", to.Name())})
	img, err := findImage(a.snapshot(), name)
	if err != nil {
		if fault.Is(err, fault.NotFound) {
			err = fault.New(fault.NotFound, "An image does not exist locally with the tag: %s", familiar(name, false))
		}
		return p.fail(err)
	}
	target, err := a.Core.PushImage(r.Context(), r.who, img, as, func(pr image.Progress) {
		p.say(progressLine{Status: "Pushed", ID: shortID(strings.TrimPrefix(pr.Blob, "sha256:"))})
	})
	if err != nil {
		return p.fail(err)
	}
	tag := ""
	if t, ok := to.(reference.Tagged); ok {
		tag = t.Tag()
	}
	p.say(progressLine{Status: fmt.Sprintf("%s: digest: %s size: %d", tag, target.Digest, target.Size)})
	return nil
}
