package core_test

import (
	"context"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// needs is the least that each use case asks of its caller, "cluster" being a role in the whole cluster
// and "namespace" one in the namespace in question. It lists every exported method of Core: one that is
// added without a decision fails the test.
var needs = map[string]string{
	"Snapshot": "namespace viewer", "Find": "namespace viewer", "Explain": "namespace viewer", "Reach": "namespace viewer", "NetMap": "namespace viewer", "NetCounts": "namespace viewer", "AccessLog": "namespace viewer", "Status": "namespace viewer",
	"Events": "namespace viewer", "Logs": "namespace viewer", "Namespaces": "namespace viewer", "ListServers": "namespace viewer",

	"Deploy": "namespace operator", "DeployTogether": "namespace operator", "EndInstances": "namespace operator", "Refusals": "namespace viewer", "Scale": "namespace operator", "RestartWorkload": "namespace operator",
	"Start": "namespace operator", "LayOut": "namespace operator", "Stop": "namespace operator", "Suspend": "namespace operator", "Pause": "namespace operator", "Bound": "namespace operator", "Usage": "namespace viewer", "Processes": "namespace viewer", "Rename": "namespace operator",
	"Signal": "namespace operator", "Attach": "namespace operator", "Dial": "namespace operator", "RemoveService": "namespace operator", "RemovePolicy": "namespace operator", "LabelWorkload": "namespace operator", "BoundWorkload": "namespace operator", "Watch": "namespace viewer", "PauseRollout": "namespace operator",
	"Follow": "cluster admin", "Unfollow": "cluster admin",
	"ResumeRollout": "namespace operator", "Promote": "namespace operator", "Undo": "namespace operator",
	"RemoveWorkload": "namespace operator", "RemoveVolume": "namespace operator", "BackupVolume": "namespace operator", "RestoreVolume": "namespace operator", "RemoveVolumeOf": "namespace operator", "RemoveNetwork": "namespace operator",
	"RemoveFile": "namespace operator", "LabelFile": "namespace operator", "TaskLogs": "namespace viewer", "AwaitGone": "namespace viewer", "AwaitLinked": "namespace viewer", "Rollout": "namespace viewer",
	"FileStat": "namespace operator", "FileChanges": "namespace operator", "ReadFiles": "namespace operator", "WriteFiles": "namespace operator", "ExportFiles": "namespace operator", "Stats": "namespace viewer", "Sizes": "namespace viewer",
	"PullImage": "cluster operator", "TagImage": "cluster operator", "PushImage": "cluster operator", "PushNamedImage": "cluster operator",
	"MayRead": "namespace viewer", "MayPush": "cluster operator", "ImagePushed": "cluster operator", "RemovePushed": "cluster operator",
	"ResolveImage": "namespace operator", "CheckLogin": "namespace operator", "PruneImages": "cluster operator", "Registries": "cluster viewer", "SetRegistry": "cluster admin", "LoginRegistry": "cluster admin",
	"LogoutRegistry": "cluster admin", "NameRegistry": "cluster admin", "SetSignaturePolicy": "cluster admin",
	"GetKey": "cluster keys", "ListKeys": "cluster keys", "ChangeKeys": "cluster keys", "WatchKeys": "cluster keys",
	"Rollback": "namespace operator", "Remove": "namespace operator", "Exec": "namespace operator",

	"NodeDebug": "cluster viewer", "SetAvailability": "cluster operator", "LabelNode": "cluster operator", "TaintNode": "cluster operator",
	"Overcommit": "cluster operator", "TrustNode": "cluster admin", "SetNodeResources": "cluster operator", "ReserveNode": "cluster operator", "ImportImage": "cluster operator", "RemoveImage": "cluster operator",
	"Authority": "cluster viewer", "HostDemand": "cluster viewer", "TellHost": "cluster operator",

	"RemoveNode": "cluster admin", "PromoteServer": "cluster admin", "DemoteServer": "cluster admin", "RemoveServer": "cluster admin",
	"SetNamespace": "cluster admin", "JoinToken": "cluster admin", "RotateTokens": "cluster admin", "Backup": "cluster admin",
	"RotateAuthority": "cluster admin", "DropAuthority": "cluster admin", "SetAutolock": "cluster admin",
	"UnlockKey": "cluster admin", "Unlock": "cluster admin", "Users": "cluster admin", "CreateUser": "cluster admin",
	"GrantUser": "cluster admin", "ComponentKey": "cluster admin", "RemoveUser": "cluster admin", "CreateUserToken": "cluster admin", "RevokeUser": "cluster admin",
	"SignUser": "cluster admin", "Audited": "cluster admin",
}

var (
	typeCaller  = reflect.TypeFor[core.Caller]()
	typeContext = reflect.TypeFor[context.Context]()
	typeError   = reflect.TypeFor[error]()
)

// call calls a method with a caller and nothing else, and returns its error.
func call(m reflect.Value, who core.Caller) error {
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	var in []reflect.Value
	for i := range m.Type().NumIn() {
		switch t := m.Type().In(i); t {
		case typeCaller:
			in = append(in, reflect.ValueOf(who))
		case typeContext:
			in = append(in, reflect.ValueOf(ctx))
		case reflect.TypeFor[io.Writer]():
			in = append(in, reflect.ValueOf(io.Discard))
		case reflect.TypeFor[io.Reader]():
			in = append(in, reflect.ValueOf(strings.NewReader("")))
		case reflect.TypeFor[func(core.Seen) error]():
			in = append(in, reflect.ValueOf(func(core.Seen) error { return nil }))
		case reflect.TypeFor[func() error]():
			in = append(in, reflect.ValueOf(func() error { return nil }))
		case reflect.TypeFor[func() (image.Info, bool, error)]():
			in = append(in, reflect.ValueOf(func() (image.Info, bool, error) { return image.Info{}, false, nil }))
		default:
			v := reflect.Zero(t)
			if t.Kind() == reflect.Pointer {
				v = reflect.New(t.Elem())
			}
			in = append(in, v)
		}
	}
	for _, out := range m.Call(in) {
		if out.Type() == typeError && !out.IsNil() {
			return out.Interface().(error)
		}
	}
	return nil
}

// TestWhoMayDoWhat calls every use case as everybody there can be.
func TestWhoMayDoWhat(t *testing.T) {
	b := newBench(t)
	everybody := map[string]core.Caller{"nobody": {Name: "nobody", Via: "test"}, "somebody odd": {Name: "odd", Grants: []model.Grant{{Role: "root"}}}}
	roles := []model.Role{model.RoleViewer, model.RoleOperator, model.RoleAdmin}
	for _, role := range roles {
		everybody["namespace "+string(role)] = core.Caller{Name: "x", Via: "test", Grants: []model.Grant{{Role: role, Namespace: model.DefaultNamespace}}}
		everybody["cluster "+string(role)] = core.Caller{Name: "x", Via: "test", Grants: []model.Grant{{Role: role}}}
	}
	everybody["a component"] = core.Caller{Name: "x", Via: "test", Grants: []model.Grant{{Role: model.RoleKeys}}}
	methods := reflect.TypeOf(b.Core)
	for i := range methods.NumMethod() {
		name := methods.Method(i).Name
		need, ok := needs[name]
		if !ok {
			t.Errorf("%s is a use case, and nobody has decided who may call it: see needs", name)
			continue
		}
		scope, role, _ := strings.Cut(need, " ")
		for who, caller := range everybody {
			var given model.Role
			inCluster := false
			if len(caller.Grants) > 0 {
				given, inCluster = caller.Grants[0].Role, caller.Grants[0].Namespace == ""
			}
			want := given.Includes(model.Role(role)) && (scope == "namespace" || inCluster)
			err := call(reflect.ValueOf(b.Core).Method(i), caller)
			if got := !fault.Is(err, fault.Forbidden); got != want {
				t.Errorf("%s as %s: %v; may it: %v", name, who, err, want)
			}
		}
	}
	for name := range needs {
		if _, ok := methods.MethodByName(name); !ok {
			t.Errorf("%s is decided about and does not exist", name)
		}
	}
}

// logbook is an audit log in memory.
type logbook struct {
	mu      sync.Mutex
	entries []core.AuditEntry
}

func (l *logbook) Record(e core.AuditEntry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = append(l.entries, e)
}

func (l *logbook) Read(context.Context, core.AuditQuery) ([]core.AuditEntry, []string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.entries), nil, nil
}

// TestNamespacesKeepUsersApart has two tenants with an application of the same name each.
func TestNamespacesKeepUsersApart(t *testing.T) {
	b, ctx := newBench(t), t.Context()
	book := &logbook{}
	b.Core.Audit = book
	user := func(role model.Role, ns string) core.Caller {
		return core.Caller{Name: string(role) + "-" + ns, Via: "test", Namespace: ns, Grants: []model.Grant{{Role: role, Namespace: ns}}}
	}
	red, blue := user(model.RoleOperator, "red"), user(model.RoleOperator, "blue")
	watcher := user(model.RoleViewer, "red")
	for _, who := range []core.Caller{red, blue} {
		d := shop()
		d.Namespace = ""
		for _, s := range d.Services {
			s.Ports = nil // of the nodes, which both share
		}
		if _, err := b.Deploy(ctx, who, d); err != nil {
			t.Fatal(err)
		}
	}
	d := shop()
	d.Namespace = "blue"
	if _, err := b.Deploy(ctx, red, d); !fault.Is(err, fault.Forbidden) {
		t.Errorf("red deployed into blue: %v", err)
	}
	snap, err := b.Snapshot(red)
	if err != nil {
		t.Fatal(err)
	}
	var blues *model.Workload
	for w := range store.List[*model.Workload](b.Store.Snapshot()) {
		if w.Namespace == "blue" {
			blues = w
		}
	}
	for w := range store.List[*model.Workload](snap) {
		if w.Namespace != "red" {
			t.Errorf("red sees %s of %s", w.FullName(), w.Namespace)
		}
	}
	if _, ok := store.Get[*model.Cluster](snap, model.ClusterID); ok {
		t.Error("a user of a namespace sees the cluster's own object")
	}
	if _, ok := store.Get[*model.Node](snap, "n1"); !ok {
		t.Error("a user of a namespace does not see nodes")
	}
	f, err := b.Find(red, "shop/web")
	if err != nil || f.Workload.Namespace != "red" {
		t.Errorf("red's shop/web is %+v, %v", f.Workload, err)
	}
	for what, err := range map[string]error{
		"scale by ID":  b.Scale(ctx, red, blues.ID, 5),
		"remove by ID": b.Remove(ctx, red, blues.ID, false),
		"logs by ID":   b.Core.Logs(ctx, red, blues.ID, driver.LogOptions{}, func(core.LogLine) error { return nil }),
	} {
		if !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Forbidden) {
			t.Errorf("%s of what is blue's, as red: %v", what, err)
		}
	}
	if err := b.Scale(ctx, watcher, "shop/web", 5); !fault.Is(err, fault.Forbidden) {
		t.Errorf("a viewer scaled: %v", err)
	}
	if err := b.Scale(ctx, red, "shop/web", 5); err != nil {
		t.Errorf("an operator could not scale: %v", err)
	}
	reaching := shop()
	reaching.Namespace = "red"
	reaching.Workloads[0].Template.Tasks[0].Privileged = true
	if _, err := b.Deploy(ctx, red, reaching); !fault.Is(err, fault.Forbidden) {
		t.Errorf("an operator of a namespace got all privileges of a node: %v", err)
	}
	reaching.Workloads[0].Template.Tasks[0].Privileged, reaching.Workloads[0].Template.Tasks[0].Driver = false, "process"
	if _, err := b.Deploy(ctx, red, reaching); !fault.Is(err, fault.Forbidden) || !strings.Contains(err.Error(), "a process of the node") {
		t.Errorf("an operator of a namespace got a process of a node: %v", err)
	}
	report, err := b.Audited(ctx, anna, core.AuditQuery{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range report.Entries {
		got = append(got, e.User+" "+e.UseCase+" "+e.Result)
	}
	for _, want := range []string{
		"operator-red deploy done", "operator-blue deploy done", "operator-red deploy forbidden", "viewer-red scale forbidden", "operator-red scale done",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("the audit log lacks %q: %q", want, got)
		}
	}
	if slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, "look") || strings.Contains(s, "logs") }) {
		t.Errorf("the audit log has what changes nothing: %q", got)
	}
}

// TestChangesOfKeysAreAudited: by whom, and of which keys; values are not in it.
func TestChangesOfKeysAreAudited(t *testing.T) {
	b, ctx := newBench(t), t.Context()
	book := &logbook{}
	b.Core.Audit = book
	component := core.Caller{Name: "kube", Via: "test", Grants: []model.Grant{{Role: model.RoleKeys}}}
	change := core.KeyChanges{Put: []core.KeyPut{{Key: "/kube/pods/a", Value: []byte("hidden")}}, Delete: []string{"/kube/pods/b"}, DeletePrefixes: []string{"/old/"}}
	if _, err := b.ChangeKeys(ctx, component, change); err != nil {
		t.Fatal(err)
	}
	many := core.KeyChanges{}
	for n := range 30 {
		many.Put = append(many.Put, core.KeyPut{Key: fmt.Sprint("/k/", n)})
	}
	if _, err := b.ChangeKeys(ctx, component, many); err != nil {
		t.Fatal(err)
	}
	if _, err := b.ChangeKeys(ctx, core.Caller{Name: "ben", Grants: []model.Grant{{Role: model.RoleOperator}}}, change); !fault.Is(err, fault.Forbidden) {
		t.Errorf("an operator changed keys: %v", err)
	}
	if _, err := b.GetKey(component, "/kube/pods/a", 0); err != nil {
		t.Error(err)
	}
	if snap, err := b.Snapshot(component); err == nil {
		t.Errorf("who has keys only sees the cluster as of %d", snap.Revision())
	}
	var got []string
	for _, e := range book.entries {
		if e.UseCase != "keys change" {
			continue
		}
		got = append(got, fmt.Sprint(e.User, " ", e.Result, ": ", e.What))
		if !e.Frequent() || strings.Contains(fmt.Sprint(e), "hidden") {
			t.Errorf("entry %+v", e)
		}
	}
	if len(got) != 3 || got[0] != "kube done: delete /kube/pods/b, delete /old/…, put /kube/pods/a" ||
		!strings.HasSuffix(got[1], "put /k/9, and 20 more") || !strings.HasPrefix(got[2], "ben forbidden: ") {
		t.Errorf("the audit log says %q", got)
	}
}

func TestUsers(t *testing.T) {
	b, ctx := newBench(t), t.Context()
	book := &logbook{}
	b.Core.Audit = book
	directory := core.Directory{Store: b.Store}
	for _, bad := range []struct {
		name   string
		grants []model.Grant
	}{{"", []model.Grant{{Role: model.RoleViewer}}}, {"x", nil}, {"x", []model.Grant{{Role: "root"}}}, {"x", []model.Grant{{Role: model.RoleKeys, Namespace: "red"}}}, {"x", []model.Grant{{Role: model.RoleViewer, Namespace: "a/b"}}}} {
		if err := b.CreateUser(ctx, anna, bad.name, bad.grants); !fault.Is(err, fault.Invalid) {
			t.Errorf("user %q with %v: %v", bad.name, bad.grants, err)
		}
	}
	if err := b.CreateUser(ctx, anna, "ben", []model.Grant{{Role: model.RoleOperator, Namespace: "red"}}); err != nil {
		t.Fatal(err)
	}
	if err := b.CreateUser(ctx, anna, "ben", []model.Grant{{Role: model.RoleAdmin}}); !fault.Is(err, fault.Conflict) {
		t.Errorf("a second ben: %v", err)
	}
	first, err := b.CreateUserToken(ctx, anna, "ben", 0)
	if err != nil {
		t.Fatal(err)
	}
	short, err := b.CreateUserToken(ctx, anna, "ben", time.Nanosecond)
	if err != nil {
		t.Fatal(err)
	}
	if who, err := directory.ByToken(first.Token); err != nil || who.Name != "ben" || len(who.Grants) != 1 {
		t.Errorf("the token is of %+v, %v", who, err)
	}
	for _, bad := range []string{short.Token, first.Token + "x", "", "tuttiuser1---", strings.Replace(first.Token, first.ID, "other", 1)} {
		if _, err := directory.ByToken(bad); !fault.Is(err, fault.Forbidden) {
			t.Errorf("token %q gave %v", bad, err)
		}
	}
	secret := first.Token[strings.LastIndexByte(first.Token, '-')+1:]
	u, _ := store.ByName[*model.User](b.Store.Snapshot(), "", "", "ben")
	for _, k := range u.Tokens {
		if strings.Contains(string(k.Hash), secret) || len(k.Hash) != 32 {
			t.Errorf("the state holds %x", k.Hash)
		}
	}
	csr, _, err := wire.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.SignUser(ctx, anna, "ben", csr, 10*365*24*time.Hour); !fault.Is(err, fault.Invalid) {
		t.Errorf("a certificate for ten years: %v", err)
	}
	if _, believe, err := b.SignUser(ctx, anna, "ben", csr, 0); err != nil || len(believe.CA) == 0 {
		t.Errorf("a certificate: %v", err)
	}
	now := time.Now()
	if who, err := directory.ByCertificate(u.ID, "ben", now); err != nil || who.Name != "ben" {
		t.Errorf("the certificate is of %+v, %v", who, err)
	}
	if _, err := directory.ByCertificate("another", "ben", now); !fault.Is(err, fault.Forbidden) {
		t.Errorf("the certificate of an earlier ben gave %v", err)
	}
	if err := b.GrantUser(ctx, anna, "ben", []model.Grant{{Role: model.RoleViewer}}); err != nil {
		t.Fatal(err)
	}
	if who, err := directory.ByToken(first.Token); err != nil || who.Grants[0].Role != model.RoleViewer {
		t.Errorf("after another role he is %+v, %v", who, err)
	}
	if err := b.RevokeUser(ctx, anna, "ben", first.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := directory.ByToken(first.Token); !fault.Is(err, fault.Forbidden) {
		t.Errorf("a revoked token gave %v", err)
	}
	if err := b.RevokeUser(ctx, anna, "ben", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := directory.ByCertificate(u.ID, "ben", now); !fault.Is(err, fault.Forbidden) {
		t.Errorf("a revoked certificate gave %v", err)
	}
	if err := b.RemoveUser(ctx, anna, "ben"); err != nil {
		t.Fatal(err)
	}
	if list, err := b.Users(ctx, anna); err != nil || len(list) != 0 {
		t.Errorf("left are %v, %v", list, err)
	}
	for _, e := range book.entries {
		if strings.Contains(e.What+e.Error, secret) {
			t.Errorf("the audit log holds a secret: %+v", e)
		}
	}
}
