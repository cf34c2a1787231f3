package pods

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
)

// pull notes when an image is asked for. One that is in the cluster and came from no registry is
// what its name means, whatever the policy.
func (t *translation) pull(image string, when corev1.PullPolicy) {
	policy := map[corev1.PullPolicy]core.PullPolicy{corev1.PullAlways: core.PullNewest, corev1.PullNever: core.PullNever}[when]
	if policy == "" {
		return
	}
	if t.pulls == nil {
		t.pulls = map[string]core.PullPolicy{}
	}
	if t.pulls[image] != core.PullNewest {
		t.pulls[image] = policy
	}
}

// registryLogins are what a Secret has of registries and those who ask them.
func registryLogins(s *corev1.Secret) (map[string]image.Credentials, error) {
	type entry struct{ Username, Password, Auth, IdentityToken string }
	var of struct{ Auths map[string]entry }
	var err error
	switch s.Type {
	case corev1.SecretTypeDockerConfigJson:
		err = json.Unmarshal(s.Data[corev1.DockerConfigJsonKey], &of)
	case corev1.SecretTypeDockercfg:
		err = json.Unmarshal(s.Data[corev1.DockerConfigKey], &of.Auths)
	default:
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("Secret %s has no logins that can be read: %w", s.Name, err)
	}
	out := map[string]image.Credentials{}
	for registry, e := range of.Auths {
		if text, err := base64.StdEncoding.DecodeString(e.Auth); err == nil && e.Username == "" {
			e.Username, e.Password, _ = strings.Cut(string(text), ":")
		}
		registry = strings.TrimPrefix(strings.TrimPrefix(registry, "https://"), "http://")
		registry = strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(registry, "/"), "/v1"), "/v2")
		if registry == "index.docker.io" {
			registry = "docker.io"
		}
		out[registry] = image.Credentials{User: e.Username, Password: e.Password, IdentityToken: e.IdentityToken}
	}
	return out, nil
}

// login says who asks registries for the workload's images: the Pod's pull secrets say. A login is only told to the registry
// that it is for; therefore all images have to be of that one.
func (t *translation) login(d *core.Deployment, w *model.Workload) error {
	logins := map[string]image.Credentials{}
	for _, ref := range t.pod.Spec.ImagePullSecrets {
		s, err := t.around.secret(ref.Name)
		if missing(err, new(true)) {
			continue // as with kubelets, which try without it
		}
		if err != nil {
			return err
		}
		list, err := registryLogins(s)
		if err != nil {
			return err
		}
		for registry, as := range list {
			if _, there := logins[registry]; !there {
				logins[registry] = as
			}
		}
	}
	if len(logins) == 0 {
		return nil
	}
	var hosts []string
	var found []image.Credentials
	for ref := range w.Template.Images() {
		name, err := image.Normalize(ref)
		if err != nil {
			return nil // which is told when it is deployed
		}
		host, _, _ := strings.Cut(name, "/")
		as, best := image.Credentials{}, ""
		for registry, one := range logins {
			if (name == registry || strings.HasPrefix(name, registry+"/")) && len(registry) > len(best) {
				as, best = one, registry
			}
		}
		if !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
		if !slices.Contains(found, as) {
			found = append(found, as)
		}
	}
	switch {
	case len(found) == 1 && found[0] == image.Credentials{}:
	case len(found) > 1 || len(hosts) > 1:
		t.refused.add("spec.imagePullSecrets", "a login for some of a pod's images, which are of several registries or folders,")
	default:
		d.Logins = map[string]image.Credentials{w.Name: found[0]}
	}
	return nil
}
