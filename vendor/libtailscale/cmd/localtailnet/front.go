package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"tailscale.com/control/controlhttp"
	"tailscale.com/control/controlhttp/controlhttpserver"
	"tailscale.com/net/memnet"
	"tailscale.com/tailcfg"
	"tailscale.com/tstest/integration/testcontrol"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
)

// maxControlBody bounds a request of a node, in bytes.
const maxControlBody = 1 << 20

// innerAddress is a name only: testcontrol listens in memory.
const innerAddress = "127.0.0.1:80"

// front is the control server that nodes see. It ends their Noise connections,
// answers what testcontrol cannot, and passes the rest on over a Noise
// connection of its own, one for each node connection.
//
// It exists because testcontrol ends the process on a path it does not know
// and on a body it cannot decode, behind Noise, where no wrapper reaches.
type front struct {
	url      string
	gate     *gate
	server   *http.Server
	registry *registry
	logf     logger.Logf
	private  key.MachinePrivate // Noise key that nodes see
	legacy   key.MachinePublic

	inner        *memnet.Listener
	innerServer  *http.Server
	innerKey     key.MachinePublic
	mu           sync.Mutex
	machines     map[key.MachinePublic]key.MachinePrivate // of the node → ours towards testcontrol
	unknownPaths map[string]int
}

func startFront(listener net.Listener, controlURL string, base *testcontrol.Server, registry *registry, logf logger.Logf) (*front, error) {
	f := &front{
		url:          controlURL,
		gate:         newGate(listener),
		registry:     registry,
		logf:         logf,
		private:      key.NewMachine(),
		legacy:       key.NewMachine().Public(),
		inner:        memnet.Listen(innerAddress),
		machines:     map[key.MachinePublic]key.MachinePrivate{},
		unknownPaths: map[string]int{},
	}
	f.innerServer = &http.Server{Handler: base, ErrorLog: log.New(io.Discard, "", 0)}
	go f.innerServer.Serve(f.inner)
	var err error
	if f.innerKey, err = f.fetchInnerKey(); err != nil {
		return nil, errors.Join(err, f.innerServer.Close(), listener.Close())
	}

	mux := http.NewServeMux()
	mux.HandleFunc("GET /generate_204", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("GET /key", f.serveKey)
	mux.HandleFunc("/ts2021", f.serveNoise)
	mux.HandleFunc("GET /auth/{token}", f.serveLogin)
	mux.HandleFunc("/", f.serveUnknown)
	f.server = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	go f.server.Serve(f.gate)
	return f, nil
}

func (f *front) close() error {
	f.gate.setShut(true)
	return errors.Join(f.server.Close(), f.innerServer.Close())
}

func (f *front) fetchInnerKey() (key.MachinePublic, error) {
	client := &http.Client{Transport: &http.Transport{DialContext: f.inner.Dial, DisableKeepAlives: true}}
	response, err := client.Get("http://" + innerAddress + "/key?v=1")
	if err != nil {
		return key.MachinePublic{}, fmt.Errorf("testcontrol's key: %w", err)
	}
	defer response.Body.Close()
	var keys tailcfg.OverTLSPublicKeyResponse
	if err := json.NewDecoder(response.Body).Decode(&keys); err != nil {
		return key.MachinePublic{}, fmt.Errorf("testcontrol's key: %w", err)
	}
	return keys.PublicKey, nil
}

func (f *front) serveKey(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, http.StatusOK, tailcfg.OverTLSPublicKeyResponse{LegacyPublicKey: f.legacy, PublicKey: f.private.Public()})
}

func (f *front) serveUnknown(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	// Bounded, so that a scan of paths cannot fill the memory.
	if _, known := f.unknownPaths[r.URL.Path]; known || len(f.unknownPaths) < 1000 {
		f.unknownPaths[r.URL.Path]++
	}
	f.mu.Unlock()
	f.logf("control: no such path: %s %s", r.Method, r.URL.Path)
	http.Error(w, "not found", http.StatusNotFound)
}

// serveNoise ends a node's Noise connection and serves HTTP/2 inside it.
func (f *front) serveNoise(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost && r.Method != http.MethodGet {
		http.Error(w, "POST required", http.StatusMethodNotAllowed)
		return
	}
	connection, err := controlhttpserver.AcceptHTTP(r.Context(), w, r, f.private, nil)
	if err != nil {
		f.logf("control: Noise handshake: %v", err)
		return
	}
	defer connection.Close()
	machine := connection.Peer()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	inner, err := f.dialInner(ctx, machine)
	if err != nil {
		f.logf("control: %v", err)
		return
	}
	defer inner.Close()
	session := &noiseSession{front: f, machine: machine, inner: inner}
	(&http2.Server{}).ServeConn(connection, &http2.ServeConnOpts{
		Context:    ctx,
		BaseConfig: &http.Server{Handler: session, ErrorLog: log.New(io.Discard, "", 0)},
	})
}

func (f *front) dialInner(ctx context.Context, machine key.MachinePublic) (*http2.ClientConn, error) {
	f.mu.Lock()
	private, ok := f.machines[machine]
	if !ok {
		private = key.NewMachine()
		f.machines[machine] = private
	}
	f.mu.Unlock()
	dialer := &controlhttp.Dialer{
		Hostname:        "127.0.0.1",
		MachineKey:      private,
		ControlKey:      f.innerKey,
		ProtocolVersion: uint16(tailcfg.CurrentCapabilityVersion),
		HTTPSPort:       controlhttp.NoPort,
		Dialer:          f.inner.Dial,
	}
	connection, err := dialer.Dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("Noise to testcontrol: %w", err)
	}
	session, err := (&http2.Transport{}).NewClientConn(connection)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("HTTP/2 to testcontrol: %w", err), connection.Close())
	}
	return session, nil
}

// noiseSession serves the requests inside one node connection.
type noiseSession struct {
	front   *front
	machine key.MachinePublic
	inner   *http2.ClientConn
}

func (s *noiseSession) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	serve, known := map[string]func(http.ResponseWriter, *http.Request, []byte){
		"/machine/register":      s.serveRegister,
		"/machine/map":           s.serveMap,
		"/machine/set-dns":       s.serveSetDNS,
		"/machine/update-health": s.forward,
	}[path]
	if !known {
		s.front.serveUnknown(w, r)
		return
	}
	if r.Method != http.MethodPost {
		http.Error(w, "POST required", http.StatusMethodNotAllowed)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxControlBody))
	if err != nil {
		http.Error(w, "read body: "+err.Error(), http.StatusBadRequest)
		return
	}
	serve(w, r, body)
}

func (s *noiseSession) serveMap(w http.ResponseWriter, r *http.Request, body []byte) {
	var request tailcfg.MapRequest
	if err := json.Unmarshal(body, &request); err != nil {
		http.Error(w, "map request: "+err.Error(), http.StatusBadRequest)
		return
	}
	if err := s.front.registry.mayPoll(s.machine, request.NodeKey); err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	s.forward(w, r, body)
}

func (s *noiseSession) serveSetDNS(w http.ResponseWriter, r *http.Request, body []byte) {
	var request tailcfg.SetDNSRequest
	if err := json.Unmarshal(body, &request); err != nil {
		http.Error(w, "set-dns request: "+err.Error(), http.StatusBadRequest)
		return
	}
	if err := s.front.registry.maySetDNS(s.machine, request.NodeKey); err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	s.forward(w, r, body)
}

// forward passes a request on to testcontrol and its answer back, as it comes.
func (s *noiseSession) forward(w http.ResponseWriter, r *http.Request, body []byte) {
	response, err := s.roundTrip(r.Context(), r.URL, body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer response.Body.Close()
	maps.Copy(w.Header(), response.Header)
	w.WriteHeader(response.StatusCode)
	controller := http.NewResponseController(w)
	buffer := make([]byte, 32<<10)
	for {
		n, readErr := response.Body.Read(buffer)
		if n > 0 {
			if _, err := w.Write(buffer[:n]); err != nil {
				return
			}
			if err := controller.Flush(); err != nil {
				return
			}
		}
		if readErr != nil {
			return
		}
	}
}

func (s *noiseSession) roundTrip(ctx context.Context, target *url.URL, body []byte) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+innerAddress+target.Path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	response, err := s.inner.RoundTrip(request)
	if err != nil {
		return nil, fmt.Errorf("testcontrol: %w", err)
	}
	return response, nil
}

// serveLogin is the page behind a login URL: whoever opens it has logged in,
// as ?login=NAME or as the owner of the tailnet.
func (f *front) serveLogin(w http.ResponseWriter, r *http.Request) {
	login := strings.TrimSpace(r.URL.Query().Get("login"))
	if err := f.registry.completeLogin(r.PathValue("token"), login); err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	fmt.Fprintln(w, "The node is logged in.")
}
