package compose

import (
	"os"
	"reflect"
	"testing"

	"github.com/tutti-run/tutti/internal/model"
)

// policyEffects show that the keys of lists of allow and deny have one.
func policyEffects() map[string]struct{ with, without string } {
	out := map[string]struct{ with, without string }{}
	for _, list := range []string{"allow", "deny"} {
		key := tuttiKey + ": {" + list + ": "
		file := func(text string) string { return "services: {a: {image: a}}\n" + text }
		for path, e := range map[string]struct{ with, without string }{
			"from":  {with: key + "[{from: other}]}"},
			"to":    {with: key + "[{to: other}]}"},
			"ports": {with: key + "[{from: other, ports: [80, 81-90/udp]}]}", without: key + "[{from: other}]}"},
		} {
			out[ours+list+"."+path] = e
		}
		for path, e := range map[string]struct{ with, without string }{
			"from":  {with: file(key + "[{from: a}]}"), without: file("")},
			"to":    {with: file(key + "[{to: a}]}"), without: file("")},
			"ports": {with: file(key + "[{from: a, ports: 80}]}"), without: file(key + "[a]}")},
		} {
			out[tuttiKey+"."+list+"."+path] = e
		}
	}
	return out
}

func TestPoliciesOfAFile(t *testing.T) {
	t.Chdir(t.TempDir())
	const text = `
services:
  web: {image: a, networks: [front]}
  db:
    image: a
    networks: [front]
    x-tutti:
      allow:
        - web
        - {from: [bank/api, bank/*, /alone, "*"], ports: [5432, 8000-8010/udp]}
        - {from: [10.20.0.0/16, 192.0.2.1, "fd00::/8"]}
        - {from: ["namespace:other", "namespace:other/shop/web", "network:front"]}
        - {to: nobody}
      deny: [{to: anyone, ports: 25}]
networks: {front: }
x-tutti: {allow: []}
`
	if err := os.WriteFile("compose.yaml", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	got := mustLoad(t, Options{Files: []string{"compose.yaml"}, Name: "shop"}).Deployment.Policies
	who := func(s model.Selector) model.Peer { return model.Peer{Selector: &s} }
	in := func(peers ...model.Peer) model.PolicyRule {
		return model.PolicyRule{Direction: model.DirectionIn, Peers: peers}
	}
	second := in(who(model.Selector{Application: "bank", Workload: "api"}), who(model.Selector{Application: "bank"}),
		who(model.Selector{Application: model.NoApplication, Workload: "alone"}), who(model.Selector{Application: "shop"}))
	second.Ports = []model.PortRange{{Protocol: "tcp", From: 5432}, {Protocol: "udp", From: 8000, To: 8010}}
	want := []*model.Policy{
		{
			Meta: model.Meta{Name: "db"}, Subject: model.Selector{Application: "shop", Workload: "db"}, IsolateIn: true, IsolateOut: true,
			Rules: []model.PolicyRule{
				in(who(model.Selector{Application: "shop", Workload: "web"})),
				second,
				in(model.Peer{CIDR: "10.20.0.0/16"}, model.Peer{CIDR: "192.0.2.1/32"}, model.Peer{CIDR: "fd00::/8"}),
				in(who(model.Selector{Namespace: "other"}), who(model.Selector{Namespace: "other", Application: "shop", Workload: "web"}), who(model.Selector{Namespace: model.AnyNamespace, Network: "front"})),
				{Direction: model.DirectionOut, Deny: true, Ports: []model.PortRange{{Protocol: "tcp", From: 25}}},
			},
		},
		{Meta: model.Meta{Name: applicationPolicy}, Subject: model.Selector{Application: "shop"}, IsolateIn: true},
	}
	if !reflect.DeepEqual(got, want) {
		for i := range got {
			t.Errorf("got %+v", got[i])
		}
		for i := range want {
			t.Errorf("want %+v", want[i])
		}
	}
}
