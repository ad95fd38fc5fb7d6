package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/util/dnsname"
)

// adminError is a refusal with its HTTP status.
type adminError struct {
	status  int
	message string
}

func (e *adminError) Error() string { return e.message }

func refuse(status int, format string, arguments ...any) error {
	return &adminError{status: status, message: fmt.Sprintf(format, arguments...)}
}

func badRequest(format string, arguments ...any) error {
	return refuse(http.StatusBadRequest, format, arguments...)
}

func (t *Tailnet) adminHandler() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, serve func(*http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			answer, err := serve(r)
			if err != nil {
				writeError(w, err)
				return
			}
			writeJSON(w, http.StatusOK, answer)
		})
	}
	handle("GET /ready", func(*http.Request) (any, error) { return t.ready, nil })
	handle("GET /nodes", t.adminNodes)
	handle("GET /nodes/{name}", t.adminNode)
	handle("DELETE /nodes/{name}", t.adminDelete)
	handle("POST /nodes/{name}/tags", t.adminTags)
	handle("POST /nodes/{name}/login", t.adminLogin)
	handle("POST /nodes/{name}/expire", t.adminExpire)
	handle("POST /nodes/{name}/rename", t.adminRename)
	handle("POST /nodes/{name}/approve", t.adminApprove)
	handle("POST /nodes/{name}/capabilities", t.adminCapabilities)
	handle("POST /approval", t.adminApproval)
	handle("POST /auth-keys", t.adminAuthKey)
	handle("POST /https", t.adminDNSFeature(&t.nodes.noHTTPS))
	handle("POST /magic-dns", t.adminDNSFeature(&t.nodes.noMagicDNS))
	t.adminAPI(handle)
	handle("POST /filter", t.adminFilter)
	handle("GET /dns", func(*http.Request) (any, error) { return t.dns.state(), nil })
	handle("POST /dns/hold", t.adminDNS(t.dns.hold))
	handle("POST /dns/release", t.adminDNS(t.dns.release))
	handle("GET /acme/orders", func(*http.Request) (any, error) { return t.acme.issuance(), nil })
	handle("POST /acme/rate-limit", t.adminRateLimit)
	handle("POST /acme/renew", t.adminRenew)
	handle("POST /acme/lifetime", t.adminLifetime)
	handle("GET /control", func(*http.Request) (any, error) { return t.control.state(), nil })
	handle("POST /control/stop", t.adminControl(true))
	handle("POST /control/start", t.adminControl(false))
	handle("GET /client", func(*http.Request) (any, error) { return t.clients.list(), nil })
	handle("POST /client/{name}", t.clients.serveCreate)
	handle("DELETE /client/{name}", t.clients.serveDelete)
	handle("POST /client/{name}/http", t.clients.serveHTTP)
	mux.HandleFunc("GET /client/{name}/tunnel", t.clients.serveTunnel)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, refuse(http.StatusNotFound, "no handler for %s %s", r.Method, r.URL.Path))
	})
	return mux
}

// shownNode is a node as GET /nodes lists it.
type shownNode struct {
	ID            int64      `json:"id"`
	StableID      string     `json:"stable_id"`
	Name          string     `json:"name"`
	FQDN          string     `json:"fqdn"`
	Addresses     []string   `json:"addresses"`
	Tags          []string   `json:"tags"`
	Login         string     `json:"login"`
	DisplayName   string     `json:"display_name"`
	ProfilePicURL string     `json:"profile_pic_url"`
	Online        bool       `json:"online"`
	Ephemeral     bool       `json:"ephemeral"`
	Approved      bool       `json:"approved"`
	Expired       bool       `json:"expired"`
	KeyExpiry     *time.Time `json:"key_expiry"`
	HomeDERP      int        `json:"home_derp"`
	Endpoints     int        `json:"endpoints"`
	Registrations int        `json:"registrations"`
	Polls         int        `json:"polls"`
	Updates       int        `json:"updates"`
}

func (r *registry) shownLocked(n *node) shownNode {
	profile := r.profileLocked(n)
	shown := shownNode{
		ID: int64(n.id), StableID: string(n.stableID), Name: n.name, FQDN: n.name + "." + r.config.Domain,
		Addresses: addressStrings(n.addresses), Tags: append([]string{}, n.tags...),
		Login: profile.LoginName, DisplayName: profile.DisplayName, ProfilePicURL: profile.ProfilePicURL,
		Online: n.online(), Ephemeral: n.ephemeral, Approved: !n.unapproved, Expired: n.expired(), HomeDERP: n.homeDERP, Endpoints: len(n.endpoints),
		Registrations: n.registrations, Polls: n.polls, Updates: n.updates,
	}
	if !n.keyExpiry.IsZero() {
		expiry := n.keyExpiry
		shown.KeyExpiry = &expiry
	}
	return shown
}

// changeNode runs change on the node that the path names, wakes everyone and
// answers with the node.
func (t *Tailnet) changeNode(r *http.Request, change func(*node) error) (any, error) {
	t.nodes.mu.Lock()
	defer t.nodes.mu.Unlock()
	name := r.PathValue("name")
	n := t.nodes.byNameLocked(name)
	if n == nil {
		return nil, refuse(http.StatusNotFound, "no node is named %q", name)
	}
	if change != nil {
		if err := change(n); err != nil {
			return nil, err
		}
		t.nodes.changedLocked()
	}
	return t.nodes.shownLocked(n), nil
}

func (t *Tailnet) adminNodes(*http.Request) (any, error) {
	t.nodes.mu.Lock()
	defer t.nodes.mu.Unlock()
	shown := []shownNode{}
	for _, n := range t.nodes.liveLocked() {
		shown = append(shown, t.nodes.shownLocked(n))
	}
	return shown, nil
}

func (t *Tailnet) adminNode(r *http.Request) (any, error) { return t.changeNode(r, nil) }

func (t *Tailnet) adminDelete(r *http.Request) (any, error) {
	return t.changeNode(r, func(n *node) error { t.nodes.deleteLocked(n); return nil })
}

func (t *Tailnet) adminTags(r *http.Request) (any, error) {
	var body struct {
		Tags []string `json:"tags"`
	}
	if err := readBody(r, &body); err != nil {
		return nil, err
	}
	if err := checkTags(body.Tags); err != nil {
		return nil, err
	}
	return t.changeNode(r, func(n *node) error { n.tags = body.Tags; return nil })
}

func checkTags(tags []string) error {
	for _, tag := range tags {
		if err := tailcfg.CheckTag(tag); err != nil {
			return badRequest("tag %q: %v", tag, err)
		}
	}
	return nil
}

// adminLogin gives the node to a user, which takes its tags away.
func (t *Tailnet) adminLogin(r *http.Request) (any, error) {
	var body struct {
		Login         string `json:"login"`
		DisplayName   string `json:"display_name"`
		ProfilePicURL string `json:"profile_pic_url"`
	}
	if err := readBody(r, &body); err != nil {
		return nil, err
	}
	if err := checkLogin(body.Login); err != nil {
		return nil, err
	}
	if _, err := url.Parse(body.ProfilePicURL); err != nil {
		return nil, badRequest("profile_pic_url: %v", err)
	}
	return t.changeNode(r, func(n *node) error {
		n.login, n.tags = body.Login, nil
		u := t.nodes.userLocked(body.Login)
		if body.DisplayName != "" {
			u.display = body.DisplayName
		}
		if body.ProfilePicURL != "" {
			u.pictureURL = body.ProfilePicURL
		}
		return nil
	})
}

func checkLogin(login string) error {
	if login == "" || strings.TrimSpace(login) != login || login == taggedLogin {
		return badRequest("login %q: want a name such as alice@example.com", login)
	}
	return nil
}

// adminExpire sets the key expiry to now, or to {"in":"1h"}, or to never with
// {"never":true}.
func (t *Tailnet) adminExpire(r *http.Request) (any, error) {
	var body struct {
		In    string `json:"in"`
		Never bool   `json:"never"`
	}
	if err := readBody(r, &body); err != nil {
		return nil, err
	}
	expiry := time.Now().Add(-time.Second)
	if body.In != "" {
		duration, err := time.ParseDuration(body.In)
		if err != nil {
			return nil, badRequest("in: %v", err)
		}
		expiry = time.Now().Add(duration)
	}
	if body.Never {
		expiry = time.Time{}
	}
	return t.changeNode(r, func(n *node) error { n.keyExpiry = expiry; return nil })
}

func (t *Tailnet) adminRename(r *http.Request) (any, error) {
	var body struct {
		Name string `json:"name"`
	}
	if err := readBody(r, &body); err != nil {
		return nil, err
	}
	if err := dnsname.ValidLabel(body.Name); err != nil || strings.ToLower(body.Name) != body.Name {
		return nil, badRequest("name %q: want a DNS label in lower case", body.Name)
	}
	return t.changeNode(r, func(n *node) error {
		if other := t.nodes.byNameLocked(body.Name); other != nil && other != n {
			return refuse(http.StatusConflict, "another node is named %q", body.Name)
		}
		t.nodes.renameLocked(n, body.Name)
		n.renamed = true
		return nil
	})
}

func (t *Tailnet) adminApprove(r *http.Request) (any, error) {
	body := struct {
		Approved bool `json:"approved"`
	}{Approved: true}
	if err := readBody(r, &body); err != nil {
		return nil, err
	}
	return t.changeNode(r, func(n *node) error { n.unapproved = !body.Approved; return nil })
}

// adminDNSFeature switches what the admin console has on its DNS page, HTTPS
// or MagicDNS: {"enabled":false}.
func (t *Tailnet) adminDNSFeature(off *bool) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		var body struct {
			Enabled bool `json:"enabled"`
		}
		if err := readBody(r, &body); err != nil {
			return nil, err
		}
		t.nodes.mu.Lock()
		defer t.nodes.mu.Unlock()
		*off = !body.Enabled
		t.nodes.changedLocked()
		return map[string]bool{"enabled": body.Enabled}, nil
	}
}

// adminApproval decides whether later nodes wait for approval, unless their
// key is preauthorized: {"required":true}.
func (t *Tailnet) adminApproval(r *http.Request) (any, error) {
	var body struct {
		Required bool `json:"required"`
	}
	if err := readBody(r, &body); err != nil {
		return nil, err
	}
	t.nodes.mu.Lock()
	defer t.nodes.mu.Unlock()
	t.nodes.approval = body.Required
	return map[string]bool{"required": body.Required}, nil
}

// adminCapabilities replaces what a source ("src", default "*") may do at the
// node; without capabilities it takes the grant away.
func (t *Tailnet) adminCapabilities(r *http.Request) (any, error) {
	var body struct {
		Source       string                                  `json:"src"`
		Capabilities map[tailcfg.PeerCapability][]rawMessage `json:"capabilities"`
	}
	if err := readBody(r, &body); err != nil {
		return nil, err
	}
	if body.Source == "" {
		body.Source = "*"
	}
	for name := range body.Capabilities {
		if name == "" {
			return nil, badRequest("capabilities: empty name")
		}
	}
	return t.changeNode(r, func(n *node) error {
		var kept []grant
		for _, former := range t.nodes.grants {
			if former.Destination != n.name || former.Source != body.Source {
				kept = append(kept, former)
			}
		}
		if len(body.Capabilities) > 0 {
			kept = append(kept, grant{Source: body.Source, Destination: n.name, Capabilities: body.Capabilities})
		}
		t.nodes.grants = kept
		return nil
	})
}

func (t *Tailnet) adminAuthKey(r *http.Request) (any, error) {
	var body struct {
		Login         string   `json:"login"`
		Tags          []string `json:"tags"`
		Ephemeral     bool     `json:"ephemeral"`
		Reusable      bool     `json:"reusable"`
		Preauthorized bool     `json:"preauthorized"`
		ExpiresIn     string   `json:"expires_in"`
	}
	if err := readBody(r, &body); err != nil {
		return nil, err
	}
	granted := authKey{login: body.Login, tags: body.Tags, ephemeral: body.Ephemeral, reusable: body.Reusable, approved: body.Preauthorized}
	if granted.login == "" {
		granted.login = t.config.Login
	}
	if err := errors.Join(checkLogin(granted.login), checkTags(granted.tags)); err != nil {
		return nil, badRequest("%v", err)
	}
	if body.ExpiresIn != "" {
		duration, err := time.ParseDuration(body.ExpiresIn)
		if err != nil {
			return nil, badRequest("expires_in: %v", err)
		}
		granted.expires = time.Now().Add(duration)
	}
	return map[string]string{"auth_key": t.nodes.addAuthKey(granted)}, nil
}

// adminFilter sets the packet filter: {"mode":"allow"}, {"mode":"deny"} or
// {"rules":[…]}.
func (t *Tailnet) adminFilter(r *http.Request) (any, error) {
	var body struct {
		Mode  string       `json:"mode"`
		Rules []filterRule `json:"rules"`
	}
	if err := readBody(r, &body); err != nil {
		return nil, err
	}
	switch {
	case body.Mode == "allow" && body.Rules == nil:
		body.Rules = allowAll()
	case body.Mode == "deny" && body.Rules == nil:
		body.Rules = []filterRule{}
	case body.Mode == "" && body.Rules != nil:
	default:
		return nil, badRequest(`want {"mode":"allow"}, {"mode":"deny"} or {"rules":[…]}`)
	}
	for i, rule := range body.Rules {
		if len(rule.Sources) == 0 || len(rule.Destinations) == 0 || len(rule.Ports) == 0 {
			return nil, badRequest("rule %d: src, dst and ports are all needed", i)
		}
		for _, ports := range rule.Ports {
			if _, err := parsePorts(ports); err != nil {
				return nil, badRequest("rule %d: %v", i, err)
			}
		}
	}
	t.nodes.mu.Lock()
	defer t.nodes.mu.Unlock()
	t.nodes.filter = body.Rules
	t.nodes.changedLocked()
	return map[string]any{"rules": body.Rules}, nil
}

// adminRateLimit answers 429 to the next {"count":n} orders, or to all while
// {"on":true}; {"on":false} ends it. retry_after is in seconds, default 60.
func (t *Tailnet) adminRateLimit(r *http.Request) (any, error) {
	var body struct {
		Count      *int  `json:"count"`
		On         *bool `json:"on"`
		RetryAfter int   `json:"retry_after"`
	}
	if err := readBody(r, &body); err != nil {
		return nil, err
	}
	if (body.Count == nil) == (body.On == nil) {
		return nil, badRequest("want either count or on")
	}
	if body.RetryAfter < 0 || (body.Count != nil && *body.Count < 0) {
		return nil, badRequest("count and retry_after must not be negative")
	}
	limit := rateLimit{retryAfter: 60 * time.Second}
	if body.RetryAfter > 0 {
		limit.retryAfter = time.Duration(body.RetryAfter) * time.Second
	}
	switch {
	case body.Count != nil:
		limit.remaining = *body.Count
	case *body.On:
		limit.remaining = -1
	}
	t.acme.setRateLimit(limit)
	return map[string]any{"remaining": limit.remaining, "retry_after": int(limit.retryAfter.Seconds())}, nil
}

// adminRenew puts renewal windows into the past; {"name":…} for one name only.
// A node asks for its window once per process and certificate, so a node that
// has asked already renews only after a restart.
func (t *Tailnet) adminRenew(r *http.Request) (any, error) {
	var body struct {
		Name string `json:"name"`
	}
	if err := readBody(r, &body); err != nil {
		return nil, err
	}
	return map[string]int{"certificates": t.acme.renew(strings.ToLower(body.Name))}, nil
}

// adminLifetime sets the lifetime of later certificates: {"lifetime":"30s"}.
func (t *Tailnet) adminLifetime(r *http.Request) (any, error) {
	var body struct {
		Lifetime string `json:"lifetime"`
	}
	if err := readBody(r, &body); err != nil {
		return nil, err
	}
	lifetime, err := time.ParseDuration(body.Lifetime)
	if err != nil || lifetime < time.Second {
		return nil, badRequest("lifetime %q: want a duration of at least 1s", body.Lifetime)
	}
	t.acme.setLifetime(lifetime)
	return map[string]string{"lifetime": lifetime.String()}, nil
}

func (t *Tailnet) adminDNS(change func()) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		if err := readNothing(r); err != nil {
			return nil, err
		}
		change()
		return t.dns.state(), nil
	}
}

func (t *Tailnet) adminControl(stop bool) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		if err := readNothing(r); err != nil {
			return nil, err
		}
		t.control.gate.setShut(stop)
		return t.control.state(), nil
	}
}

func (f *front) state() any {
	f.mu.Lock()
	defer f.mu.Unlock()
	return map[string]any{"running": !f.gate.isShut(), "unknown_paths": maps.Clone(f.unknownPaths)}
}

// readBody reads a JSON object; an empty body is an empty object.
func readBody(r *http.Request, into any) error {
	decoder := json.NewDecoder(http.MaxBytesReader(nil, r.Body, 16<<20))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil && !errors.Is(err, io.EOF) {
		return badRequest("body: %v", err)
	}
	if decoder.More() {
		return badRequest("body: more than one JSON value")
	}
	return nil
}

func readNothing(r *http.Request) error { return readBody(r, &struct{}{}) }

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(body)
}

func writeError(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	var refusal *adminError
	if errors.As(err, &refusal) {
		status = refusal.status
	}
	writeJSON(w, status, map[string]string{"error": err.Error()})
}
