package main

import (
	"context"
	"crypto/x509"
	"net"
	"net/http/httptest"
	"testing"
	"time"
)

func TestEveryLoadOfHTTPPassesTheReverseProxy(t *testing.T) {
	backend, err := serveHTTPBackend()
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewUnstartedServer(reverseProxy(backend))
	front.EnableHTTP2 = true
	front.StartTLS()
	t.Cleanup(front.Close)
	c := &client{roots: x509.NewCertPool(), open: func(ctx context.Context, _ order) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "tcp", front.Listener.Addr().String())
	}}
	c.roots.AddCert(front.Certificate())
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, e := range exchanges {
		o := e.load
		// The certificate of httptest is for example.com.
		o.Host, o.Domain, o.Port, o.TLS, o.HTTP, o.Streams, o.Seconds = "example", "com", 443, true, true, 2, 0.05
		result, err := loads[o.Load](c, ctx, o)
		if err != nil || result.Count == 0 {
			t.Errorf("%s: %d exchanges, error %v", o.Load, result.Count, err)
		}
		if wantBytes := int64(result.Count) * largeSize; o.Load == "bodies" && result.Bytes != wantBytes {
			t.Errorf("%d bodies have %d bytes, want %d", result.Count, result.Bytes, wantBytes)
		}
	}
}
