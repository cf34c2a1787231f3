package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/tutti-run/tutti/internal/fault"
)

// kubernetesAPI is what deploy needs of Kubernetes' API: server-side apply, and looking at what became of it.
type kubernetesAPI struct {
	client    *http.Client
	url       string
	namespace string // of objects that name none
	kinds     map[string]kubernetesKind
}

// kubernetesKind is where objects of a kind are.
type kubernetesKind struct {
	Name       string `json:"name"` // in paths
	Kind       string `json:"kind"`
	Namespaced bool   `json:"namespaced"`
}

// openKubernetes makes a client of a kubeconfig's present context.
func openKubernetes(path string) (*kubernetesAPI, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read how Kubernetes' API is reached: %w", err)
	}
	type named struct {
		Name    string
		Context struct{ Cluster, User string }
		Cluster struct {
			Server    string
			Authority string `yaml:"certificate-authority-data"`
		}
		User struct {
			Certificate string `yaml:"client-certificate-data"`
			Key         string `yaml:"client-key-data"`
			Token       string
		}
	}
	var config struct {
		Current                   string `yaml:"current-context"`
		Contexts, Clusters, Users []named
	}
	if err := yaml.Unmarshal(data, &config); err != nil {
		return nil, fault.New(fault.Invalid, "%s: %v", path, err)
	}
	find := func(list []named, name string) (out named) {
		if i := slices.IndexFunc(list, func(n named) bool { return n.Name == name }); i >= 0 {
			out = list[i]
		}
		return out
	}
	at := find(config.Contexts, config.Current)
	cluster, user := find(config.Clusters, at.Context.Cluster).Cluster, find(config.Users, at.Context.User).User
	decode := func(s string) []byte {
		out, _ := base64.StdEncoding.DecodeString(s) // what is wrong has no certificate in it, which is told below
		return out
	}
	pool := x509.NewCertPool()
	pair, err := tls.X509KeyPair(decode(user.Certificate), decode(user.Key))
	if cluster.Server == "" || !pool.AppendCertsFromPEM(decode(cluster.Authority)) || err != nil {
		return nil, fault.New(fault.Invalid, "%s: a server, its authority's certificate and a client's certificate with its key, all within the file, are accepted", path)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}, ForceAttemptHTTP2: true}
	return &kubernetesAPI{
		client: &http.Client{Transport: transport, Timeout: 30 * time.Second}, url: strings.TrimSuffix(cluster.Server, "/"), kinds: map[string]kubernetesKind{},
	}, nil
}

func (k *kubernetesAPI) close() { k.client.CloseIdleConnections() }

// do makes a request and decodes the answer.
func (k *kubernetesAPI) do(ctx context.Context, method, path string, body []byte, into any) error {
	r, err := http.NewRequestWithContext(ctx, method, k.url+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Accept", "application/json")
	if body != nil {
		r.Header.Set("Content-Type", "application/apply-patch+yaml")
	}
	answer, err := k.client.Do(r)
	if err != nil {
		return fault.New(fault.Unavailable, "ask Kubernetes' API: %w", err)
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err != nil {
		return fault.New(fault.Unavailable, "read the answer of Kubernetes' API: %w", err)
	}
	if answer.StatusCode < 300 {
		return json.Unmarshal(data, into)
	}
	var status struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(data, &status) != nil || status.Message == "" {
		status.Message = "Kubernetes' API says " + answer.Status
	}
	kind := fault.Invalid
	switch {
	case answer.StatusCode == http.StatusNotFound:
		kind = fault.NotFound
	case answer.StatusCode == http.StatusForbidden || answer.StatusCode == http.StatusUnauthorized:
		kind = fault.Forbidden
	case answer.StatusCode == http.StatusConflict:
		kind = fault.Conflict
	case answer.StatusCode >= 500 || answer.StatusCode == http.StatusTooManyRequests:
		kind = fault.Unavailable
	}
	return fault.New(kind, "%s", status.Message)
}

// newKindPatience is how long a kind may take to be answered that was defined just now.
const newKindPatience = 15 * time.Second

// kind looks up where objects of a kind are.
func (k *kubernetesAPI) kind(ctx context.Context, m *manifest) (kubernetesKind, string, error) {
	group := "/apis/" + m.APIVersion
	if !strings.Contains(m.APIVersion, "/") {
		group = "/api/" + m.APIVersion
	}
	id := group + " " + m.Kind
	for began := time.Now(); ; {
		if known, ok := k.kinds[id]; ok {
			return known, group, nil
		}
		var list struct {
			Resources []kubernetesKind `json:"resources"`
		}
		err := k.do(ctx, http.MethodGet, group, nil, &list)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return kubernetesKind{}, "", err
		}
		for _, r := range list.Resources {
			if !strings.Contains(r.Name, "/") {
				k.kinds[group+" "+r.Kind] = r
			}
		}
		if _, ok := k.kinds[id]; ok {
			continue
		}
		if time.Since(began) > newKindPatience || !k.defines() {
			return kubernetesKind{}, "", fault.New(fault.Invalid, "Kubernetes' API has no kind %s in %s: `kubectl api-resources` lists those that it has", m.Kind, m.APIVersion)
		}
		select {
		case <-ctx.Done():
			return kubernetesKind{}, "", ctx.Err()
		case <-time.After(pollInterval):
		}
	}
}

// defines reports whether kinds were defined by what was applied.
func (k *kubernetesAPI) defines() bool {
	_, ok := k.kinds["/apis/apiextensions.k8s.io/v1 CustomResourceDefinition"]
	return ok
}

// applying is one object on its way.
type applying struct {
	applied
	kind, path string
	generation int64
}

// object is what is looked at of any object.
type object struct {
	Metadata struct {
		ResourceVersion string `json:"resourceVersion"`
		Generation      int64  `json:"generation"`
	} `json:"metadata"`
	Spec struct {
		Replicas *int `json:"replicas"`
	} `json:"spec"`
	Status struct {
		ObservedGeneration int64  `json:"observedGeneration"`
		Phase              string `json:"phase"`
		Updated            int    `json:"updatedReplicas"`
		Available          int    `json:"availableReplicas"`
		Replicas           int    `json:"replicas"`
		Desired            int    `json:"desiredNumberScheduled"`
		UpdatedScheduled   int    `json:"updatedNumberScheduled"`
		Ready              int    `json:"numberAvailable"`
		Conditions         []struct{ Type, Status, Message string }
	} `json:"status"`
}

func (o *object) is(condition string) (bool, string) {
	for _, c := range o.Status.Conditions {
		if c.Type == condition {
			return c.Status == "True", c.Message
		}
	}
	return false, ""
}

// apply applies a manifest, as kubectl does with --server-side, and takes over fields that others have set.
func (k *kubernetesAPI) apply(ctx context.Context, m *manifest, dry bool) (*applying, error) {
	kind, group, err := k.kind(ctx, m)
	if err != nil {
		return nil, err
	}
	a := &applying{applied: applied{Object: m.String()}, kind: m.Kind, path: group}
	if kind.Namespaced {
		a.Namespace = m.Metadata.Namespace
		if a.Namespace == "" {
			a.Namespace = k.namespace
		}
		a.path += "/namespaces/" + url.PathEscape(a.Namespace)
	}
	a.path += "/" + kind.Name + "/" + url.PathEscape(m.Metadata.Name)
	var before, after object
	err = k.do(ctx, http.MethodGet, a.path, nil, &before)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	a.Action = "changed"
	if err != nil {
		a.Action = "created"
	}
	query := "?fieldManager=tutti&force=true"
	if dry {
		query += "&dryRun=All"
	}
	if err := k.do(ctx, http.MethodPatch, a.path+query, m.body, &after); err != nil {
		return nil, err
	}
	if after.Metadata.ResourceVersion == before.Metadata.ResourceVersion {
		a.Action = "unchanged"
	}
	a.generation = after.Metadata.Generation
	return a, nil
}

// await waits until all that was applied is as it should be.
func (k *kubernetesAPI) await(ctx context.Context, list []*applying, patience time.Duration) error {
	deadline := time.Now().Add(patience)
	for _, a := range list {
		for {
			var o object
			err := k.do(ctx, http.MethodGet, a.path, nil, &o)
			if err == nil {
				var ready bool
				if ready, err = a.ready(&o); ready {
					a.Detail = ""
					break
				}
			}
			if err != nil && !fault.Is(err, fault.Unavailable) {
				return fmt.Errorf("%s: %w", a.Object, err)
			}
			if err != nil {
				a.Detail = err.Error()
			}
			if patience > 0 && time.Now().After(deadline) {
				return fault.New(fault.Unavailable, "%s is not ready after %s: %s; `kubectl describe %s` tells more", a.Object, patience, a.Detail, a.Object)
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(pollInterval):
			}
		}
	}
	return nil
}

// ready reports whether an object is as it should be, and notes why it is not; an error says that it never will.
func (a *applying) ready(o *object) (bool, error) {
	st := &o.Status
	want := 1
	if o.Spec.Replicas != nil {
		want = *o.Spec.Replicas
	}
	switch a.kind {
	case "Deployment", "StatefulSet":
		if is, why := o.is("ReplicaFailure"); is {
			a.Detail = why
			return false, nil
		}
		a.Detail = fmt.Sprintf("%d of %d replicas are available", st.Available, want)
		return st.ObservedGeneration >= a.generation && st.Updated >= want && st.Available >= want && st.Replicas == want, nil
	case "DaemonSet":
		a.Detail = fmt.Sprintf("%d of %d are available", st.Ready, st.Desired)
		return st.ObservedGeneration >= a.generation && st.UpdatedScheduled >= st.Desired && st.Ready >= st.Desired, nil
	case "Job":
		if failed, why := o.is("Failed"); failed {
			return false, fault.New(fault.Invalid, "it has failed: %s", why)
		}
		done, _ := o.is("Complete")
		a.Detail = "it has not completed"
		return done, nil
	case "Pod":
		if st.Phase == "Failed" {
			return false, fault.New(fault.Invalid, "it has failed")
		}
		ready, why := o.is("Ready")
		a.Detail = why
		return ready || st.Phase == "Succeeded", nil
	case "CustomResourceDefinition":
		is, why := o.is("Established")
		a.Detail = why
		return is, nil
	}
	return true, nil
}
