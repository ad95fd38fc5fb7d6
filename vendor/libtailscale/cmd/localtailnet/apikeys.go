package main

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/util/rands"
)

// apiKey is an auth key that was made by way of the API.
type apiKey struct {
	id           string
	secret       string
	description  string
	capabilities keyCapabilities
	created      time.Time
	expires      time.Time
	revoked      time.Time // zero: not revoked
}

// keyCapabilities is what an auth key may do, in the API's form.
type keyCapabilities struct {
	Devices struct {
		Create struct {
			Reusable      bool     `json:"reusable"`
			Ephemeral     bool     `json:"ephemeral"`
			Preauthorized bool     `json:"preauthorized"`
			Tags          []string `json:"tags"`
		} `json:"create"`
	} `json:"devices"`
}

// shownKey is a key as the API shows it. Its secret shows once.
type shownKey struct {
	ID            string          `json:"id"`
	KeyType       string          `json:"keyType"`
	Key           string          `json:"key,omitempty"`
	Description   string          `json:"description"`
	ExpirySeconds int64           `json:"expirySeconds"`
	Created       time.Time       `json:"created"`
	Expires       time.Time       `json:"expires"`
	Revoked       *time.Time      `json:"revoked,omitempty"`
	Invalid       bool            `json:"invalid,omitempty"`
	Capabilities  keyCapabilities `json:"capabilities"`
}

// defaultKeyExpiry is what the API gives to a key without expirySeconds, and
// the longest it gives.
const defaultKeyExpiry = 90 * 24 * time.Hour

// maxDescription is the longest description of a key, in characters.
const maxDescription = 50

func (a *api) createKey(r *http.Request, token *apiToken) (any, error) {
	var body struct {
		KeyType       string           `json:"keyType"`
		Capabilities  *keyCapabilities `json:"capabilities"`
		ExpirySeconds int64            `json:"expirySeconds"`
		Description   string           `json:"description"`
	}
	if err := readAPIBody(r, &body); err != nil {
		return nil, err
	}
	expiry := time.Duration(body.ExpirySeconds) * time.Second
	if expiry == 0 {
		expiry = defaultKeyExpiry
	}
	switch {
	case body.KeyType != "" && body.KeyType != "auth":
		return nil, apiRefuse(http.StatusNotImplemented, "only auth keys can be made here, not %q", body.KeyType)
	case body.Capabilities == nil:
		return nil, apiRefuse(http.StatusBadRequest, "capabilities are required")
	case body.ExpirySeconds < 0 || expiry > defaultKeyExpiry:
		return nil, apiRefuse(http.StatusBadRequest, "expirySeconds must be between 1 second and 90 days")
	case !describes(body.Description):
		return nil, apiRefuse(http.StatusBadRequest, "description must be at most 50 letters, digits, hyphens and spaces")
	}
	create := body.Capabilities.Devices.Create
	if len(create.Tags) == 0 {
		return nil, apiRefuse(http.StatusBadRequest, "tailnet-owned auth key must have tags set")
	}
	if slices.ContainsFunc(create.Tags, func(tag string) bool { return tailcfg.CheckTag(tag) != nil }) || !token.client.mayTag(create.Tags) {
		return nil, apiRefuse(http.StatusBadRequest, "requested tags %v are invalid or not permitted", create.Tags)
	}
	now := time.Now().UTC()
	key := &apiKey{id: newKeyID(), description: body.Description, capabilities: *body.Capabilities, created: now, expires: now.Add(expiry)}
	key.secret = "tskey-auth-" + key.id + "-" + rands.HexString(32)
	a.registry.enterAuthKey(key.secret, authKey{tags: create.Tags, ephemeral: create.Ephemeral, reusable: create.Reusable, approved: create.Preauthorized, expires: key.expires})
	a.mu.Lock()
	defer a.mu.Unlock()
	a.keys[key.id] = key
	shown := a.shownKey(key)
	shown.Key = key.secret
	return shown, nil
}

func describes(text string) bool {
	return len(text) <= maxDescription && !strings.ContainsFunc(text, func(c rune) bool {
		return c != ' ' && c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z')
	})
}

// listKeys lists the keys that still let a node in. Without all=true, a token
// of an OAuth client is shown OAuth clients only, of which there is no list
// here.
func (a *api) listKeys(r *http.Request, _ *apiToken) (any, error) {
	shown := []shownKey{}
	if r.URL.Query().Get("all") == "true" {
		a.mu.Lock()
		defer a.mu.Unlock()
		for _, key := range a.keys {
			if entry := a.shownKey(key); !entry.Invalid {
				shown = append(shown, entry)
			}
		}
		slices.SortFunc(shown, func(a, b shownKey) int { return strings.Compare(a.ID, b.ID) })
	}
	return map[string]any{"keys": shown}, nil
}

func (a *api) readKey(r *http.Request, _ *apiToken) (any, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	key := a.keys[r.PathValue("id")]
	if key == nil {
		return nil, apiRefuse(http.StatusNotFound, "key not found")
	}
	return a.shownKey(key), nil
}

func (a *api) deleteKey(r *http.Request, _ *apiToken) (any, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	key := a.keys[r.PathValue("id")]
	if key == nil || !key.revoked.IsZero() {
		return nil, apiRefuse(http.StatusNotFound, "key not found")
	}
	key.revoked = time.Now().UTC()
	a.registry.removeAuthKey(key.secret)
	return nil, nil
}

// shownKey is called with the lock held.
func (a *api) shownKey(key *apiKey) shownKey {
	shown := shownKey{
		ID: key.id, KeyType: "auth", Description: key.description,
		ExpirySeconds: int64(key.expires.Sub(key.created).Seconds()),
		Created:       key.created, Expires: key.expires,
		Invalid: !a.registry.hasAuthKey(key.secret), Capabilities: key.capabilities,
	}
	if !key.revoked.IsZero() {
		shown.Revoked = &key.revoked
	}
	return shown
}
