package main

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"time"

	"tailscale.com/util/dnsname"
)

// orderLifetime is how long an order and its authorizations may be used.
const orderLifetime = time.Hour

type identifier struct {
	Type  string `json:"type"`
	Value string `json:"value"`
}

func (s *acmeServer) serveNewOrder(w http.ResponseWriter, _ *http.Request, verified *verifiedRequest) *problem {
	if s.rateLimit.remaining != 0 {
		if s.rateLimit.remaining > 0 {
			s.rateLimit.remaining--
		}
		s.rejectedCount++
		return &problem{Status: http.StatusTooManyRequests, Type: "rateLimited", Detail: "too many new orders", RetryAfter: s.rateLimit.retryAfter}
	}
	var request struct {
		Identifiers []identifier `json:"identifiers"`
		Replaces    string       `json:"replaces"`
	}
	if err := json.Unmarshal(verified.payload, &request); err != nil {
		return malformed("newOrder: %v", err)
	}
	if len(request.Identifiers) == 0 {
		return malformed("newOrder: no identifiers")
	}
	if request.Replaces != "" && s.certificateByARI(request.Replaces) == nil {
		return malformed("newOrder: no certificate %q to replace", request.Replaces)
	}
	created := &order{id: s.newIDLocked(), account: verified.account, status: "pending", expires: time.Now().Add(orderLifetime), replaces: request.Replaces}
	for _, wanted := range request.Identifiers {
		name := strings.ToLower(wanted.Value)
		if wanted.Type != "dns" || !s.mayIssue(name) {
			return &problem{Status: http.StatusForbidden, Type: "rejectedIdentifier", Detail: fmt.Sprintf("%s %q is no name in %s", wanted.Type, wanted.Value, s.domain)}
		}
		if slices.Contains(created.names, name) {
			continue
		}
		base, wildcard := strings.CutPrefix(name, "*.")
		created.names = append(created.names, name)
		created.authorizations = append(created.authorizations, &authorization{
			id: s.newIDLocked(), account: verified.account, name: base, wildcard: wildcard,
			token: newSecret(""), status: "pending", expires: created.expires,
		})
	}
	for _, needed := range created.authorizations {
		s.authz[needed.id] = needed
	}
	s.orders[created.id] = created
	return s.writeOrder(w, http.StatusCreated, created)
}

// mayIssue reports whether name is one label, or more, under the tailnet's
// domain.
func (s *acmeServer) mayIssue(name string) bool {
	labels, under := strings.CutSuffix(strings.TrimPrefix(name, "*."), "."+s.domain)
	if !under {
		return false
	}
	for label := range strings.SplitSeq(labels, ".") {
		if dnsname.ValidLabel(label) != nil {
			return false
		}
	}
	return true
}

func (s *acmeServer) orderOf(r *http.Request, verified *verifiedRequest) (*order, *problem) {
	found := s.orders[r.PathValue("id")]
	if found == nil || found.account != verified.account {
		return nil, &problem{Status: http.StatusNotFound, Type: "malformed", Detail: "this account has no such order"}
	}
	return found, nil
}

func (s *acmeServer) serveOrder(w http.ResponseWriter, r *http.Request, verified *verifiedRequest) *problem {
	found, failure := s.orderOf(r, verified)
	if failure != nil {
		return failure
	}
	return s.writeOrder(w, http.StatusOK, found)
}

func (s *acmeServer) writeOrder(w http.ResponseWriter, status int, shown *order) *problem {
	identifiers, authorizations := []identifier{}, []string{}
	for _, name := range shown.names {
		identifiers = append(identifiers, identifier{Type: "dns", Value: name})
	}
	for _, needed := range shown.authorizations {
		authorizations = append(authorizations, s.base+"/authorization/"+needed.id)
	}
	url := s.base + "/order/" + shown.id
	body := map[string]any{
		"status":         shown.status,
		"expires":        shown.expires.UTC().Format(time.RFC3339),
		"identifiers":    identifiers,
		"authorizations": authorizations,
		"finalize":       url + "/finalize",
	}
	if shown.certificate != nil {
		body["certificate"] = s.base + "/certificate/" + shown.certificate.id
	}
	if shown.failure != nil {
		body["error"] = shown.failure
	}
	if shown.replaces != "" {
		body["replaces"] = shown.replaces
	}
	w.Header().Set("Location", url)
	writeJSON(w, status, body)
	return nil
}

func (s *acmeServer) authorizationOf(r *http.Request, verified *verifiedRequest) (*authorization, *problem) {
	found := s.authz[r.PathValue("id")]
	if found == nil || found.account != verified.account {
		return nil, &problem{Status: http.StatusNotFound, Type: "malformed", Detail: "this account has no such authorization"}
	}
	return found, nil
}

func (s *acmeServer) serveAuthorization(w http.ResponseWriter, r *http.Request, verified *verifiedRequest) *problem {
	found, failure := s.authorizationOf(r, verified)
	if failure != nil {
		return failure
	}
	body := map[string]any{
		"status":     found.status,
		"expires":    found.expires.UTC().Format(time.RFC3339),
		"identifier": identifier{Type: "dns", Value: found.name},
		"challenges": []any{s.challengeBody(found)},
	}
	if found.wildcard {
		body["wildcard"] = true
	}
	writeJSON(w, http.StatusOK, body)
	return nil
}

func (s *acmeServer) challengeBody(of *authorization) map[string]any {
	body := map[string]any{"type": "dns-01", "url": s.base + "/challenge/" + of.id, "token": of.token, "status": of.status}
	if of.status == "valid" {
		body["validated"] = of.checked.UTC().Format(time.RFC3339)
	}
	if of.failure != nil {
		body["error"] = of.failure
	}
	return body
}

// serveChallenge checks the TXT record at once, so that the answer already
// holds the outcome.
func (s *acmeServer) serveChallenge(w http.ResponseWriter, r *http.Request, verified *verifiedRequest) *problem {
	found, failure := s.authorizationOf(r, verified)
	if failure != nil {
		return failure
	}
	// An empty payload only reads the challenge (RFC 8555 §7.5.1).
	if len(verified.payload) > 0 && found.status == "pending" {
		s.checkChallengeLocked(found)
	}
	w.Header().Add("Link", fmt.Sprintf(`<%s/authorization/%s>;rel="up"`, s.base, found.id))
	writeJSON(w, http.StatusOK, s.challengeBody(found))
	return nil
}

func (s *acmeServer) checkChallengeLocked(of *authorization) {
	// RFC 8555 §8.4: base64url(SHA-256(token "." thumbprint)).
	digest := sha256.Sum256([]byte(of.token + "." + of.account.key.thumbprint))
	want := base64.RawURLEncoding.EncodeToString(digest[:])
	name := "_acme-challenge." + of.name
	values := s.lookupTXT(name)
	of.checked = time.Now()
	switch {
	case slices.Contains(values, want):
		of.status = "valid"
	case len(values) == 0:
		of.status = "invalid"
		of.failure = &problem{Status: http.StatusBadRequest, Type: "dns", Detail: "no TXT record at " + name}
	default:
		of.status = "invalid"
		of.failure = &problem{Status: http.StatusForbidden, Type: "unauthorized", Detail: "no TXT record at " + name + " holds the key authorization"}
	}
	for _, pending := range s.orders {
		if pending.status == "pending" && slices.Contains(pending.authorizations, of) {
			pending.settle()
		}
	}
}

// settle moves a pending order on by its authorizations.
func (o *order) settle() {
	for _, needed := range o.authorizations {
		switch needed.status {
		case "invalid":
			o.status, o.failure = "invalid", needed.failure
			return
		case "pending":
			return
		}
	}
	o.status = "ready"
}

func (s *acmeServer) serveFinalize(w http.ResponseWriter, r *http.Request, verified *verifiedRequest) *problem {
	found, failure := s.orderOf(r, verified)
	if failure != nil {
		return failure
	}
	if found.status != "ready" || found.expires.Before(time.Now()) {
		return &problem{Status: http.StatusForbidden, Type: "orderNotReady", Detail: "the order is " + found.status}
	}
	request, failure := parseSigningRequest(verified.payload, found.names)
	if failure != nil {
		return failure
	}
	leaf, err := s.authority.issue(request, found.names, s.lifetime)
	if err != nil {
		return &problem{Status: http.StatusInternalServerError, Type: "serverInternal", Detail: err.Error()}
	}
	found.certificate = &issuedCertificate{id: s.newIDLocked(), leaf: leaf, account: found.account}
	found.status = "valid"
	s.issued = append(s.issued, found.certificate)
	s.bySerial[leaf.SerialNumber.String()] = found.certificate
	return s.writeOrder(w, http.StatusOK, found)
}

// parseSigningRequest reads the CSR of a finalize; it must name exactly names.
func parseSigningRequest(payload []byte, names []string) (*x509.CertificateRequest, *problem) {
	var body struct {
		Request string `json:"csr"`
	}
	if err := json.Unmarshal(payload, &body); err != nil {
		return nil, malformed("finalize: %v", err)
	}
	bad := func(format string, arguments ...any) *problem {
		return &problem{Status: http.StatusBadRequest, Type: "badCSR", Detail: fmt.Sprintf(format, arguments...)}
	}
	der, err := base64.RawURLEncoding.DecodeString(body.Request)
	if err != nil {
		return nil, bad("not base64url: %v", err)
	}
	request, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, bad("%v", err)
	}
	if err := request.CheckSignature(); err != nil {
		return nil, bad("signature: %v", err)
	}
	asked := slices.Clone(request.DNSNames)
	if request.Subject.CommonName != "" {
		asked = append(asked, request.Subject.CommonName)
	}
	for i := range asked {
		asked[i] = strings.ToLower(asked[i])
	}
	slices.Sort(asked)
	if ordered := slices.Sorted(slices.Values(names)); !slices.Equal(slices.Compact(asked), ordered) {
		return nil, bad("it names %v, the order %v", asked, ordered)
	}
	return request, nil
}

func (s *acmeServer) serveCertificate(w http.ResponseWriter, r *http.Request, verified *verifiedRequest) *problem {
	for _, issued := range s.issued {
		if issued.id == r.PathValue("id") && issued.account == verified.account {
			w.Header().Set("Content-Type", "application/pem-certificate-chain")
			w.Write(s.authority.chainPEM(issued.leaf))
			return nil
		}
	}
	return &problem{Status: http.StatusNotFound, Type: "malformed", Detail: "this account has no such certificate"}
}

// certificateByARI finds a certificate by its RFC 9773 §4.1 identifier: the
// authority's key identifier and the serial number, in base64url.
func (s *acmeServer) certificateByARI(id string) *issuedCertificate {
	keyID, serial, ok := strings.Cut(id, ".")
	authorityKeyID, errKey := base64.RawURLEncoding.DecodeString(keyID)
	serialBytes, errSerial := base64.RawURLEncoding.DecodeString(serial)
	if !ok || errKey != nil || errSerial != nil {
		return nil
	}
	found := s.bySerial[new(big.Int).SetBytes(serialBytes).String()]
	if found == nil || !slices.Equal(found.leaf.AuthorityKeyId, authorityKeyID) {
		return nil
	}
	return found
}

func (s *acmeServer) serveRenewalInfo(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := s.certificateByARI(r.PathValue("id"))
	if found == nil {
		(&problem{Status: http.StatusNotFound, Type: "malformed", Detail: "no such certificate"}).write(w)
		return
	}
	// Clients pick a random point inside the window, so it must have a width.
	valid := found.leaf.NotAfter.Sub(found.leaf.NotBefore)
	start := found.leaf.NotBefore.Add(valid * 2 / 3)
	end := start.Add(max(valid/24, time.Second))
	if found.renewNow {
		start, end = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	}
	w.Header().Set("Retry-After", "60")
	writeJSON(w, http.StatusOK, map[string]any{"suggestedWindow": map[string]string{
		"start": start.UTC().Format(time.RFC3339Nano),
		"end":   end.UTC().Format(time.RFC3339Nano),
	}})
}

// === impl acmeServer: administration ===

// issuance is the answer of GET /acme/orders.
type issuance struct {
	Orders       map[string]int     `json:"orders"` // by status
	RateLimited  int                `json:"rate_limited"`
	Accounts     int                `json:"accounts"`
	Certificates []shownCertificate `json:"certificates"`
}

type shownCertificate struct {
	Names     []string  `json:"names"`
	Serial    string    `json:"serial"` // hexadecimal
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	RenewNow  bool      `json:"renew_now"`
	PEM       string    `json:"pem"`
}

func (s *acmeServer) issuance() issuance {
	s.mu.Lock()
	defer s.mu.Unlock()
	shown := issuance{Orders: map[string]int{}, RateLimited: s.rejectedCount, Accounts: len(s.accounts), Certificates: []shownCertificate{}}
	for _, counted := range s.orders {
		shown.Orders[counted.status]++
	}
	for _, issued := range s.issued {
		shown.Certificates = append(shown.Certificates, shownCertificate{
			Names: issued.leaf.DNSNames, Serial: hex.EncodeToString(issued.leaf.SerialNumber.Bytes()),
			NotBefore: issued.leaf.NotBefore, NotAfter: issued.leaf.NotAfter,
			RenewNow: issued.renewNow, PEM: string(s.authority.chainPEM(issued.leaf)),
		})
	}
	return shown
}

// renew puts the renewal window of all issued certificates, or of those for
// name, into the past; it returns how many.
func (s *acmeServer) renew(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	count := 0
	for _, issued := range s.issued {
		if name == "" || slices.Contains(issued.leaf.DNSNames, name) {
			issued.renewNow = true
			count++
		}
	}
	return count
}

func (s *acmeServer) setRateLimit(limit rateLimit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rateLimit = limit
}

func (s *acmeServer) setLifetime(lifetime time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lifetime = lifetime
}
