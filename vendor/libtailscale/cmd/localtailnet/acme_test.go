package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/tempfork/acme"
)

// issuedOnce gets a certificate for a node and checks its chain.
func issuedOnce(t *testing.T, tailnet *Tailnet, chain []byte, name string) *x509.Certificate {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(tailnet.Ready().RootCAPEM))
	pair, err := tls.X509KeyPair(chain, chain)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	intermediates := x509.NewCertPool()
	for _, der := range pair.Certificate[1:] {
		intermediate, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		intermediates.AddCert(intermediate)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: intermediates})
	if err != nil {
		t.Fatalf("chain: %v", err)
	}
	if len(chains) != 1 || len(chains[0]) != 3 {
		t.Fatalf("want one chain of leaf, intermediate and root, got %d", len(chains))
	}
	return leaf
}

func TestANodeGetsItsCertificateThroughACMEAndRenewsItWhenTold(t *testing.T) {
	tailnet := startTailnet(t, Config{})
	const name = "nginx.tail1234.ts.net"
	client := localClient(t, join(t, tailnet, "nginx"))
	chain, private, err := client.CertPair(testContext(t), name)
	if err != nil {
		t.Fatal(err)
	}
	leaf := issuedOnce(t, tailnet, slices.Concat(chain, private), name)
	if got, want := leaf.NotAfter.Sub(leaf.NotBefore), 90*24*time.Hour; got != want {
		t.Fatalf("lifetime is %v, want %v", got, want)
	}
	again, _, err := client.CertPair(testContext(t), name)
	if err != nil || !bytes.Equal(again, chain) {
		t.Fatalf("the second call does not give the same certificate: %v", err)
	}
	if _, _, err := client.CertPair(testContext(t), "other.tail1234.ts.net"); err == nil {
		t.Fatal("got a certificate for another node's name")
	}
	var shown issuance
	must(t, tailnet, "GET", "/acme/orders", nil, &shown)
	if len(shown.Certificates) != 1 || shown.Orders["valid"] != 1 || shown.Accounts != 1 || !slices.Equal(shown.Certificates[0].Names, []string{name}) {
		t.Fatalf("issued: %+v", shown)
	}

	// A node that has not asked for its window yet finds it in the past.
	must(t, tailnet, "POST", "/acme/lifetime", map[string]string{"lifetime": "48h"}, nil)
	fresh := localClient(t, join(t, tailnet, "fresh"))
	old, _, err := fresh.CertPair(testContext(t), "fresh.tail1234.ts.net")
	if err != nil {
		t.Fatal(err)
	}
	must(t, tailnet, "POST", "/acme/renew", map[string]string{"name": "fresh.tail1234.ts.net"}, nil)
	eventually(t, "the renewed certificate", func() bool {
		renewed, _, err := fresh.CertPair(testContext(t), "fresh.tail1234.ts.net")
		return err == nil && !bytes.Equal(renewed, old)
	})
	must(t, tailnet, "GET", "/acme/orders", nil, &shown)
	if len(shown.Certificates) != 3 || shown.Certificates[2].NotAfter.Sub(shown.Certificates[2].NotBefore) != 48*time.Hour {
		t.Fatalf("issued: %+v", shown.Certificates)
	}
}

func TestHeldDNSHoldsTheCertificateUntilReleased(t *testing.T) {
	tailnet := startTailnet(t, Config{})
	client := localClient(t, join(t, tailnet, "held"))
	must(t, tailnet, "POST", "/dns/hold", nil, nil)
	done := make(chan error, 1)
	ctx := testContext(t)
	go func() {
		_, _, err := client.CertPair(ctx, "held.tail1234.ts.net")
		done <- err
	}()
	var shown dnsState
	eventually(t, "set-dns waits", func() bool {
		must(t, tailnet, "GET", "/dns", nil, &shown)
		return shown.Waiting == 1
	})
	if !shown.Held || shown.Sets != 0 || len(shown.Records) != 0 {
		t.Fatalf("while held: %+v", shown)
	}
	must(t, tailnet, "POST", "/dns/release", nil, nil)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	must(t, tailnet, "GET", "/dns", nil, &shown)
	if shown.Held || shown.Sets != 1 || len(shown.Records) != 1 || shown.Records[0].Name != "_acme-challenge.held.tail1234.ts.net" {
		t.Fatalf("after the release: %+v", shown)
	}
}

func TestTheRateLimitAnswers429WithRetryAfter(t *testing.T) {
	tailnet := startTailnet(t, Config{})
	must(t, tailnet, "POST", "/acme/rate-limit", map[string]int{"count": 1, "retry_after": 1}, nil)
	raw := newRawACME(t, tailnet)
	order := map[string]any{"identifiers": []identifier{{Type: "dns", Value: "a.tail1234.ts.net"}}}
	answer := raw.post("/new-order", order, nil)
	if answer.status != http.StatusTooManyRequests || answer.header.Get("Retry-After") != "1" || answer.problem != "rateLimited" {
		t.Fatalf("limited order: %+v", answer)
	}
	if answer := raw.post("/new-order", order, nil); answer.status != http.StatusCreated {
		t.Fatalf("order after the limit: %+v", answer)
	}
	// A node waits for Retry-After and then gets its certificate.
	client := localClient(t, join(t, tailnet, "patient"))
	must(t, tailnet, "POST", "/acme/rate-limit", map[string]int{"count": 1, "retry_after": 1}, nil)
	if _, _, err := client.CertPair(testContext(t), "patient.tail1234.ts.net"); err != nil {
		t.Fatal(err)
	}
	var shown issuance
	must(t, tailnet, "GET", "/acme/orders", nil, &shown)
	if shown.RateLimited != 2 || len(shown.Certificates) != 1 {
		t.Fatalf("issued: %+v", shown)
	}
	must(t, tailnet, "POST", "/acme/rate-limit", map[string]any{"on": true}, nil)
	for range 3 {
		if answer := raw.post("/new-order", order, nil); answer.status != http.StatusTooManyRequests || answer.header.Get("Retry-After") != "60" {
			t.Fatalf("order while limited: %+v", answer)
		}
	}
	must(t, tailnet, "POST", "/acme/rate-limit", map[string]any{"on": false}, nil)
	if answer := raw.post("/new-order", order, nil); answer.status != http.StatusCreated {
		t.Fatalf("order after the limit: %+v", answer)
	}
}

func TestForgedRequestsAreRefused(t *testing.T) {
	tailnet := startTailnet(t, Config{})
	raw := newRawACME(t, tailnet)
	order := map[string]any{"identifiers": []identifier{{Type: "dns", Value: "a.tail1234.ts.net"}}}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	used := raw.nonce
	if answer := raw.post("/new-order", order, nil); answer.status != http.StatusCreated {
		t.Fatalf("honest order: %+v", answer)
	}
	for what, forged := range map[string]struct {
		forge  func(*forgery)
		status int
		kind   string
	}{
		"another key's signature": {func(f *forgery) { f.signer = other }, 401, "unauthorized"},
		"a used nonce":            {func(f *forgery) { f.header["nonce"] = used }, 400, "badNonce"},
		"an invented nonce":       {func(f *forgery) { f.header["nonce"] = "invented" }, 400, "badNonce"},
		"another URL":             {func(f *forgery) { f.header["url"] = raw.base + "/new-account" }, 401, "unauthorized"},
		"no signature algorithm":  {func(f *forgery) { f.header["alg"] = "none" }, 400, "badSignatureAlgorithm"},
		"an unknown account":      {func(f *forgery) { f.header["kid"] = raw.base + "/account/999" }, 400, "accountDoesNotExist"},
		"key and account":         {func(f *forgery) { f.header["jwk"] = jwkOf(raw.key) }, 400, "malformed"},
		"a changed payload":       {func(f *forgery) { f.payloadAfter = []byte(`{"identifiers":[]}`) }, 401, "unauthorized"},
		"another content type":    {func(f *forgery) { f.contentType = "application/json" }, 415, "malformed"},
	} {
		if answer := raw.post("/new-order", order, forged.forge); answer.status != forged.status || answer.problem != forged.kind {
			t.Errorf("%s: status %d %q, want %d %q", what, answer.status, answer.problem, forged.status, forged.kind)
		}
	}
	foreign := map[string]any{"identifiers": []identifier{{Type: "dns", Value: "a.example.com"}}}
	if answer := raw.post("/new-order", foreign, nil); answer.status != 403 || answer.problem != "rejectedIdentifier" {
		t.Errorf("a foreign name: %+v", answer)
	}
}

func TestOnlyTheRightTXTRecordProvesAName(t *testing.T) {
	tailnet := startTailnet(t, Config{})
	ctx := testContext(t)
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	client := &acme.Client{Key: private, DirectoryURL: tailnet.Ready().ACMEDirectoryURL}
	if _, err := client.Register(ctx, new(acme.Account), acme.AcceptTOS); err != nil {
		t.Fatal(err)
	}
	for i, attempt := range []struct {
		record func(string) string
		want   string
	}{
		{func(string) string { return "" }, "invalid"},
		{func(string) string { return "wrong" }, "invalid"},
		{func(right string) string { return right }, "ready"},
	} {
		name := fmt.Sprintf("name%d.tail1234.ts.net", i)
		order, err := client.AuthorizeOrder(ctx, acme.DomainIDs(name))
		if err != nil {
			t.Fatal(err)
		}
		authorization, err := client.GetAuthorization(ctx, order.AuthzURLs[0])
		if err != nil {
			t.Fatal(err)
		}
		challenge := authorization.Challenges[0]
		right, err := client.DNS01ChallengeRecord(challenge.Token)
		if err != nil {
			t.Fatal(err)
		}
		if value := attempt.record(right); value != "" {
			if err := tailnet.dns.set(&tailcfg.SetDNSRequest{Name: "_acme-challenge." + name, Value: value}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := client.Accept(ctx, challenge); err != nil {
			t.Fatal(err)
		}
		after, err := client.GetOrder(ctx, order.URI)
		if err != nil {
			t.Fatal(err)
		}
		if after.Status != attempt.want {
			t.Fatalf("order %d is %s, want %s", i, after.Status, attempt.want)
		}
		if attempt.want != "ready" {
			if _, _, err := client.CreateOrderCert(ctx, order.FinalizeURL, signingRequest(t, name), true); err == nil {
				t.Fatalf("order %d gave a certificate", i)
			}
			continue
		}
		if _, _, err := client.CreateOrderCert(ctx, order.FinalizeURL, signingRequest(t, "else.tail1234.ts.net"), true); err == nil {
			t.Fatal("a CSR for another name gave a certificate")
		}
		der, _, err := client.CreateOrderCert(ctx, order.FinalizeURL, signingRequest(t, name), true)
		if err != nil || len(der) != 2 {
			t.Fatalf("certificate: %d parts, %v", len(der), err)
		}
	}
}

func signingRequest(t *testing.T, name string) []byte {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{name}}, private)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// rawACME signs requests by hand, so that a test can sign them wrongly.
type rawACME struct {
	t     *testing.T
	base  string
	key   *ecdsa.PrivateKey
	kid   string
	nonce string
}

type forgery struct {
	header       map[string]any
	signer       *ecdsa.PrivateKey
	payloadAfter []byte // sent in place of what was signed
	contentType  string
}

type rawAnswer struct {
	status  int
	header  http.Header
	body    string
	problem string
}

func newRawACME(t *testing.T, tailnet *Tailnet) *rawACME {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	raw := &rawACME{t: t, base: strings.TrimSuffix(tailnet.Ready().ACMEDirectoryURL, "/directory"), key: private}
	response, err := http.Head(raw.base + "/new-nonce")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	raw.nonce = response.Header.Get("Replay-Nonce")
	answer := raw.post("/new-account", map[string]bool{"termsOfServiceAgreed": true}, nil)
	if answer.status != http.StatusCreated {
		t.Fatalf("new account: %+v", answer)
	}
	raw.kid = answer.header.Get("Location")
	return raw
}

func (r *rawACME) post(path string, payload any, forge func(*forgery)) rawAnswer {
	r.t.Helper()
	encoded, err := json.Marshal(payload)
	if err != nil {
		r.t.Fatal(err)
	}
	request := &forgery{
		header:      map[string]any{"alg": "ES256", "nonce": r.nonce, "url": r.base + path},
		signer:      r.key,
		contentType: "application/jose+json",
	}
	if r.kid == "" {
		request.header["jwk"] = jwkOf(r.key)
	} else {
		request.header["kid"] = r.kid
	}
	if forge != nil {
		forge(request)
	}
	header, err := json.Marshal(request.header)
	if err != nil {
		r.t.Fatal(err)
	}
	signed := signedRequest{Protected: base64.RawURLEncoding.EncodeToString(header), Payload: base64.RawURLEncoding.EncodeToString(encoded)}
	digest := sha256.Sum256([]byte(signed.Protected + "." + signed.Payload))
	x, s, err := ecdsa.Sign(rand.Reader, request.signer, digest[:])
	if err != nil {
		r.t.Fatal(err)
	}
	signature := make([]byte, 64)
	x.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	signed.Signature = base64.RawURLEncoding.EncodeToString(signature)
	if request.payloadAfter != nil {
		signed.Payload = base64.RawURLEncoding.EncodeToString(request.payloadAfter)
	}
	body, err := json.Marshal(signed)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	sent, err := http.NewRequestWithContext(ctx, "POST", r.base+path, bytes.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	sent.Header.Set("Content-Type", request.contentType)
	response, err := http.DefaultClient.Do(sent)
	if err != nil {
		r.t.Fatal(err)
	}
	defer response.Body.Close()
	answer := rawAnswer{status: response.StatusCode, header: response.Header}
	content, err := io.ReadAll(response.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	answer.body = string(content)
	var problem struct {
		Type string `json:"type"`
	}
	json.Unmarshal(content, &problem)
	answer.problem = strings.TrimPrefix(problem.Type, "urn:ietf:params:acme:error:")
	r.nonce = response.Header.Get("Replay-Nonce")
	return answer
}

func jwkOf(private *ecdsa.PrivateKey) map[string]string {
	point, err := private.PublicKey.Bytes()
	if err != nil {
		return nil
	}
	return map[string]string{
		"kty": "EC", "crv": "P-256",
		"x": base64.RawURLEncoding.EncodeToString(point[1:33]),
		"y": base64.RawURLEncoding.EncodeToString(point[33:]),
	}
}
