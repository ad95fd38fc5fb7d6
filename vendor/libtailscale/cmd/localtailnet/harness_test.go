package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"tailscale.com/client/local"
	"tailscale.com/ipn/ipnstate"
	"tailscale.com/tsnet"
	"tailscale.com/types/logger"
)

// patience bounds every wait; it only ends a test that has failed.
const patience = 60 * time.Second

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard)
	os.Exit(m.Run())
}

func startTailnet(t *testing.T, config Config) *Tailnet {
	t.Helper()
	tailnet, err := Start(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tailnet.Close() })
	return tailnet
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// newNode makes a node that has not joined.
func newNode(t *testing.T, tailnet *Tailnet, hostname string) *tsnet.Server {
	t.Helper()
	server := &tsnet.Server{
		Dir:        t.TempDir(),
		Hostname:   hostname,
		AuthKey:    tailnet.Ready().AuthKey,
		ControlURL: tailnet.Ready().ControlURL,
		Logf:       logger.Discard,
		UserLogf:   logger.Discard,
	}
	return server
}

func up(t *testing.T, tailnet *Tailnet, server *tsnet.Server) *ipnstate.Status {
	t.Helper()
	if err := server.Start(); err != nil {
		t.Fatalf("start: %v", err)
	}
	t.Cleanup(func() { server.Close() })
	status, err := server.Up(testContext(t))
	if err != nil {
		t.Fatalf("up: %v", err)
	}
	if err := tailnet.awaitReachable(testContext(t), status.TailscaleIPs[0]); err != nil {
		t.Fatalf("await home DERP: %v", err)
	}
	return status
}

func join(t *testing.T, tailnet *Tailnet, hostname string) *tsnet.Server {
	t.Helper()
	server := newNode(t, tailnet, hostname)
	up(t, tailnet, server)
	return server
}

func localClient(t *testing.T, server *tsnet.Server) *local.Client {
	t.Helper()
	client, err := server.LocalClient()
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// eventually waits until check says that it holds.
func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	ctx := testContext(t)
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for !check() {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			t.Fatalf("never came true: %s", what)
		}
	}
}

// call uses the admin API and returns the status; into may be nil.
func call(t *testing.T, tailnet *Tailnet, method, path string, body, into any) int {
	t.Helper()
	var encoded []byte
	if body != nil {
		var err error
		if encoded, err = json.Marshal(body); err != nil {
			t.Fatal(err)
		}
	}
	request, err := http.NewRequestWithContext(testContext(t), method, tailnet.Ready().AdminURL+path, bytes.NewReader(encoded))
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if into != nil {
		if err := json.Unmarshal(answer, into); err != nil {
			t.Fatalf("%s %s: status %d, body %q: %v", method, path, response.StatusCode, answer, err)
		}
	}
	return response.StatusCode
}

// must is call where only 200 will do.
func must(t *testing.T, tailnet *Tailnet, method, path string, body, into any) {
	t.Helper()
	var raw json.RawMessage
	if status := call(t, tailnet, method, path, body, &raw); status != http.StatusOK {
		t.Fatalf("%s %s: status %d, body %s", method, path, status, raw)
	}
	if into != nil {
		if err := json.Unmarshal(raw, into); err != nil {
			t.Fatal(err)
		}
	}
}

func listedNode(t *testing.T, tailnet *Tailnet, name string) shownNode {
	t.Helper()
	var shown shownNode
	must(t, tailnet, "GET", "/nodes/"+name, nil, &shown)
	return shown
}

// serveEcho accepts on a node's port and sends back what comes, then FIN.
func serveEcho(t *testing.T, server *tsnet.Server, address string) {
	t.Helper()
	listener, err := server.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer connection.Close()
				io.Copy(connection, connection)
			}()
		}
	}()
}

func serveHTTPOn(t *testing.T, listener net.Listener, handler http.Handler) {
	t.Helper()
	server := &http.Server{Handler: handler}
	t.Cleanup(func() { server.Close() })
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			t.Logf("serve: %v", err)
		}
	}()
}
