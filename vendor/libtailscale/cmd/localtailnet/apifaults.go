package main

import (
	"net/http"
	"path"
	"strconv"
	"sync"
	"time"
)

// apiFault is a failure of the API that was asked for.
type apiFault struct {
	ID         int    `json:"id"`
	Method     string `json:"method"`      // empty: any
	Path       string `json:"path"`        // as of path.Match; empty: any
	Status     int    `json:"status"`      // of the answer,
	RetryAfter string `json:"retry_after"` // its header of that name
	Body       string `json:"body"`        // and its body; empty: a message
	Hang       bool   `json:"hang"`        // instead: no answer until lifted
	Close      bool   `json:"close"`       // instead: the connection is reset
	Remaining  int    `json:"remaining"`   // calls it still fails; -1: until lifted

	lifted chan struct{}
}

// apiCall is a call of the API as it was answered; status 0 is no answer.
type apiCall struct {
	Time   time.Time `json:"time"`
	Method string    `json:"method"`
	Path   string    `json:"path"`
	Client string    `json:"client"`
	Status int       `json:"status"`
}

// faults decides which calls fail, and remembers all.
type faults struct {
	mu    sync.Mutex
	last  int
	list  []*apiFault
	calls []apiCall
}

func newFaults() *faults { return &faults{} }

// next takes one call off the first fault that fits, if any does.
func (f *faults) next(method, requestPath string) *apiFault {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, fault := range f.list {
		if fault.Remaining == 0 || (fault.Method != "" && fault.Method != method) {
			continue
		}
		if matched, err := path.Match(fault.Path, requestPath); fault.Path != "" && (err != nil || !matched) {
			continue
		}
		if fault.Remaining > 0 {
			fault.Remaining--
		}
		return fault
	}
	return nil
}

func (f *faults) add(fault apiFault) apiFault {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last++
	fault.ID, fault.lifted = f.last, make(chan struct{})
	f.list = append(f.list, &fault)
	return fault
}

// lift takes one fault away, or all for id 0; what hangs in it ends.
func (f *faults) lift(id int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	var kept []*apiFault
	for _, fault := range f.list {
		if id != 0 && fault.ID != id {
			kept = append(kept, fault)
			continue
		}
		close(fault.lifted)
	}
	lifted := len(f.list) - len(kept)
	f.list = kept
	return lifted
}

func (f *faults) shown() []apiFault {
	f.mu.Lock()
	defer f.mu.Unlock()
	shown := []apiFault{}
	for _, fault := range f.list {
		shown = append(shown, *fault)
	}
	return shown
}

// maxCalls bounds what is remembered; the oldest go first.
const maxCalls = 100_000

func (f *faults) record(call apiCall) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.calls) == maxCalls {
		f.calls = f.calls[1:]
	}
	f.calls = append(f.calls, call)
}

func (f *faults) recorded() []apiCall {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]apiCall{}, f.calls...)
}

func (f *faults) forgetCalls() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = nil
}

// === impl Tailnet: admin of the API ===

// adminAPI is the part of the admin API that rules the fake of Tailscale's.
func (t *Tailnet) adminAPI(handle func(string, func(*http.Request) (any, error))) {
	handle("GET /api/calls", func(*http.Request) (any, error) { return t.api.faults.recorded(), nil })
	handle("DELETE /api/calls", func(*http.Request) (any, error) { t.api.faults.forgetCalls(); return struct{}{}, nil })
	handle("GET /api/failures", func(*http.Request) (any, error) { return t.api.faults.shown(), nil })
	handle("POST /api/failures", t.adminFault)
	handle("DELETE /api/failures", func(*http.Request) (any, error) {
		return map[string]int{"lifted": t.api.faults.lift(0)}, nil
	})
	handle("DELETE /api/failures/{id}", t.adminLift)
	handle("POST /api/clients", t.adminClient)
	handle("DELETE /api/clients/{id}", t.adminRemoveClient)
	handle("POST /api/tokens/revoke", func(r *http.Request) (any, error) {
		if err := readNothing(r); err != nil {
			return nil, err
		}
		return map[string]int{"revoked": t.api.revokeTokens()}, nil
	})
	handle("POST /api/tokens/lifetime", t.adminTokenLifetime)
	handle("POST /api/stop", t.adminGate(t.apiGate, true))
	handle("POST /api/start", t.adminGate(t.apiGate, false))
}

func (t *Tailnet) adminGate(gate *gate, shut bool) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		if err := readNothing(r); err != nil {
			return nil, err
		}
		gate.setShut(shut)
		return map[string]bool{"running": !shut}, nil
	}
}

// adminFault lets calls fail: {"status":429,"retry_after":"30"}, {"hang":true}
// or {"close":true}, of a method and path pattern, {"count":n} times or until
// it is lifted.
func (t *Tailnet) adminFault(r *http.Request) (any, error) {
	var body struct {
		Method     string `json:"method"`
		Path       string `json:"path"`
		Status     int    `json:"status"`
		RetryAfter string `json:"retry_after"`
		Body       string `json:"body"`
		Hang       bool   `json:"hang"`
		Close      bool   `json:"close"`
		Count      *int   `json:"count"`
	}
	if err := readBody(r, &body); err != nil {
		return nil, err
	}
	kinds := 0
	for _, set := range []bool{body.Status != 0, body.Hang, body.Close} {
		if set {
			kinds++
		}
	}
	if kinds != 1 {
		return nil, badRequest("want one of status, hang and close")
	}
	if body.Status != 0 && (body.Status < 400 || body.Status > 599) {
		return nil, badRequest("status %d: want 400 to 599", body.Status)
	}
	if _, err := path.Match(body.Path, ""); err != nil {
		return nil, badRequest("path %q: %v", body.Path, err)
	}
	remaining := -1
	if body.Count != nil {
		remaining = *body.Count
	}
	if body.Count != nil && remaining < 1 {
		return nil, badRequest("count must be at least 1")
	}
	return t.api.faults.add(apiFault{
		Method: body.Method, Path: body.Path, Status: body.Status, RetryAfter: body.RetryAfter, Body: body.Body,
		Hang: body.Hang, Close: body.Close, Remaining: remaining,
	}), nil
}

func (t *Tailnet) adminLift(r *http.Request) (any, error) {
	id, err := strconv.Atoi(r.PathValue("id"))
	if err != nil || id < 1 || t.api.faults.lift(id) == 0 {
		return nil, refuse(http.StatusNotFound, "no failure has the id %q", r.PathValue("id"))
	}
	return map[string]int{"lifted": 1}, nil
}

// adminClient makes an OAuth client, or with {"federated":{…}} a federated
// identity, which has no secret.
func (t *Tailnet) adminClient(r *http.Request) (any, error) {
	var body struct {
		Scopes    []string    `json:"scopes"`
		Tags      []string    `json:"tags"`
		OwnedTags []string    `json:"owned_tags"`
		Federated *federation `json:"federated"`
	}
	if err := readBody(r, &body); err != nil {
		return nil, err
	}
	if len(body.Scopes) == 0 {
		return nil, badRequest("want at least one scope")
	}
	if err := checkTags(body.Tags); err != nil {
		return nil, err
	}
	if trust := body.Federated; trust != nil {
		if trust.Issuer == "" || trust.Subject == "" {
			return nil, badRequest("federated: issuer and subject are needed")
		}
		if trust.PublicKeyPEM != "" {
			if _, err := parsePublicKey(trust.PublicKeyPEM); err != nil {
				return nil, badRequest("federated: %v", err)
			}
		}
	}
	client := t.api.addClient(apiClient{scopes: body.Scopes, tags: body.Tags, owned: body.OwnedTags, trust: body.Federated})
	return map[string]string{"client_id": client.id, "client_secret": client.secret}, nil
}

func (t *Tailnet) adminRemoveClient(r *http.Request) (any, error) {
	if id := r.PathValue("id"); !t.api.removeClient(id) {
		return nil, refuse(http.StatusNotFound, "no client has the id %q", id)
	}
	return struct{}{}, nil
}

// adminTokenLifetime sets the lifetime of later tokens: {"lifetime":"90s"}.
func (t *Tailnet) adminTokenLifetime(r *http.Request) (any, error) {
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
	t.api.setTokenLifetime(lifetime)
	return map[string]string{"lifetime": lifetime.String()}, nil
}
