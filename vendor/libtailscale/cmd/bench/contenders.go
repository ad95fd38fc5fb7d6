package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"tailscale.com/client/local"
	"tailscale.com/ipn"
)

// job is what a contender does with a connection.
type job string

const (
	jobL4   job = "L4"   // TCP to a TCP backend
	jobTLS  job = "TLS"  // TLS to a TCP backend
	jobHTTP job = "HTTP" // HTTPS to an HTTP backend
	jobNone job = ""     // a node that serves nothing: only its memory is of interest
)

// contender is a server that is measured.
type contender struct {
	name    string
	subject string // what -only calls it besides its name
	job     job
	routes  int // HTTPRoutes beside the one that is asked for
	launch  func(b *bench, ctx context.Context, c contender, host string) (*child, error)
}

// Names that figures are compared by.
const (
	peerL4      = "go-l4"
	peerTLS     = "go-tls"
	peerHTTP    = "go-http"
	serveHTTP   = "tailscaled-http"
	tailwayHTTP = "tailway-http"
	bare        = "bare"
)

// peerOf is the contender that the others of a job are compared with.
func peerOf(j job) string {
	switch j {
	case jobL4:
		return peerL4
	case jobTLS:
		return peerTLS
	case jobHTTP:
		return peerHTTP
	}
	return bare
}

var contenders = []contender{
	{name: bare, subject: bare, job: jobNone, launch: (*bench).launchPeer},
	{name: "raw", subject: "raw", job: jobL4, launch: (*bench).launchPeer},
	{name: peerL4, subject: peerL4, job: jobL4, launch: (*bench).launchPeer},
	{name: "tailscaled-l4", subject: "tailscaled", job: jobL4, launch: (*bench).launchTailscaled},
	{name: "tailway-l4", subject: "tailway", job: jobL4, launch: (*bench).launchTailway},
	{name: peerTLS, subject: peerTLS, job: jobTLS, launch: (*bench).launchPeer},
	{name: "go-tls-cached", subject: "go-tls-cached", job: jobTLS, launch: (*bench).launchPeer},
	{name: "tailscaled-tls", subject: "tailscaled", job: jobTLS, launch: (*bench).launchTailscaled},
	{name: "tailway-tls", subject: "tailway", job: jobTLS, launch: (*bench).launchTailway},
	{name: peerHTTP, subject: peerHTTP, job: jobHTTP, launch: (*bench).launchPeer},
	{name: serveHTTP, subject: "tailscaled", job: jobHTTP, launch: (*bench).launchTailscaled},
	{name: tailwayHTTP, subject: "tailway", job: jobHTTP, launch: (*bench).launchTailway},
	{name: "tailway-routes", subject: "tailway", job: jobHTTP, routes: 999, launch: (*bench).launchTailway},
}

func (c contender) port() int {
	switch c.job {
	case jobTLS:
		return portTLS
	case jobHTTP:
		return portHTTP
	}
	return portL4
}

// backendOf is where a contender passes on what it gets.
func (b *bench) backendOf(c contender) string {
	if c.job == jobHTTP {
		return b.web
	}
	return b.backend
}

// startTimeout bounds how long a server may take to join, get a certificate and
// serve.
const startTimeout = 60 * time.Second

// running is a contender that serves.
type running struct {
	contender
	host  string
	dir   string
	child *child
}

// launch starts a contender as a new node and waits until it serves.
func (b *bench) launch(ctx context.Context, c contender) (*running, error) {
	b.nodes++
	host := fmt.Sprintf("%s-%d", c.name, b.nodes)
	dir := filepath.Join(b.children.dir, host)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	one, err := c.launch(b, ctx, c, host)
	if err != nil {
		b.children.kill(one)
		os.RemoveAll(dir)
		return nil, err
	}
	return &running{contender: c, host: host, dir: dir, child: one}, nil
}

// stop ends a contender and removes what it left.
func (b *bench) stop(ctx context.Context, r *running) {
	b.children.kill(r.child)
	os.RemoveAll(r.dir)
	if err := b.tailnet.forget(ctx, r.host); err != nil && ctx.Err() == nil {
		b.note("%v", err)
	}
}

func (b *bench) launchPeer(ctx context.Context, c contender, host string) (*child, error) {
	one, err := b.children.start(host, b.self, "-role", c.name, "-backend", b.backendOf(c), "-host", host,
		"-dir", filepath.Join(b.children.dir, host), "-control-url", b.tailnet.ControlURL, "-auth-key", b.tailnet.AuthKey)
	if err != nil {
		return nil, err
	}
	_, err = one.line(ctx)
	return one, err
}

const gatewayYAML = `apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata:
  name: bench
spec:
  controllerName: tailway.michaelbeaumont.github.io/controller
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: bench
spec:
  gatewayClassName: bench
  addresses:
    - type: Hostname
      value: HOST
  listeners:
    - name: l4
      port: L4_PORT
      protocol: TCP
    - name: tls
      port: TLS_PORT
      protocol: TLS
      tls:
        mode: Terminate
        options:
          gateway.tailscale.com/certificate: tailnet
    - name: https
      port: HTTP_PORT
      protocol: HTTPS
      tls:
        mode: Terminate
        options:
          gateway.tailscale.com/certificate: tailnet
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata:
  name: bench
spec:
  parentRefs:
    - name: bench
      sectionName: l4
    - name: bench
      sectionName: tls
  rules:
    - backendRefs:
        - name: backend
          port: BACKEND_PORT
---
apiVersion: v1
kind: Service
metadata:
  name: backend
spec:
  type: ExternalName
  externalName: 127.0.0.1
  ports:
    - port: BACKEND_PORT
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: bench
spec:
  parentRefs:
    - name: bench
      sectionName: https
  rules:
    - backendRefs:
        - name: web
          port: WEB_PORT
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: calls
spec:
  parentRefs:
    - name: bench
      sectionName: https
  rules:
    - matches:
        - path:
            type: PathPrefix
            value: /bench.Echo
      backendRefs:
        - name: calls
          port: WEB_PORT
---
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  type: ExternalName
  externalName: 127.0.0.1
  ports:
    - port: WEB_PORT
---
apiVersion: v1
kind: Service
metadata:
  name: calls
spec:
  type: ExternalName
  externalName: 127.0.0.1
  ports:
    - port: WEB_PORT
      appProtocol: kubernetes.io/h2c
`

// otherRoute is one that no request is for.
const otherRoute = `---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: other-NUMBER
spec:
  parentRefs:
    - name: bench
      sectionName: https
  rules:
    - matches:
        - path:
            type: PathPrefix
            value: /other/NUMBER
      backendRefs:
        - name: web
          port: WEB_PORT
`

func (b *bench) launchTailway(ctx context.Context, c contender, host string) (*child, error) {
	_, backendPort, err := net.SplitHostPort(b.backend)
	if err != nil {
		return nil, err
	}
	_, webPort, err := net.SplitHostPort(b.web)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(b.children.dir, host)
	text := gatewayYAML
	for number := range c.routes {
		text += strings.ReplaceAll(otherRoute, "NUMBER", strconv.Itoa(number))
	}
	objects := strings.NewReplacer("HOST", host, "L4_PORT", strconv.Itoa(portL4), "TLS_PORT", strconv.Itoa(portTLS),
		"HTTP_PORT", strconv.Itoa(portHTTP), "BACKEND_PORT", backendPort, "WEB_PORT", webPort).Replace(text)
	file := filepath.Join(dir, "gateway.yaml")
	if err := os.WriteFile(file, []byte(objects), 0o600); err != nil {
		return nil, err
	}
	admin, err := freeAddress()
	if err != nil {
		return nil, err
	}
	one, err := b.children.start(host, b.options.tailway, "run", "-f", file,
		"--state-dir", filepath.Join(dir, "state"), "--auth-key", b.tailnet.AuthKey,
		"--control-url", b.tailnet.ControlURL, "--admin-addr", admin, "--log-level", "warn",
		// All load comes from one client, which would meet the limit per peer.
		"--max-connections-per-peer", "10000")
	if err != nil {
		return nil, err
	}
	return one, one.await(ctx, func(ctx context.Context) error { return ready(ctx, "http://"+admin+"/readyz") })
}

func (b *bench) launchTailscaled(ctx context.Context, c contender, host string) (*child, error) {
	dir := filepath.Join(b.children.dir, host)
	socket := filepath.Join(dir, "socket")
	one, err := b.children.start(host, b.options.tailscaled, "--tun=userspace-networking", "--no-logs-no-support",
		"--socket="+socket, "--statedir="+dir, "--port=0")
	if err != nil {
		return nil, err
	}
	client := &local.Client{Socket: socket, UseSocketOnly: true}
	if err := one.await(ctx, func(ctx context.Context) error { _, err := client.Status(ctx); return err }); err != nil {
		return one, err
	}
	prefs := ipn.NewPrefs()
	prefs.ControlURL, prefs.Hostname, prefs.WantRunning = b.tailnet.ControlURL, host, true
	if err := client.Start(ctx, ipn.Options{AuthKey: b.tailnet.AuthKey, UpdatePrefs: prefs}); err != nil {
		return one, one.failure(err)
	}
	// Start alone stays at NeedsLogin, with an auth key too.
	if err := client.StartLoginInteractive(ctx); err != nil {
		return one, one.failure(err)
	}
	err = one.await(ctx, func(ctx context.Context) error {
		status, err := client.StatusWithoutPeers(ctx)
		if err == nil && status.BackendState != ipn.Running.String() {
			err = fmt.Errorf("tailscaled is in state %s", status.BackendState)
		}
		return err
	})
	if err != nil {
		return one, err
	}
	name := host + "." + b.tailnet.Domain
	if c.job != jobL4 {
		// Issued before the first handshake, so that no handshake waits for it.
		if _, _, err := client.CertPair(ctx, name); err != nil {
			return one, one.failure(err)
		}
	}
	serve := b.serveConfig(c, name)
	if err := client.SetServeConfig(ctx, serve); err != nil {
		return one, one.failure(err)
	}
	return one, nil
}

// serveConfig is what "tailscale serve" would set for a job.
func (b *bench) serveConfig(c contender, name string) *ipn.ServeConfig {
	port := uint16(c.port())
	handler := &ipn.TCPPortHandler{TCPForward: b.backend}
	serve := &ipn.ServeConfig{TCP: map[uint16]*ipn.TCPPortHandler{port: handler}}
	switch c.job {
	case jobTLS:
		handler.TerminateTLS = name
	case jobHTTP:
		*handler = ipn.TCPPortHandler{HTTPS: true}
		root := &ipn.HTTPHandler{Proxy: "http://" + b.web}
		serve.Web = map[ipn.HostPort]*ipn.WebServerConfig{
			ipn.HostPort(fmt.Sprintf("%s:%d", name, port)): {Handlers: map[string]*ipn.HTTPHandler{"/": root}},
		}
	}
	return serve
}

// await asks again and again until the answer is yes, the child ends or the
// time is over.
func (c *child) await(ctx context.Context, ask func(context.Context) error) error {
	ticker := time.NewTicker(25 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-c.ended:
			return c.failure(fmt.Errorf("it ended: %s", c.cmd.ProcessState))
		case <-ctx.Done():
			return c.failure(err)
		case <-ticker.C:
		}
	}
}

func ready(ctx context.Context, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, response.Status)
	}
	return nil
}

// freeAddress is a loopback address that nobody listens on now.
func freeAddress() (string, error) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer listener.Close()
	return listener.Addr().String(), nil
}
