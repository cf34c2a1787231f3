package certify

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"time"

	"golang.org/x/crypto/acme"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// inForceFor bounds the wait until every host answers a challenge: one that does not will hardly be asked.
const inForceFor = 20 * time.Second

// ask has a server of ACME certify a key for a host.
func (c *Certifier) ask(ctx context.Context, w want, csr []byte) (chain []byte, err error) {
	to := w.route.ACME
	if to == nil {
		to = &model.ACME{}
	}
	account, err := c.account(ctx, w)
	if err != nil {
		return nil, err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	defer transport.CloseIdleConnections()
	if to.Authority != "" {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM([]byte(to.Authority)) // of which one was found when it was deployed
		transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	client := &acme.Client{Key: account, DirectoryURL: cmp.Or(to.Server, model.ACMEServer), HTTPClient: &http.Client{Transport: transport}, UserAgent: "tutti"}
	who := &acme.Account{}
	if to.Email != "" {
		who.Contact = []string{"mailto:" + to.Email}
	}
	if _, err := client.Register(ctx, who, acme.AcceptTOS); err != nil && !errors.Is(err, acme.ErrAccountAlreadyExists) {
		return nil, fmt.Errorf("register an account: %w", err)
	}
	order, err := client.AuthorizeOrder(ctx, acme.DomainIDs(w.route.Host))
	if err != nil {
		return nil, fmt.Errorf("order a certificate: %w", err)
	}
	said := map[string]string{}
	defer func() {
		if len(said) == 0 {
			return
		}
		cs := &store.ChangeSet{}
		cs.Delete(model.KindSecret, w.route.ChallengeSecret(w.namespace))
		if _, failed := c.Store.Commit(context.WithoutCancel(ctx), cs); failed != nil {
			c.Log.Warn("a challenge that was answered could not be removed yet", "host", w.route.Host, "error", failed)
		}
	}()
	for _, url := range order.AuthzURLs {
		if err := c.prove(ctx, client, w, url, said); err != nil {
			return nil, err
		}
	}
	at := order.URI
	if order, err = client.WaitOrder(ctx, at); err != nil {
		return nil, fmt.Errorf("wait for the order: %w", err)
	}
	ders, _, err := client.CreateOrderCert(ctx, order.FinalizeURL, csr, true)
	if err != nil {
		// A server that is not done at once need not say again where the order is, as the library has it.
		if order, failed := client.WaitOrder(ctx, at); failed == nil && order.CertURL != "" {
			ders, err = client.FetchCert(ctx, order.CertURL, true)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("fetch the certificate: %w", err)
	}
	var out bytes.Buffer
	for _, der := range ders {
		pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: der}) // a buffer takes all
	}
	return out.Bytes(), nil
}

// prove has a host shown to be the cluster's: what the server wants to hear is said by every host before it
// is told to ask.
func (c *Certifier) prove(ctx context.Context, client *acme.Client, w want, url string, said map[string]string) error {
	authorization, err := client.GetAuthorization(ctx, url)
	if err != nil {
		return fmt.Errorf("read what is to be proved: %w", err)
	}
	if authorization.Status == acme.StatusValid {
		return nil
	}
	for _, challenge := range authorization.Challenges {
		if challenge.Type != "http-01" {
			continue
		}
		text, err := client.HTTP01ChallengeResponse(challenge.Token)
		if err != nil {
			return fmt.Errorf("answer the challenge: %w", err)
		}
		said[challenge.Token] = text
		data, err := json.Marshal(said)
		if err != nil {
			return fmt.Errorf("answer the challenge: %w", err)
		}
		if err := c.keep(ctx, w.route.ChallengeSecret(w.namespace), w.namespace, "challenge", data); err != nil {
			return err
		}
		c.inForce(ctx)
		if _, err := client.Accept(ctx, challenge); err != nil {
			return fmt.Errorf("have the challenge answered: %w", err)
		}
		if _, err := client.WaitAuthorization(ctx, url); err != nil {
			return fmt.Errorf("the server did not find %s to be this cluster's: %w", w.route.Host, err)
		}
		return nil
	}
	return errors.New("the server does not offer to ask by HTTP (http-01)")
}

// inForce waits until every live node has the present state in force.
func (c *Certifier) inForce(ctx context.Context) {
	snap := c.Store.Snapshot()
	ctx, cancel := context.WithTimeout(ctx, inForceFor)
	defer cancel()
	for n := range store.List[*model.Node](snap) {
		for c.Live(n.ID) && c.Applied(n.ID) < snap.Revision() {
			select {
			case <-ctx.Done():
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
}
