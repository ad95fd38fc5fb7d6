package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"tailscale.com/tsnet"
)

// serveHTTPS answers on a node's port 443 with its tailnet certificate.
func serveHTTPS(t *testing.T, tailnet *Tailnet, server *tsnet.Server) {
	t.Helper()
	listener, err := server.Listen("tcp", ":443")
	if err != nil {
		t.Fatal(err)
	}
	client := localClient(t, server)
	config := &tls.Config{GetCertificate: client.GetCertificate, NextProtos: []string{"h2", "http/1.1"}}
	serveHTTPOn(t, tls.NewListener(listener, config), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, err := client.WhoIs(r.Context(), r.RemoteAddr)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s %s", r.Method, who.UserProfile.LoginName, r.Header.Get("X-Mark"), body)
	}))
}

func TestAClientRequestShowsTheVerifiedChain(t *testing.T) {
	tailnet := startTailnet(t, Config{})
	serveHTTPS(t, tailnet, join(t, tailnet, "nginx"))
	must(t, tailnet, "POST", "/client/alice", clientOptions{Login: "alice@example.com"}, nil)
	var answer httpAnswer
	must(t, tailnet, "POST", "/client/alice/http", httpRequest{
		URL: "https://nginx.tail1234.ts.net/", Method: "PUT", Headers: map[string]string{"X-Mark": "m"}, Body: "b"}, &answer)
	if answer.Status != 200 || answer.Body != "PUT alice@example.com m b" {
		t.Fatalf("answer: %+v", answer)
	}
	if answer.TLS == nil || answer.TLS.Version != "TLS 1.3" || answer.TLS.ServerName != "nginx.tail1234.ts.net" || len(answer.TLS.VerifiedChain) != 3 {
		t.Fatalf("TLS: %+v", answer.TLS)
	}
	leaf := answer.TLS.VerifiedChain[0]
	if !slices.Equal(leaf.DNSNames, []string{"nginx.tail1234.ts.net"}) || !strings.Contains(leaf.Issuer, "localtailnet intermediate") {
		t.Fatalf("leaf: %+v", leaf)
	}
	if node := listedNode(t, tailnet, "nginx"); answer.RemoteAddress != node.Addresses[0]+":443" {
		t.Fatalf("remote address is %s, the node has %v", answer.RemoteAddress, node.Addresses)
	}
	var refusal map[string]string
	if status := call(t, tailnet, "POST", "/client/alice/http", httpRequest{
		URL: "https://nginx.tail1234.ts.net/", ServerName: "wrong.example.com"}, &refusal); status != 502 {
		t.Fatalf("a wrong server name gives %d %v", status, refusal)
	}
	if status := call(t, tailnet, "POST", "/client/alice/http", httpRequest{URL: "https://nobody.tail1234.ts.net/"}, &refusal); status != 502 {
		t.Fatalf("an unknown node gives %d %v", status, refusal)
	}
	must(t, tailnet, "DELETE", "/client/alice", nil, nil)
}

func TestGetPrintsWhoAndTheChainAndTheBody(t *testing.T) {
	tailnet := startTailnet(t, Config{})
	serveHTTPS(t, tailnet, join(t, tailnet, "nginx"))
	var out bytes.Buffer
	err := runGet(testContext(t), []string{"-admin", tailnet.Ready().AdminURL, "-login", "alice@example.com", "https://nginx.tail1234.ts.net/"}, &out)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"* client visitor.tail1234.ts.net, alice@example.com (100.64.",
		"over the tailnet",
		"* certificate chain, verified to the tailnet's root:",
		"names   nginx.tail1234.ts.net",
		" 200 OK\n",
		"\nGET alice@example.com",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in:\n%s", want, &out)
		}
	}
	if err := runGet(testContext(t), []string{"-admin", tailnet.Ready().AdminURL, "https://nobody.tail1234.ts.net/"}, &out); err == nil {
		t.Error("get of an unknown node does not fail")
	}
}

// tunnel opens a raw byte stream to address as a client.
func tunnel(t *testing.T, tailnet *Tailnet, client, address string) (*net.TCPConn, *bufio.Reader) {
	t.Helper()
	connection, err := net.Dial("tcp", strings.TrimPrefix(tailnet.Ready().AdminURL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })
	deadline, _ := testContext(t).Deadline()
	connection.SetDeadline(deadline)
	fmt.Fprintf(connection, "GET /client/%s/tunnel?address=%s HTTP/1.1\r\nHost: admin\r\nConnection: Upgrade\r\nUpgrade: tailnet-tcp\r\n\r\n", client, url.QueryEscape(address))
	reader := bufio.NewReader(connection)
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode != http.StatusSwitchingProtocols {
		body, _ := io.ReadAll(response.Body)
		t.Fatalf("tunnel to %s: status %d, %s", address, response.StatusCode, body)
	}
	return connection.(*net.TCPConn), reader
}

func TestATunnelCarriesAllBytesAfterAHalfClose(t *testing.T) {
	tailnet := startTailnet(t, Config{})
	server := join(t, tailnet, "sink")
	listener, err := server.Listen("tcp", ":9")
	if err != nil {
		t.Fatal(err)
	}
	// The server answers only after the client's FIN.
	go func() {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		defer connection.Close()
		received, err := io.ReadAll(connection)
		if err == nil {
			connection.Write(received)
		}
	}()
	connection, reader := tunnel(t, tailnet, "visitor", "sink:9")
	sent := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	if _, err := connection.Write(sent); err != nil {
		t.Fatal(err)
	}
	if err := connection.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	received, err := io.ReadAll(reader)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(received, sent) {
		t.Fatalf("sent %d bytes, got %d back", len(sent), len(received))
	}
}

func TestATunnelKeepsItsOtherHalfWhenTheServerEndsFirst(t *testing.T) {
	tailnet := startTailnet(t, Config{})
	server := join(t, tailnet, "talker")
	listener, err := server.Listen("tcp", ":9")
	if err != nil {
		t.Fatal(err)
	}
	heard := make(chan string, 1)
	go func() {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		defer connection.Close()
		fmt.Fprint(connection, "said all")
		connection.(interface{ CloseWrite() error }).CloseWrite()
		received, _ := io.ReadAll(connection)
		heard <- string(received)
	}()
	connection, reader := tunnel(t, tailnet, "visitor", "talker:9")
	said, err := io.ReadAll(reader)
	if err != nil || string(said) != "said all" {
		t.Fatalf("got %q, %v", said, err)
	}
	fmt.Fprint(connection, "late word")
	connection.CloseWrite()
	select {
	case got := <-heard:
		if got != "late word" {
			t.Fatalf("the server heard %q", got)
		}
	case <-testContext(t).Done():
		t.Fatal("the server heard nothing")
	}
}

func TestATunnelCarriesResetsBothWays(t *testing.T) {
	tailnet := startTailnet(t, Config{})
	listener, err := join(t, tailnet, "abrupt").Listen("tcp", ":9")
	if err != nil {
		t.Fatal(err)
	}
	accept := func() *gonet.TCPConn {
		t.Helper()
		accepted, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		connection, ok := accepted.(*gonet.TCPConn)
		if !ok {
			t.Fatalf("accepted a %T", accepted)
		}
		deadline, _ := testContext(t).Deadline()
		connection.SetDeadline(deadline)
		return connection
	}

	connection, reader := tunnel(t, tailnet, "visitor", "abrupt:9")
	abort(accept())
	if _, err := reader.ReadByte(); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("the server's reset reads as %v", err)
	}
	connection.Close()

	connection, _ = tunnel(t, tailnet, "visitor", "abrupt:9")
	remote := accept()
	connection.SetLinger(0)
	connection.Close()
	if _, err := remote.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Fatalf("the client's reset reads as %v", err)
	}

	refused, err := net.Dial("tcp", strings.TrimPrefix(tailnet.Ready().AdminURL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer refused.Close()
	fmt.Fprint(refused, "GET /client/visitor/tunnel?address=abrupt:10 HTTP/1.1\r\nHost: admin\r\nConnection: Upgrade\r\nUpgrade: tailnet-tcp\r\n\r\n")
	response, err := http.ReadResponse(bufio.NewReader(refused), nil)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusBadGateway {
		t.Fatalf("a closed port gives %d, want 502", response.StatusCode)
	}
}
