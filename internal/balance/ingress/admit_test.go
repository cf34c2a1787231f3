package ingress

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// both asks by plain HTTP/1.1, which sessions answer, and by HTTP/2, which net/http does.
func both(t *testing.T) map[string]*http.Client {
	t.Helper()
	two := &http.Transport{Protocols: new(http.Protocols)}
	two.Protocols.SetUnencryptedHTTP2(true)
	one := &http.Transport{}
	t.Cleanup(func() { one.CloseIdleConnections(); two.CloseIdleConnections() })
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return map[string]*http.Client{"HTTP/1": {Transport: one, CheckRedirect: stay}, "HTTP/2": {Transport: two, CheckRedirect: stay}}
}

func TestRedirects(t *testing.T) {
	www, old := leading("example.org", "", "www"), leading("www.example.org", "/old/", "old")
	www.Redirect = "https://www.example.org{path}"
	old.Redirect, old.RedirectStatus = "http://{host}/new{rest}", http.StatusFound
	_, plain, _ := front(t, &Config{Routes: []Route{www, old}})
	for name, client := range both(t) {
		for _, c := range []struct {
			host, path string
			status     int
			to         string
		}{
			{"example.org", "/a%20b?c=d&e", 308, "https://www.example.org/a%20b?c=d&e"},
			{"example.org", "//evil.example/%0d%0aX: y", 308, "https://www.example.org/evil.example/%0D%0AX:%20y"},
			{"www.example.org:80", "/old/x/y?z", 302, "http://www.example.org/new/x/y?z"},
			{"www.example.org", "/old", 302, "http://www.example.org/new/"},
		} {
			c.path = strings.ReplaceAll(c.path, " ", "%20")
			status, _, resp := request(t, client, "GET", "http://"+plain, c.host, c.path, "")
			if status != c.status || resp.Header.Get("Location") != c.to {
				t.Errorf("%s %s%s is answered %d, to %q; want %q", name, c.host, c.path, status, resp.Header.Get("Location"), c.to)
			}
		}
	}
}

func TestBasicAuth(t *testing.T) {
	hash, err := bcrypt.GenerateFromPassword([]byte("open: sesame"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	r, nobody := leading("", "/private", "a", instance(t, "a")), leading("nobody", "", "b", instance(t, "b"))
	r.Protected, r.Users = true, "# who\nben:"+string(hash)+"\n"
	nobody.Protected = true
	_, plain, _ := front(t, &Config{Routes: []Route{r, nobody, leading("", "/", "open", instance(t, "open"))}})
	for name, client := range both(t) {
		for _, c := range []struct {
			host, user, password, path string
			status                     int
		}{
			{"h", "ben", "open: sesame", "/private", 200}, {"h", "ben", "open: sesame", "/private", 200}, {"h", "ben", "wrong", "/private", 401},
			{"h", "amy", "open: sesame", "/private", 401}, {"h", "", "", "/private", 401}, {"nobody", "ben", "open: sesame", "/", 401},
			{"h", "", "", "/public/../private", 401}, {"h", "", "", "/%70rivate/x", 401}, {"h", "", "", "//private", 401}, {"h", "", "", "/public/%2e%2e/private", 401},
			{"h", "", "", "/public", 200},
		} {
			q, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+plain+c.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if q.Host = c.host; c.user != "" {
				q.SetBasicAuth(c.user, c.password)
			}
			resp, err := client.Do(q)
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode != c.status || (c.status == 401) != strings.HasPrefix(resp.Header.Get("Www-Authenticate"), "Basic realm=") {
				t.Errorf("%s: %s with %q at %s gets %d, %q", name, c.user, c.password, c.path, resp.StatusCode, resp.Header.Get("Www-Authenticate"))
			}
		}
	}
}

func TestLimits(t *testing.T) {
	came, let := make(chan struct{}, 8), make(chan struct{})
	slow := leading("slow", "", "slow", waiting(t, came, let))
	slow.MaxRequests = 2
	rate, body := leading("rate", "", "rate", instance(t, "rate")), leading("body", "", "body", instance(t, "body"))
	rate.Rate, rate.Burst = 1.0/3600, 3
	body.MaxBody = 10
	in, plain, _ := front(t, &Config{Routes: []Route{slow, rate, body}})
	client := both(t)["HTTP/1"]

	for i := range 5 {
		want := map[bool]int{true: 200, false: 429}[i < 3]
		status, _, resp := request(t, client, "GET", "http://"+plain, "rate", "/", "")
		if status != want || status == 429 && resp.Header.Get("Retry-After") != "3600" {
			t.Errorf("request %d is answered %d, %q", i, status, resp.Header.Get("Retry-After"))
		}
		in.put(&Config{Routes: []Route{slow, rate, body, leading("", "", fmt.Sprint(i))}}) // who changes other routes gives nobody anything
	}
	for name, client := range both(t) {
		for length, want := range map[int]int{10: 200, 11: 413} {
			if status, _, _ := request(t, client, "POST", "http://"+plain, "body", "/", strings.Repeat("x", length)); status != want {
				t.Errorf("%s: a body of %d is answered %d", name, length, status)
			}
		}
		q, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+plain, io.MultiReader(strings.NewReader("of which nobody says the length")))
		if err != nil {
			t.Fatal(err)
		}
		q.Host = "body"
		resp, err := client.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 413 {
			t.Errorf("%s: a body in chunks is answered %d", name, resp.StatusCode)
		}
	}
	var two sync.WaitGroup
	for range 2 {
		two.Go(func() {
			if status, got, _ := request(t, client, "GET", "http://"+plain, "slow", "/", ""); status != 200 || got != "ok" {
				t.Errorf("one of two is answered %d %q", status, got)
			}
		})
	}
	<-came
	<-came
	if status, _, _ := request(t, client, "GET", "http://"+plain, "slow", "/", ""); status != 429 {
		t.Errorf("the third at a time is answered %d", status)
	}
	close(let)
	two.Wait()
	// The places are given back when the answers are counted, which a client does not see.
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		status, _, _ := request(t, client, "GET", "http://"+plain, "slow", "/", "")
		if status == 200 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("one after them is answered %d", status)
		}
	}
}

func TestManyClientsAreNotKept(t *testing.T) {
	l := newLimits(&Route{Rate: 1, Burst: 2})
	now := time.Unix(1000, 0)
	for i := range clientsMost * 2 {
		if !l.take(fmt.Sprint(i), now) {
			t.Fatalf("client %d gets nothing", i)
		}
	}
	if len(l.clients) > clientsMost {
		t.Errorf("%d are known", len(l.clients))
	}
	for i, c := range []struct {
		after time.Duration
		want  bool
	}{{0, true}, {0, true}, {0, false}, {999 * time.Millisecond, false}, {2 * time.Second, true}} {
		if got := l.take("x", now.Add(c.after)); got != c.want {
			t.Errorf("request %d, after %s: let in %t", i, c.after, got)
		}
	}
}

// TestComputeRoutes: what the state says of routes is what an ingress does.
func TestComputeRoutes(t *testing.T) {
	issued := model.Route{Host: "a.example", Issuer: model.IssuerACME, Target: 80}
	given := model.Route{Host: "b.example", Certificate: "c1", BasicAuth: "u1", Target: 80, Rate: &model.RateLimit{Requests: 30, Per: time.Minute, Burst: 5}, MaxBody: 7, MaxRequests: 9}
	s := wire.NetworkService{ID: "s", Name: "web", Namespace: "default", Routes: []model.Route{issued, given}, Secrets: map[string][]byte{
		issued.ChallengeSecret("default"): []byte(`{"token":"said"}`), "c1": []byte("pem"), "u1": []byte("ben:hash"),
	}}
	c := Compute(&wire.Network{Services: []wire.NetworkService{s}}, "n")
	if c.Routes[0].Secure || c.Challenges["token"] != "said" || len(c.Certificates) != 1 {
		t.Errorf("while there is no certificate yet: %+v, %v", c.Routes[0], c.Challenges)
	}
	if r := c.Routes[1]; !r.Secure || r.Users != "ben:hash" || !r.Protected || r.Rate != 0.5 || r.Burst != 5 || r.MaxBody != 7 || r.MaxRequests != 9 {
		t.Errorf("the other is %+v", r)
	}
	s.Secrets[issued.CertificateSecret("default")] = []byte("pem2")
	if c = Compute(&wire.Network{Services: []wire.NetworkService{s}}, "n"); !c.Routes[0].Secure || len(c.Certificates) != 2 {
		t.Errorf("with one: %+v", c.Routes[0])
	}
}

// TestChallenges: every host answers, whatever routes there are for the host, and before any of them.
func TestChallenges(t *testing.T) {
	r := leading("a.example", "", "a", instance(t, "a"))
	r.Secure = true
	_, plain, _ := front(t, &Config{Routes: []Route{r}, Challenges: map[string]string{"tok": "tok.key"}})
	for name, client := range both(t) {
		for _, host := range []string{"a.example", "other.example"} {
			if status, got, _ := request(t, client, "GET", "http://"+plain, host, challengePath+"tok", ""); status != 200 || strings.TrimSpace(got) != "tok.key" {
				t.Errorf("%s: %s answers %d %q", name, host, status, got)
			}
		}
		if status, _, _ := request(t, client, "GET", "http://"+plain, "a.example", challengePath+"other", ""); status != 308 {
			t.Errorf("%s: one that nobody knows is answered %d", name, status)
		}
	}
}
