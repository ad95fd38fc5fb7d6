package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"time"

	"tailscale.com/util/rands"
)

// apiClient is a trust credential: an OAuth client, or with an issuer a
// federated identity.
type apiClient struct {
	id     string
	secret string // empty for a federated identity
	scopes []string
	tags   []string
	owned  []string // tags that the policy lets its tags own; "*" is every one
	trust  *federation
}

// federation says which identity tokens a federated identity believes.
type federation struct {
	Issuer       string `json:"issuer"`
	Subject      string `json:"subject"` // may hold "*"
	Audience     string `json:"audience"`
	PublicKeyPEM string `json:"public_key_pem"` // empty: signatures are not looked at
}

type apiToken struct {
	client  *apiClient
	scopes  []string
	expires time.Time
}

// grantedToken is the answer to a client that gets a token (RFC 6749 5.1).
type grantedToken struct {
	AccessToken string `json:"access_token"`
	TokenType   string `json:"token_type"`
	ExpiresIn   int    `json:"expires_in"`
	Scope       string `json:"scope"`
}

// newKeyID is an id in the form of the real ones, which the secret embeds.
func newKeyID() string { return "k" + rands.HexString(12) + "CNTRL" }

// covers says whether scopes hold one; to write includes to read.
func covers(scopes []string, wanted string) bool {
	write := strings.TrimSuffix(wanted, ":read")
	for _, scope := range scopes {
		if scope == "all" || scope == wanted || scope == write {
			return true
		}
		if scope == "all:read" && write != wanted {
			return true
		}
	}
	return false
}

// mayTag says whether the client may give these tags to a key: its own, all
// of them, or such as its tags own.
func (c *apiClient) mayTag(tags []string) bool {
	own := slices.Sorted(slices.Values(c.tags))
	if slices.Equal(own, slices.Sorted(slices.Values(tags))) {
		return true
	}
	for _, tag := range tags {
		if !slices.Contains(c.owned, tag) && !slices.Contains(c.owned, "*") {
			return false
		}
	}
	return true
}

// serveToken grants a token to a client that shows its secret. The id is not
// looked at, since the secret embeds it; the real one does the same.
func (a *api) serveToken(r *http.Request) (any, error) {
	if err := r.ParseForm(); err != nil {
		return nil, apiRefuse(http.StatusBadRequest, "cannot parse the form: %v", err)
	}
	if grant := r.PostForm.Get("grant_type"); grant != "" && grant != "client_credentials" {
		return nil, apiRefuse(http.StatusBadRequest, "unsupported grant_type %q", grant)
	}
	secret := r.PostForm.Get("client_secret")
	if _, password, ok := r.BasicAuth(); ok {
		secret = password
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, client := range a.clients {
		if client.secret != "" && client.secret == secret {
			return a.grantLocked(client, r.PostForm.Get("scope"))
		}
	}
	return nil, errTokenInvalid
}

// serveTokenExchange grants a token for the identity token of a workload.
func (a *api) serveTokenExchange(r *http.Request) (any, error) {
	if err := r.ParseForm(); err != nil {
		return nil, apiRefuse(http.StatusBadRequest, "cannot parse the form: %v", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	client := a.clients[r.PostForm.Get("client_id")]
	if client == nil || client.trust == nil {
		return nil, errTokenInvalid
	}
	if err := client.trust.believe(r.PostForm.Get("jwt"), time.Now()); err != nil {
		return nil, apiRefuse(http.StatusUnauthorized, "identity token refused: %v", err)
	}
	return a.grantLocked(client, "")
}

// grantLocked makes a token with the scopes asked for; none asks for all that
// the client has.
func (a *api) grantLocked(client *apiClient, asked string) (any, error) {
	scopes := strings.Fields(asked)
	for _, scope := range scopes {
		if !covers(client.scopes, scope) {
			return nil, apiRefuse(http.StatusForbidden, "OAuth client cannot grant scopes %q", asked)
		}
	}
	if len(scopes) == 0 {
		scopes = client.scopes
	}
	secret := "tskey-api-" + newKeyID() + "-" + rands.HexString(32)
	a.tokens[secret] = &apiToken{client: client, scopes: scopes, expires: time.Now().Add(a.lifetime)}
	return grantedToken{AccessToken: secret, TokenType: "Bearer", ExpiresIn: int(a.lifetime.Seconds()), Scope: strings.Join(scopes, " ")}, nil
}

// authenticate finds the token of a request: Bearer, or the user of Basic.
func (a *api) authenticate(r *http.Request) (*apiToken, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	token := a.tokens[tokenOf(r)]
	if token == nil || !token.expires.After(time.Now()) {
		return nil, errTokenInvalid
	}
	return token, nil
}

func tokenOf(r *http.Request) string {
	if bearer, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		return bearer
	}
	user, _, _ := r.BasicAuth()
	return user
}

// clientOf names the client that makes a call, as far as it can be told: for
// a request that is refused, too. It never gives a secret.
func (a *api) clientOf(r *http.Request) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if token := a.tokens[tokenOf(r)]; token != nil {
		return token.client.id
	}
	_, password, _ := r.BasicAuth()
	for _, client := range a.clients {
		shown := r.PostForm.Get("client_secret")
		if client.secret != "" && (client.secret == shown || client.secret == password) {
			return client.id
		}
	}
	if id := r.PostForm.Get("client_id"); a.clients[id] != nil {
		return id
	}
	return ""
}

// addClient makes an OAuth client, or a federated identity where trust is set.
func (a *api) addClient(client apiClient) *apiClient {
	a.mu.Lock()
	defer a.mu.Unlock()
	client.id = newKeyID()
	if client.trust == nil {
		client.secret = "tskey-client-" + client.id + "-" + rands.HexString(32)
	}
	a.clients[client.id] = &client
	return &client
}

// removeClient also ends the tokens that the client got.
func (a *api) removeClient(id string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	client, ok := a.clients[id]
	delete(a.clients, id)
	for secret, token := range a.tokens {
		if token.client == client {
			delete(a.tokens, secret)
		}
	}
	return ok
}

// revokeTokens ends every token before its time and says how many.
func (a *api) revokeTokens() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	revoked := len(a.tokens)
	clear(a.tokens)
	return revoked
}

func (a *api) setTokenLifetime(lifetime time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lifetime = lifetime
}

// === impl federation ===

// audiences reads the aud claim, which is a text or a list (RFC 7519 4.1.3).
type audiences []string

func (l *audiences) UnmarshalJSON(encoded []byte) error {
	var one string
	if json.Unmarshal(encoded, &one) == nil {
		*l = audiences{one}
		return nil
	}
	return json.Unmarshal(encoded, (*[]string)(l))
}

// believe checks claims, times and, with a key, the signature of a JWT.
func (f *federation) believe(token string, now time.Time) error {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return errors.New("it is no JWT")
	}
	var header struct {
		Algorithm string `json:"alg"`
	}
	var claims struct {
		Issuer   string    `json:"iss"`
		Subject  string    `json:"sub"`
		Audience audiences `json:"aud"`
		Expires  float64   `json:"exp"`
	}
	for i, into := range []any{&header, &claims} {
		decoded, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err == nil {
			err = json.Unmarshal(decoded, into)
		}
		if err != nil {
			return fmt.Errorf("it is no JWT: %w", err)
		}
	}
	if claims.Issuer != f.Issuer {
		return fmt.Errorf("the issuer is %q", claims.Issuer)
	}
	if !fits(f.Subject, claims.Subject) {
		return fmt.Errorf("the subject is %q", claims.Subject)
	}
	if f.Audience != "" && !slices.Contains(claims.Audience, f.Audience) {
		return fmt.Errorf("the audience is %q", claims.Audience)
	}
	if now.After(time.Unix(int64(claims.Expires), 0)) {
		return errors.New("it has expired")
	}
	if f.PublicKeyPEM == "" {
		return nil
	}
	return verifyJWT(f.PublicKeyPEM, header.Algorithm, parts)
}

// fits says whether a text is as the pattern, in which "*" stands for any.
func fits(pattern, text string) bool {
	first, rest, wild := strings.Cut(pattern, "*")
	if !wild {
		return pattern == text
	}
	text, ok := strings.CutPrefix(text, first)
	for i := 0; ok && i <= len(text); i++ {
		if fits(rest, text[i:]) {
			return true
		}
	}
	return false
}

// verifyJWT knows the algorithms that clusters sign with: RS256 and ES256.
func verifyJWT(publicKeyPEM, algorithm string, parts []string) error {
	public, err := parsePublicKey(publicKeyPEM)
	if err != nil {
		return err
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		return fmt.Errorf("the signature is not base64url: %w", err)
	}
	digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	switch public := public.(type) {
	case *rsa.PublicKey:
		if algorithm == "RS256" && rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], signature) == nil {
			return nil
		}
	case *ecdsa.PublicKey:
		if algorithm == "ES256" && len(signature) == 64 &&
			ecdsa.Verify(public, digest[:], new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])) {
			return nil
		}
	}
	return errors.New("the signature is wrong")
}

func parsePublicKey(text string) (any, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("the public key is no PEM")
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the public key is unreadable: %w", err)
	}
	return public, nil
}
