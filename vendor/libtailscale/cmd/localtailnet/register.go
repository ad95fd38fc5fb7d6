package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// authKey is what a key gives to the node that registers with it.
type authKey struct {
	login     string
	tags      []string
	ephemeral bool
	reusable  bool
	approved  bool      // its nodes need no approval
	expires   time.Time // zero: never
}

func (k *authKey) expired() bool { return !k.expires.IsZero() && !k.expires.After(time.Now()) }

// pendingLogin is a login URL that was given out and waits to be opened.
type pendingLogin struct {
	url  string
	done chan struct{}
	// login is set before done is closed.
	login string
}

func (s *noiseSession) serveRegister(w http.ResponseWriter, r *http.Request, body []byte) {
	var request tailcfg.RegisterRequest
	if err := json.Unmarshal(body, &request); err != nil {
		http.Error(w, "register request: "+err.Error(), http.StatusBadRequest)
		return
	}
	if request.NodeKey.IsZero() || request.Version == 0 || request.Hostinfo == nil {
		http.Error(w, "register request: NodeKey, Version and Hostinfo are required", http.StatusBadRequest)
		return
	}
	registry := s.front.registry
	if !request.Expiry.IsZero() && request.Expiry.Before(time.Now()) {
		registry.logout(s.machine, request.NodeKey)
		writeJSON(w, http.StatusOK, tailcfg.RegisterResponse{})
		return
	}
	grant, answer := registry.admit(s.machine, &request, s.front.url)
	if grant == nil && answer == nil {
		grant, answer = s.awaitLogin(r, request.Followup)
	}
	if answer != nil {
		writeJSON(w, http.StatusOK, *answer)
		return
	}

	// testcontrol is told less than it was sent: whether a key is good, a
	// login is done or a key is rotated is decided here.
	request.OldNodeKey = registry.rotatedFrom(s.machine, &request)
	request.Followup = ""
	request.Auth = nil
	encoded, err := json.Marshal(request)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	response, err := s.roundTrip(r.Context(), r.URL, encoded)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer response.Body.Close()
	var registered tailcfg.RegisterResponse
	if err := json.NewDecoder(response.Body).Decode(&registered); err != nil {
		http.Error(w, fmt.Sprintf("testcontrol answered status %d to register", response.StatusCode), http.StatusBadGateway)
		return
	}
	if registered.Error != "" || registered.NodeKeyExpired {
		writeJSON(w, http.StatusOK, registered)
		return
	}
	final, err := registry.enrol(s.machine, &request, *grant)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	writeJSON(w, http.StatusOK, final)
}

func (s *noiseSession) awaitLogin(r *http.Request, loginURL string) (*authKey, *tailcfg.RegisterResponse) {
	pending := s.front.registry.pendingByURL(loginURL)
	if pending == nil {
		return nil, &tailcfg.RegisterResponse{Error: "the login URL is unknown or used up"}
	}
	select {
	case <-pending.done:
		return &authKey{login: pending.login}, nil
	case <-r.Context().Done():
		return nil, &tailcfg.RegisterResponse{Error: "the node left before the login was complete"}
	}
}

// === impl registry: admission ===

// admit decides about a registration. It returns what the node is granted, or
// the answer that ends the registration, or neither when the node now waits
// for its login URL to be opened.
func (r *registry) admit(machine key.MachinePublic, request *tailcfg.RegisterRequest, controlURL string) (*authKey, *tailcfg.RegisterResponse) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if known := r.byKey[request.NodeKey]; known != nil {
		switch {
		case known.machine != machine:
			return nil, &tailcfg.RegisterResponse{Error: "the node key belongs to another machine"}
		case known.deleted || known.expired() || known.key != request.NodeKey:
			return nil, &tailcfg.RegisterResponse{NodeKeyExpired: true}
		default:
			return &authKey{login: known.login, tags: known.tags, ephemeral: known.ephemeral}, nil
		}
	}
	if request.Followup != "" {
		return nil, nil
	}
	if request.Auth == nil || request.Auth.AuthKey == "" {
		return nil, &tailcfg.RegisterResponse{AuthURL: r.newLoginLocked(controlURL)}
	}
	granted, ok := r.authKeys[request.Auth.AuthKey]
	if !ok || granted.expired() {
		return nil, &tailcfg.RegisterResponse{Error: "invalid auth key: it is unknown, used up or expired"}
	}
	if !granted.reusable {
		delete(r.authKeys, request.Auth.AuthKey)
	}
	return &granted, nil
}

// rotatedFrom is the node key whose identity the request carries on: the one
// it names, or the one that this machine had before it logged out.
func (r *registry) rotatedFrom(machine key.MachinePublic, request *tailcfg.RegisterRequest) key.NodePublic {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byKey[request.NodeKey] != nil {
		return key.NodePublic{}
	}
	for _, known := range r.nodes {
		if known.machine == machine && !known.deleted {
			return known.key
		}
	}
	return key.NodePublic{}
}

// enrol enters a node that testcontrol has registered.
func (r *registry) enrol(machine key.MachinePublic, request *tailcfg.RegisterRequest, granted authKey) (*tailcfg.RegisterResponse, error) {
	base := r.base.Node(request.NodeKey)
	if base == nil {
		return nil, fmt.Errorf("testcontrol does not know node key %s after it registered it", request.NodeKey.ShortString())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.nodes[base.ID]
	if n == nil || n.deleted {
		n = &node{id: base.ID, stableID: base.StableID, addresses: base.Addresses, created: time.Now()}
		n.unapproved = r.approval && !granted.approved
		r.nodes[base.ID] = n
	}
	rotated := n.key != request.NodeKey
	n.key, n.machine = request.NodeKey, machine
	r.byKey[request.NodeKey] = n
	n.registrations++
	if rotated {
		n.keyExpiry = time.Time{}
		n.login, n.tags = granted.login, granted.tags
		if n.login == "" {
			n.login = r.config.Login
		}
		if len(n.tags) == 0 {
			n.tags = request.Hostinfo.RequestTags
		}
		n.ephemeral = granted.ephemeral || request.Ephemeral
	}
	n.version = request.Version
	r.setHostinfoLocked(n, request.Hostinfo)
	r.changedLocked()
	profile := r.profileLocked(n)
	return &tailcfg.RegisterResponse{
		User:              tailcfg.User{ID: profile.ID, DisplayName: profile.DisplayName},
		Login:             tailcfg.Login{ID: tailcfg.LoginID(profile.ID), Provider: "localtailnet", LoginName: profile.LoginName, DisplayName: profile.DisplayName, ProfilePicURL: profile.ProfilePicURL},
		MachineAuthorized: !n.unapproved,
	}, nil
}

// logout removes an ephemeral node and expires the key of any other.
func (r *registry) logout(machine key.MachinePublic, nodeKey key.NodePublic) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.byKey[nodeKey]
	if n == nil || n.machine != machine {
		return
	}
	if n.ephemeral {
		r.deleteLocked(n)
		return
	}
	n.keyExpiry = time.Now().Add(-time.Second)
	r.changedLocked()
}

func (r *registry) addAuthKey(granted authKey) string {
	secret := newSecret("tskey-auth-local-")
	r.enterAuthKey(secret, granted)
	return secret
}

func (r *registry) enterAuthKey(secret string, granted authKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.authKeys[secret] = granted
}

func (r *registry) removeAuthKey(secret string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.authKeys, secret)
}

// hasAuthKey says whether a key would let a node in now.
func (r *registry) hasAuthKey(secret string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	granted, ok := r.authKeys[secret]
	return ok && !granted.expired()
}

func (r *registry) newLoginLocked(controlURL string) string {
	token := newSecret("")
	pending := &pendingLogin{url: controlURL + "/auth/" + token, done: make(chan struct{})}
	r.logins[token] = pending
	return pending.url
}

func (r *registry) pendingByURL(loginURL string) *pendingLogin {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, pending := range r.logins {
		if pending.url == loginURL {
			return pending
		}
	}
	return nil
}

// completeLogin is what opening a login URL does.
func (r *registry) completeLogin(token, login string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	pending := r.logins[token]
	if pending == nil {
		return fmt.Errorf("login %q is unknown", token)
	}
	select {
	case <-pending.done:
		return fmt.Errorf("login %q is already complete", token)
	default:
	}
	pending.login = login
	close(pending.done)
	return nil
}
