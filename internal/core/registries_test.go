package core_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

func digestOf(text string) string { return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(text))) }

// web is a deployment of one image.
func web(ref string, policy core.PullPolicy) core.Deployment {
	w := &model.Workload{Meta: model.Meta{Name: "web"}, Type: model.ServiceWorkload, Count: 1}
	w.Template.Tasks = []model.TaskSpec{{Name: "web", Image: ref}}
	return core.Deployment{Application: "shop", Workloads: []*model.Workload{w}, Pulls: map[string]core.PullPolicy{ref: policy}}
}

func TestPullPolicies(t *testing.T) {
	const ref = "registry.example.com/shop/web:1"
	b, ctx := newBench(t), t.Context()
	b.registry = map[string]string{ref: digestOf("first")}
	deploy := func(policy core.PullPolicy, want string, pulls int) {
		t.Helper()
		b.pulled = nil
		if _, err := b.Deploy(ctx, anna, web(ref, policy)); err != nil {
			t.Fatal(err)
		}
		w, _ := store.ByName[*model.Workload](b.Store.Snapshot(), "default", "shop", "web")
		if got := w.Template.Tasks[0].Digest; got != want || len(b.pulled) != pulls {
			t.Errorf("policy %q gave %s with %d pulls, want %s with %d", policy, got, len(b.pulled), want, pulls)
		}
	}
	if _, err := b.Deploy(ctx, anna, web(ref, core.PullNever)); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "policy is never") {
		t.Errorf("what is not there, and never pulled, gave %v", err)
	}
	deploy(core.PullAlways, digestOf("first"), 1)
	b.registry[ref] = digestOf("second")
	deploy(core.PullMissing, digestOf("first"), 0)
	deploy(core.PullNever, digestOf("first"), 0)
	deploy(core.PullNewest, digestOf("second"), 1)
	deploy(core.PullNewest, digestOf("second"), 0)
	delete(b.registry, ref) // it does not answer
	deploy(core.PullNewest, digestOf("second"), 0)
	if _, err := b.Deploy(ctx, anna, web(ref, core.PullAlways)); !fault.Is(err, fault.NotFound) {
		t.Errorf("a registry that has it no more gave %v", err)
	}
	if _, err := b.Deploy(ctx, anna, web(ref, "sometimes")); err == nil || !strings.Contains(err.Error(), "missing, always, never and newest") {
		t.Errorf("a policy that there is not gave %v", err)
	}
}

// TestLoginsOfWorkloads are sealed, kept by later deployments, no reason for a new revision, and given to the
// node that runs the workload only.
func TestLoginsOfWorkloads(t *testing.T) {
	const ref = "registry.example.com/shop/web:1"
	b, ctx := newBench(t), t.Context()
	b.registry = map[string]string{ref: digestOf("first")}
	login := image.Credentials{User: "ci", Password: "open sesame"}
	d := web(ref, core.PullAlways)
	d.Logins = map[string]image.Credentials{"web": login}
	if _, err := b.Deploy(ctx, anna, d); err != nil {
		t.Fatal(err)
	}
	if len(b.pulled) != 1 || b.pulled[0].as != login {
		t.Errorf("pulled were %+v", b.pulled)
	}
	get := func() *model.Workload {
		w, _ := store.ByName[*model.Workload](b.Store.Snapshot(), "default", "shop", "web")
		return w
	}
	w := get()
	if len(w.PullLogin) == 0 || strings.Contains(string(w.PullLogin), "sesame") {
		t.Errorf("the login is kept as %q", w.PullLogin)
	}
	if _, err := b.Deploy(ctx, anna, web(ref, core.PullMissing)); err != nil {
		t.Fatal(err)
	}
	if again := get(); string(again.PullLogin) != string(w.PullLogin) || again.RevisionID != w.RevisionID || again.Generation != w.Generation {
		t.Errorf("the next deployment made %+v", again)
	}
	b.put(&model.Instance{Meta: model.Meta{ID: "i1", Namespace: "default", Name: "web.1"}, WorkloadID: w.ID, RevisionID: w.RevisionID, NodeID: "n2", Desired: model.DesiredRun})
	outside := core.Outside{Store: b.Store, Trust: b.Trust}
	wanted := image.Wanted{Name: ref, Digest: digestOf("first")}
	if got, err := outside.ForNode(ctx, "n2", wanted); err != nil || len(got) != 1 || got[0].Credentials != login || got[0].URL != "https://registry.example.com" {
		t.Errorf("the node that runs it is told %+v, %v", got, err)
	}
	if got, err := outside.ForNode(ctx, "n1", wanted); !fault.Is(err, fault.NotFound) {
		t.Errorf("another node is told %+v, %v", got, err)
	}
	if got, err := outside.ForNode(ctx, "n2", image.Wanted{Name: "registry.example.com/other:1"}); !fault.Is(err, fault.NotFound) {
		t.Errorf("of another image the node is told %+v, %v", got, err)
	}
}

func TestRegistries(t *testing.T) {
	b, ctx := newBench(t), t.Context()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user == "" || password != "secret of "+user {
			w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	for _, user := range []string{"anna", "ci"} {
		prefix := host
		if user == "ci" {
			prefix += "/shop"
		}
		if err := b.LoginRegistry(ctx, anna, prefix, image.Credentials{User: user, Password: "secret of " + user}); err != nil {
			t.Fatal(err)
		}
		if err := b.LoginRegistry(ctx, anna, prefix, image.Credentials{User: user, Password: "guessed"}); !fault.Is(err, fault.Forbidden) {
			t.Errorf("a wrong password of %s gave %v", user, err)
		}
	}
	if err := b.SetRegistry(ctx, anna, "registry.example.com", model.Registry{Mirrors: []string{"http://" + host + "/shop"}}); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []model.Registry{{Mirrors: []string{"mirror"}}, {CA: []byte("none")}} {
		if err := b.SetRegistry(ctx, anna, "registry.example.com", bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v gave %v", bad, err)
		}
	}
	outside := core.Outside{Store: b.Store, Trust: b.Trust}
	for name, want := range map[string]string{
		host + "/web:1": "http://" + host + " anna", host + "/shop/web:1": "http://" + host + " ci", host + "/shopping:1": "http://" + host + " anna",
		"docker.io/library/redis:7":  "https://registry-1.docker.io ",
		"registry.example.com/web:1": "http://" + host + "/shop ci, https://registry.example.com ",
	} {
		list, err := outside.Reach(ctx, image.Wanted{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range list {
			got = append(got, e.URL+" "+e.User)
		}
		if text := strings.Join(got, ", "); text != want {
			t.Errorf("%s comes from %s, want %s", name, text, want)
		}
	}
	v, err := b.Registries(ctx, anna)
	if err != nil || len(v.Registries) != 2 || strings.Contains(fmt.Sprintf("%+v", v), "secret") {
		t.Errorf("listed are %+v, %v", v, err)
	}
	if err := b.LogoutRegistry(ctx, anna, host); err != nil {
		t.Fatal(err)
	}
	if err := b.LogoutRegistry(ctx, anna, host); !fault.Is(err, fault.NotFound) {
		t.Errorf("logged out again: %v", err)
	}
	if err := b.NameRegistry(ctx, anna, "registry.shop.example:7405", false); err != nil {
		t.Fatal(err)
	}
	if got := core.OwnName(b.Store.Snapshot(), "registry.shop.example:7405/shop/web:1"); got != image.RegistryHost+"/shop/web:1" {
		t.Errorf("the registry's own name leads to %s", got)
	}
	if got := core.OwnName(b.Store.Snapshot(), "other.example:7405/shop/web:1"); got != "other.example:7405/shop/web:1" {
		t.Errorf("another name leads to %s", got)
	}
}

func TestSignatures(t *testing.T) {
	const ref = "registry.example.com/shop/web:1"
	b, ctx := newBench(t), t.Context()
	b.registry = map[string]string{ref: digestOf("first")}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public := func(k *ecdsa.PrivateKey) string {
		der, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	}
	sign := func(k *ecdsa.PrivateKey, digest string) image.Signature {
		payload := fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":"x"},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, digest)
		sum := sha256.Sum256(payload)
		value, err := ecdsa.SignASN1(rand.Reader, k, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		return image.Signature{Payload: payload, Value: value}
	}
	if err := b.SetSignaturePolicy(ctx, anna, model.SignaturePolicy{Pattern: "registry.example.com/**", Keys: []string{"no key"}}, false); !fault.Is(err, fault.Invalid) {
		t.Errorf("what is no key gave %v", err)
	}
	if err := b.SetSignaturePolicy(ctx, anna, model.SignaturePolicy{Pattern: "registry.example.com/**", Keys: []string{public(key)}}, false); err != nil {
		t.Fatal(err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	broken := sign(key, digestOf("first"))
	broken.Payload = append([]byte(" "), broken.Payload...)
	for what, signatures := range map[string][]image.Signature{
		"no signature": nil, "another key's": {sign(other, digestOf("first"))}, "another image's": {sign(key, digestOf("second"))}, "a changed one": {broken},
	} {
		b.signatures = signatures
		_, err := b.Deploy(ctx, anna, web(ref, core.PullAlways))
		if !fault.Is(err, fault.Forbidden) || !strings.Contains(err.Error(), "the policy for registry.example.com/** wants it signed") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, ok := store.ByName[*model.Image](b.Store.Snapshot(), "", "", ref); ok {
		t.Error("an image that may not be run is one of the cluster's")
	}
	b.signatures = []image.Signature{sign(other, digestOf("first")), sign(key, digestOf("first"))}
	if _, err := b.Deploy(ctx, anna, web(ref, core.PullAlways)); err != nil {
		t.Fatal(err)
	}
	b.signatures = nil // it was verified, and is not asked for again
	if _, err := b.Deploy(ctx, anna, web(ref, core.PullMissing)); err != nil {
		t.Error(err)
	}
	b.registry[ref] = digestOf("second")
	if _, err := b.Deploy(ctx, anna, web(ref, core.PullAlways)); !fault.Is(err, fault.Forbidden) {
		t.Errorf("other content under the name gave %v", err)
	}
	if err := b.SetSignaturePolicy(ctx, anna, model.SignaturePolicy{Pattern: "registry.example.com/shop/*"}, true); err != nil {
		t.Fatal(err)
	}
	b.registry[ref] = digestOf("first")
	if _, err := b.Deploy(ctx, anna, web(ref, core.PullMissing)); !fault.Is(err, fault.Forbidden) || !strings.Contains(err.Error(), "lets none of them") {
		t.Errorf("what no policy lets run gave %v", err)
	}
	for _, pattern := range []string{"registry.example.com/shop/*", "registry.example.com/**"} {
		if err := b.SetSignaturePolicy(ctx, anna, model.SignaturePolicy{Pattern: pattern}, false); err != nil {
			t.Error(err)
		}
	}
	if _, err := b.Deploy(ctx, anna, web(ref, core.PullMissing)); err != nil {
		t.Errorf("without a policy: %v", err)
	}
}
