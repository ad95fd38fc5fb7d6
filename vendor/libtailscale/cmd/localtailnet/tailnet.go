package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"time"

	"tailscale.com/envknob"
	"tailscale.com/net/netns"
	"tailscale.com/tailcfg"
	"tailscale.com/tstest/integration/testcontrol"
	"tailscale.com/types/logger"
	"tailscale.com/util/rands"
)

// Config says how a local tailnet is started. The zero value of a field takes
// the default named with it.
type Config struct {
	Domain              string        // MagicDNS suffix; "tail1234.ts.net"
	IP                  string        // of all that nodes and gateways talk to; "127.0.0.1"
	Listen              string        // address of the control server; port 0 of IP
	AdminListen         string        // address of the admin API; "127.0.0.1:0"
	APIListen           string        // address of the fake of Tailscale's HTTP API; port 0 of IP
	Login               string        // owner of untagged nodes; "owner@example.com"
	CertificateLifetime time.Duration // of leaf certificates; 90 days
	EphemeralGrace      time.Duration // from a lost stream to removal; 5 s
	Logf                logger.Logf   // discards
}

func (c Config) withDefaults() Config {
	if c.Domain == "" {
		c.Domain = "tail1234.ts.net"
	}
	if c.IP == "" {
		c.IP = "127.0.0.1"
	}
	if c.Listen == "" {
		c.Listen = net.JoinHostPort(c.IP, "0")
	}
	if c.AdminListen == "" {
		c.AdminListen = "127.0.0.1:0"
	}
	if c.APIListen == "" {
		c.APIListen = net.JoinHostPort(c.IP, "0")
	}
	if c.Login == "" {
		c.Login = "owner@example.com"
	}
	if c.CertificateLifetime == 0 {
		c.CertificateLifetime = 90 * 24 * time.Hour
	}
	if c.EphemeralGrace == 0 {
		c.EphemeralGrace = 5 * time.Second
	}
	if c.Logf == nil {
		c.Logf = logger.Discard
	}
	return c
}

// Ready is what a user of the tailnet needs to join it; it is printed as one
// line of JSON when every part listens.
type Ready struct {
	ControlURL       string            `json:"control_url"`
	ACMEDirectoryURL string            `json:"acme_directory_url"`
	RootCAPEM        string            `json:"root_ca_pem"`
	AuthKey          string            `json:"auth_key"`
	Domain           string            `json:"domain"`
	DERP             string            `json:"derp"`
	STUN             string            `json:"stun"`
	AdminURL         string            `json:"admin_url"`
	APIURL           string            `json:"api_url"`
	OAuthClientID    string            `json:"oauth_client_id"`
	OAuthSecret      string            `json:"oauth_client_secret"`
	Env              map[string]string `json:"env"`
}

// Tailnet is a whole tailnet on loopback: control, DERP, STUN, ACME, the fake
// of Tailscale's API, the admin API and the clients that were asked for.
type Tailnet struct {
	config  Config
	ready   Ready
	relay   *relay
	nodes   *registry
	dns     *challengeRecords
	control *front
	acme    *acmeServer
	clients *clients
	api     *api
	apiGate *gate
	servers []*http.Server
}

// Start brings up every part of a tailnet. The caller must Close it.
func Start(config Config) (_ *Tailnet, err error) {
	config = config.withDefaults()
	// STUN and magicsock must reach 127.0.0.1, which the socket marks and the
	// bind-to-device of netns would prevent.
	netns.SetEnabled(false)

	t := &Tailnet{config: config}
	defer func() {
		if err != nil {
			t.Close()
		}
	}()
	if t.relay, err = startRelay(config); err != nil {
		return nil, err
	}
	controlListener, err := config.listen(config.Listen)
	if err != nil {
		return nil, err
	}
	controlURL := "http://" + controlListener.Addr().String()

	t.dns = newChallengeRecords()
	base := &testcontrol.Server{
		Logf:            config.Logf,
		DERPMap:         t.relay.derpMap,
		DNSConfig:       &tailcfg.DNSConfig{Proxied: true},
		MagicDNSDomain:  config.Domain,
		ExplicitBaseURL: controlURL,
		OnSetDNS:        t.dns.set,
	}
	t.nodes = newRegistry(config, base, t.relay.derpMap)
	base.AltMapStream = t.nodes.serveMap
	if t.control, err = startFront(controlListener, controlURL, base, t.nodes, config.Logf); err != nil {
		return nil, err
	}

	authKey := t.nodes.addAuthKey(authKey{reusable: true, approved: true, login: config.Login})
	authority, err := newAuthority()
	if err != nil {
		return nil, err
	}
	acmeListener, err := config.listen(net.JoinHostPort(config.IP, "0"))
	if err != nil {
		return nil, err
	}
	t.acme = newACMEServer("http://"+acmeListener.Addr().String(), authority, config.CertificateLifetime, config.Domain, t.dns.values)
	t.serve(acmeListener, t.acme.handler())

	apiListener, err := config.listen(config.APIListen)
	if err != nil {
		return nil, err
	}
	t.api, t.apiGate = newAPI(t.nodes), newGate(apiListener)
	client := t.api.addClient(apiClient{scopes: []string{"auth_keys", "devices:core"}, tags: []string{"tag:tailway"}, owned: []string{"*"}})
	t.serve(t.apiGate, t.api)

	adminListener, err := config.listen(config.AdminListen)
	if err != nil {
		return nil, err
	}
	directory := t.acme.base + "/directory"
	t.ready = Ready{
		ControlURL:       controlURL,
		ACMEDirectoryURL: directory,
		RootCAPEM:        authority.rootPEM(),
		AuthKey:          authKey,
		Domain:           config.Domain,
		DERP:             t.relay.derpAddress,
		STUN:             t.relay.stunAddress,
		AdminURL:         "http://" + adminListener.Addr().String(),
		APIURL:           "http://" + apiListener.Addr().String(),
		OAuthClientID:    client.id,
		OAuthSecret:      client.secret,
		Env:              nodeEnvironment(directory),
	}
	for name, value := range t.ready.Env {
		// Tailscale reads most of these without a lock, so they are written
		// once in a process.
		if os.Getenv(name) != value {
			envknob.Setenv(name, value)
		}
	}
	t.clients = newClients(t)
	t.serve(adminListener, t.adminHandler())
	return t, nil
}

// nodeEnvironment is what a node process must have in its environment before
// it starts: tailscale reads most of these once.
func nodeEnvironment(directory string) map[string]string {
	return map[string]string{
		"TS_DEBUG_ACME_DIRECTORY_URL":   directory,
		"TS_ASSUME_NETWORK_UP_FOR_TEST": "1",
		"TS_NO_LOGS_NO_SUPPORT":         "1",
		"TS_PANIC_IF_HIT_MAIN_CONTROL":  "1",
		"TS_DISABLE_PORTMAPPER":         "1",
	}
}

func (t *Tailnet) serve(listener net.Listener, handler http.Handler) {
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0),
	}
	t.servers = append(t.servers, server)
	go server.Serve(listener)
}

// Ready says how to join the tailnet.
func (t *Tailnet) Ready() Ready { return t.ready }

// Close ends every part; connections are cut.
func (t *Tailnet) Close() error {
	var errs []error
	if t.clients != nil {
		errs = append(errs, t.clients.close())
	}
	if t.api != nil {
		t.api.close()
	}
	for _, server := range t.servers {
		errs = append(errs, server.Close())
	}
	if t.control != nil {
		errs = append(errs, t.control.close())
	}
	if t.dns != nil {
		t.dns.close()
	}
	if t.nodes != nil {
		t.nodes.close()
	}
	if t.relay != nil {
		errs = append(errs, t.relay.close())
	}
	return errors.Join(errs...)
}

// listen refuses any address but loopback and the IP that was asked for by
// name: this program has no authentication of its own.
func (c Config) listen(address string) (net.Listener, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("listen address %q: want ip:port: %w", address, err)
	}
	ip := net.ParseIP(host)
	if ip == nil || ip.IsUnspecified() || !ip.IsLoopback() && host != c.IP {
		return nil, fmt.Errorf("listen address %q: the host must be a loopback IP such as 127.0.0.1, or that of -ip", address)
	}
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	return listener, nil
}

func newSecret(prefix string) string { return prefix + rands.HexString(24) }
