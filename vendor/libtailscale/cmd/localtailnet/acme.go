package main

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// maxNonces bounds the nonces that are given out and not used.
const maxNonces = 10_000

// acmeServer is an ACME server (RFC 8555, with renewal information of
// RFC 9773) for the names of the tailnet. It offers dns-01 only. Left out are
// key change, revocation, external account binding and pre-authorization.
type acmeServer struct {
	base      string // URL without trailing slash
	authority *authority
	domain    string
	// lookupTXT is the DNS in which challenges are looked up.
	lookupTXT func(name string) []string

	mu            sync.Mutex
	lifetime      time.Duration
	nonces        map[string]struct{}
	accounts      map[string]*account // by id
	orders        map[string]*order
	authz         map[string]*authorization
	issued        []*issuedCertificate
	bySerial      map[string]*issuedCertificate
	rateLimit     rateLimit
	rejectedCount int // orders answered 429
	nextID        int
}

type account struct {
	id       string
	key      *accountKey
	contacts []string
	status   string
}

type order struct {
	id             string
	account        *account
	names          []string
	authorizations []*authorization
	status         string // pending, ready, valid, invalid
	expires        time.Time
	replaces       string
	certificate    *issuedCertificate
	failure        *problem
}

// authorization proves control of one name; its challenge has the same id.
type authorization struct {
	id       string
	account  *account
	name     string // without "*."
	wildcard bool
	token    string
	status   string // pending, valid, invalid
	expires  time.Time
	checked  time.Time
	failure  *problem
}

type issuedCertificate struct {
	id       string
	leaf     *x509.Certificate
	account  *account
	renewNow bool
}

// rateLimit rejects new orders while remaining is not zero; negative: until
// it is switched off.
type rateLimit struct {
	remaining  int
	retryAfter time.Duration
}

func newACMEServer(base string, authority *authority, lifetime time.Duration, domain string, lookupTXT func(string) []string) *acmeServer {
	return &acmeServer{
		base:      base,
		authority: authority,
		domain:    domain,
		lookupTXT: lookupTXT,
		lifetime:  lifetime,
		nonces:    map[string]struct{}{},
		accounts:  map[string]*account{},
		orders:    map[string]*order{},
		authz:     map[string]*authorization{},
		bySerial:  map[string]*issuedCertificate{},
	}
}

func (s *acmeServer) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /directory", s.serveDirectory)
	mux.HandleFunc("GET /new-nonce", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("HEAD /new-nonce", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	mux.HandleFunc("POST /new-account", s.signed(true, s.serveNewAccount))
	mux.HandleFunc("POST /account/{id}", s.signed(false, s.serveAccount))
	mux.HandleFunc("POST /new-order", s.signed(false, s.serveNewOrder))
	mux.HandleFunc("POST /order/{id}", s.signed(false, s.serveOrder))
	mux.HandleFunc("POST /order/{id}/finalize", s.signed(false, s.serveFinalize))
	mux.HandleFunc("POST /authorization/{id}", s.signed(false, s.serveAuthorization))
	mux.HandleFunc("POST /challenge/{id}", s.signed(false, s.serveChallenge))
	mux.HandleFunc("POST /certificate/{id}", s.signed(false, s.serveCertificate))
	mux.HandleFunc("GET /renewal-info/{id}", s.serveRenewalInfo)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Link", fmt.Sprintf(`<%s/directory>;rel="index"`, s.base))
		if r.Method != http.MethodGet || r.URL.Path == "/new-nonce" {
			w.Header().Set("Replay-Nonce", s.newNonce())
		}
		mux.ServeHTTP(w, r)
	})
}

// signed wraps a handler that runs under s.mu with a request that verified.
func (s *acmeServer) signed(byKey bool, serve func(http.ResponseWriter, *http.Request, *verifiedRequest) *problem) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		verified, failure := s.verify(r, byKey)
		if failure == nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			failure = serve(w, r, verified)
		}
		if failure != nil {
			failure.write(w)
		}
	}
}

func (s *acmeServer) serveDirectory(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]any{
		"newNonce":    s.base + "/new-nonce",
		"newAccount":  s.base + "/new-account",
		"newOrder":    s.base + "/new-order",
		"renewalInfo": s.base + "/renewal-info",
		"meta":        map[string]any{"externalAccountRequired": false},
	})
}

func (s *acmeServer) serveNewAccount(w http.ResponseWriter, _ *http.Request, verified *verifiedRequest) *problem {
	var request struct {
		Contact              []string `json:"contact"`
		OnlyReturnExisting   bool     `json:"onlyReturnExisting"`
		TermsOfServiceAgreed bool     `json:"termsOfServiceAgreed"`
	}
	if err := json.Unmarshal(verified.payload, &request); err != nil {
		return malformed("newAccount: %v", err)
	}
	for _, known := range s.accounts {
		if known.key.thumbprint == verified.key.thumbprint {
			if known.status != "valid" {
				return &problem{Status: http.StatusUnauthorized, Type: "unauthorized", Detail: "the account is " + known.status}
			}
			return s.writeAccount(w, http.StatusOK, known)
		}
	}
	if request.OnlyReturnExisting {
		return &problem{Status: http.StatusBadRequest, Type: "accountDoesNotExist", Detail: "no account has this key"}
	}
	created := &account{id: s.newIDLocked(), key: verified.key, contacts: request.Contact, status: "valid"}
	s.accounts[created.id] = created
	return s.writeAccount(w, http.StatusCreated, created)
}

func (s *acmeServer) serveAccount(w http.ResponseWriter, r *http.Request, verified *verifiedRequest) *problem {
	if r.PathValue("id") != verified.account.id {
		return &problem{Status: http.StatusUnauthorized, Type: "unauthorized", Detail: "the account belongs to another key"}
	}
	if len(verified.payload) > 0 {
		var request struct {
			Contact *[]string `json:"contact"`
			Status  string    `json:"status"`
		}
		if err := json.Unmarshal(verified.payload, &request); err != nil {
			return malformed("account: %v", err)
		}
		if request.Status != "" && request.Status != "deactivated" {
			return malformed("account: status may only become deactivated")
		}
		if request.Contact != nil {
			verified.account.contacts = *request.Contact
		}
		if request.Status != "" {
			verified.account.status = request.Status
		}
	}
	return s.writeAccount(w, http.StatusOK, verified.account)
}

func (s *acmeServer) writeAccount(w http.ResponseWriter, status int, shown *account) *problem {
	w.Header().Set("Location", s.base+"/account/"+shown.id)
	contacts := shown.contacts
	if contacts == nil {
		contacts = []string{}
	}
	writeJSON(w, status, map[string]any{"status": shown.status, "contact": contacts})
	return nil
}

func (s *acmeServer) accountByURL(url string) *account {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, known := range s.accounts {
		if s.base+"/account/"+known.id == url && known.status == "valid" {
			return known
		}
	}
	return nil
}

func (s *acmeServer) newNonce() string {
	nonce := newSecret("")
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.nonces) >= maxNonces {
		clear(s.nonces) // their holders are told badNonce and try again
	}
	s.nonces[nonce] = struct{}{}
	return nonce
}

func (s *acmeServer) takeNonce(nonce string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, known := s.nonces[nonce]
	delete(s.nonces, nonce)
	return known
}

func (s *acmeServer) newIDLocked() string {
	s.nextID++
	return strconv.Itoa(s.nextID)
}

// problem is an error as RFC 8555 §6.7 has it; Type is without its prefix.
type problem struct {
	Status     int
	Type       string
	Detail     string
	RetryAfter time.Duration
}

func malformed(format string, arguments ...any) *problem {
	return &problem{Status: http.StatusBadRequest, Type: "malformed", Detail: fmt.Sprintf(format, arguments...)}
}

func (p *problem) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]any{"type": "urn:ietf:params:acme:error:" + p.Type, "detail": p.Detail, "status": p.Status})
}

func (p *problem) write(w http.ResponseWriter) {
	if p.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(p.RetryAfter.Seconds())))
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	json.NewEncoder(w).Encode(p)
}
