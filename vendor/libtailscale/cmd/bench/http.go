package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"

	"tailscale.com/ipn/ipnstate"
	"tailscale.com/tsnet"
)

// What the HTTP backend has.
const (
	pathSmall  = "/small"             // 128 bytes
	pathLarge  = "/large"             // largeSize bytes
	pathSocket = "/socket"            // a connection that becomes an echo
	pathUnary  = "/bench.Echo/Unary"  // a gRPC call: the answer is the question
	pathStream = "/bench.Echo/Stream" // a gRPC call: every message is answered with itself
)

const (
	smallSize = 128
	largeSize = 1 << 20
)

const grpcType = "application/grpc"

// serveHTTPBackend answers HTTP/1.1 and HTTP/2 without TLS on a port of its
// own, and returns the address.
func serveHTTPBackend() (string, error) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	small, large := bytes.Repeat([]byte{'s'}, smallSize), bytes.Repeat([]byte{'l'}, largeSize)
	mux := http.NewServeMux()
	answer := func(body []byte) http.HandlerFunc {
		length := fmt.Sprint(len(body))
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", length)
			w.Write(body)
		}
	}
	mux.HandleFunc(pathSmall, answer(small))
	mux.HandleFunc(pathLarge, answer(large))
	mux.HandleFunc(pathSocket, serveSocket)
	mux.HandleFunc(pathUnary, serveCall)
	mux.HandleFunc(pathStream, serveCall)
	server := &http.Server{Handler: mux, Protocols: plainProtocols(true)}
	go server.Serve(listener)
	return listener.Addr().String(), nil
}

func plainProtocols(http1 bool) *http.Protocols {
	var protocols http.Protocols
	protocols.SetHTTP1(http1)
	protocols.SetUnencryptedHTTP2(true)
	return &protocols
}

// serveCall answers each piece of the request with itself, and ends as gRPC
// does.
func serveCall(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", grpcType)
	w.Header().Set("Trailer", "Grpc-Status")
	w.WriteHeader(http.StatusOK)
	flusher := http.NewResponseController(w)
	// Callers wait for the answer before they send.
	if err := flusher.Flush(); err != nil {
		return
	}
	buffer := make([]byte, 512)
	for {
		n, err := r.Body.Read(buffer)
		if n > 0 {
			if _, err := w.Write(buffer[:n]); err != nil {
				return
			}
			if err := flusher.Flush(); err != nil {
				return
			}
		}
		if err != nil {
			break
		}
	}
	w.Header().Set("Grpc-Status", "0")
}

// serveSocket switches protocols as a WebSocket server does; what follows is
// echoed byte by byte, for a proxy looks into no frame.
func serveSocket(w http.ResponseWriter, r *http.Request) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		http.Error(w, "no upgrade", http.StatusBadRequest)
		return
	}
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"); err != nil {
		return
	}
	echo(conn)
}

// serveReverseProxy is the Go peer of the HTTP job: the node's certificate, and
// net/http in front of httputil.ReverseProxy.
func serveReverseProxy(server *tsnet.Server, status *ipnstate.Status, backend string) error {
	config, err := tlsConfig(server, status, false)
	if err != nil {
		return err
	}
	config.NextProtos = []string{"h2", "http/1.1"}
	listener, err := server.Listen("tcp", fmt.Sprintf(":%d", portHTTP))
	if err != nil {
		return err
	}
	front := &http.Server{Handler: reverseProxy(backend)}
	go front.Serve(tls.NewListener(listener, config))
	return nil
}

func reverseProxy(backend string) http.Handler {
	target := &url.URL{Scheme: "http", Host: backend}
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host
			r.SetXForwarded()
		},
		Transport: &byProtocol{
			// More than the two idle connections that the default keeps.
			http: &http.Transport{MaxIdleConnsPerHost: 256},
			grpc: &http.Transport{Protocols: plainProtocols(false)},
		},
		FlushInterval: -1,
	}
}

// byProtocol speaks HTTP/2 to the backend for gRPC, and HTTP/1.1 for the rest.
type byProtocol struct {
	http, grpc *http.Transport
}

func (t *byProtocol) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasPrefix(r.Header.Get("Content-Type"), grpcType) {
		return t.grpc.RoundTrip(r)
	}
	return t.http.RoundTrip(r)
}

// http2Client asks one server over one connection of HTTP/2.
func (c *client) http2Client(ctx context.Context, o order) (*http.Client, error) {
	conn, err := c.dialProtocol(ctx, o, "h2")
	if err != nil {
		return nil, err
	}
	dialled := make(chan net.Conn, 1)
	dialled <- conn
	transport := &http.Transport{
		ForceAttemptHTTP2:  true,
		DisableCompression: true,
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			select {
			case conn := <-dialled:
				return conn, nil
			default:
				return nil, fmt.Errorf("the connection to %s ended", o.Host)
			}
		},
	}
	return &http.Client{Transport: transport}, nil
}
