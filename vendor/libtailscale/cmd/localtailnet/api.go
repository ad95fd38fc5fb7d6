package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// maxAPIBody bounds the body of an API request, in bytes.
const maxAPIBody = 1 << 20

// api is Tailscale's HTTP API v2, as far as a gateway needs it, over the nodes
// of this tailnet. What it answers follows Tailscale's OpenAPI document and,
// where that is silent, what the real one was seen to answer.
type api struct {
	registry *registry
	mux      *http.ServeMux
	faults   *faults
	closed   chan struct{}

	mu       sync.Mutex
	clients  map[string]*apiClient // by id
	tokens   map[string]*apiToken  // by the token itself
	lifetime time.Duration         // of tokens granted from now on
	keys     map[string]*apiKey    // by id
	services []apiService
}

// apiError is a refusal in the API's own form.
type apiError struct {
	status  int
	message string
}

func (e *apiError) Error() string { return e.message }

func apiRefuse(status int, format string, arguments ...any) error {
	return &apiError{status: status, message: fmt.Sprintf(format, arguments...)}
}

var errTokenInvalid = apiRefuse(http.StatusUnauthorized, "API token invalid")

func newAPI(registry *registry) *api {
	a := &api{
		registry: registry,
		mux:      http.NewServeMux(),
		faults:   newFaults(),
		closed:   make(chan struct{}),
		clients:  map[string]*apiClient{},
		tokens:   map[string]*apiToken{},
		lifetime: time.Hour,
		keys:     map[string]*apiKey{},
	}
	a.mux.HandleFunc("POST /api/v2/oauth/token", a.open(a.serveToken))
	a.mux.HandleFunc("POST /api/v2/oauth/token-exchange", a.open(a.serveTokenExchange))
	a.handle("POST /api/v2/tailnet/{tailnet}/keys", "auth_keys", a.createKey)
	a.handle("GET /api/v2/tailnet/{tailnet}/keys", "auth_keys:read", a.listKeys)
	a.handle("GET /api/v2/tailnet/{tailnet}/keys/{id}", "auth_keys:read", a.readKey)
	a.handle("DELETE /api/v2/tailnet/{tailnet}/keys/{id}", "auth_keys", a.deleteKey)
	a.handle("GET /api/v2/tailnet/{tailnet}/devices", "devices:core:read", a.listDevices)
	a.handle("GET /api/v2/device/{id}", "devices:core:read", a.readDevice)
	a.handle("DELETE /api/v2/device/{id}", "devices:core", a.deleteDevice)
	a.handle("POST /api/v2/device/{id}/authorized", "devices:core", a.authorizeDevice)
	a.handle("POST /api/v2/device/{id}/name", "devices:core", a.renameDevice)
	a.handle("GET /api/v2/tailnet/{tailnet}/vip-services", "services:read", a.listServices)
	a.handle("PUT /api/v2/tailnet/{tailnet}/vip-services/{name}", "services", a.putService)
	a.handle("DELETE /api/v2/tailnet/{tailnet}/vip-services/{name}", "services", a.deleteService)
	a.mux.HandleFunc("/", a.open(func(*http.Request) (any, error) {
		return nil, apiRefuse(http.StatusNotFound, "404 page not found")
	}))
	return a
}

func (a *api) close() { close(a.closed) }

// ServeHTTP records every call, the ones that are made to fail included. A
// call is recorded before its answer leaves, so that whoever has the answer
// finds the call.
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if fault := a.faults.next(r.Method, r.URL.Path); fault != nil {
		a.record(r, fault.Status)
		a.fail(w, r, fault)
		return
	}
	recorder := &statusRecorder{ResponseWriter: w}
	r.Body = http.MaxBytesReader(w, r.Body, maxAPIBody)
	a.mux.ServeHTTP(recorder, r)
	a.record(r, recorder.status)
}

func (a *api) record(r *http.Request, status int) {
	a.faults.record(apiCall{Time: time.Now(), Method: r.Method, Path: r.URL.Path, Client: a.clientOf(r), Status: status})
}

// handle serves what needs a token that has the scope.
func (a *api) handle(pattern, scope string, serve func(*http.Request, *apiToken) (any, error)) {
	a.mux.HandleFunc(pattern, a.open(func(r *http.Request) (any, error) {
		token, err := a.authenticate(r)
		if err != nil {
			return nil, err
		}
		if !covers(token.scopes, scope) {
			return nil, apiRefuse(http.StatusForbidden, "calling actor does not have enough permissions to perform this function")
		}
		if tailnet := r.PathValue("tailnet"); tailnet != "" && tailnet != "-" && tailnet != a.registry.config.Domain {
			return nil, apiRefuse(http.StatusNotFound, "tailnet not found")
		}
		return serve(r, token)
	}))
}

// open serves what needs no token.
func (a *api) open(serve func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		answer, err := serve(r)
		if err != nil {
			writeAPIError(w, err)
			return
		}
		writeJSON(w, http.StatusOK, answer)
	}
}

func writeAPIError(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	if refusal, ok := errors.AsType[*apiError](err); ok {
		status = refusal.status
	}
	writeJSON(w, status, map[string]string{"message": err.Error()})
}

// readAPIBody reads a JSON object; unknown fields are passed over, as the real
// API does.
func readAPIBody(r *http.Request, into any) error {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return apiRefuse(http.StatusBadRequest, "cannot read the body: %v", err)
	}
	if len(body) == 0 {
		return nil
	}
	if err := json.Unmarshal(body, into); err != nil {
		return apiRefuse(http.StatusBadRequest, "cannot parse the body: %v", err)
	}
	return nil
}

// fail does what was asked for by way of the admin API.
func (a *api) fail(w http.ResponseWriter, r *http.Request, fault *apiFault) {
	switch {
	case fault.Hang:
		select {
		case <-fault.lifted:
		case <-a.closed:
		case <-r.Context().Done():
		}
		hangUp(w)
	case fault.Close:
		hangUp(w)
	default:
		if fault.RetryAfter != "" {
			w.Header().Set("Retry-After", fault.RetryAfter)
		}
		body := fault.Body
		if body == "" {
			body = fmt.Sprintf(`{"message":%q}`, strings.ToLower(http.StatusText(fault.Status)))
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(fault.Status)
		io.WriteString(w, body)
	}
}

// hangUp resets the connection without an answer.
func hangUp(w http.ResponseWriter) {
	connection, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	if gated, ok := connection.(*gatedConnection); ok {
		gated.reset()
		return
	}
	connection.Close()
}

// statusRecorder remembers the status of an answer.
type statusRecorder struct {
	http.ResponseWriter
	status int
}

func (s *statusRecorder) WriteHeader(status int) {
	s.status = status
	s.ResponseWriter.WriteHeader(status)
}
