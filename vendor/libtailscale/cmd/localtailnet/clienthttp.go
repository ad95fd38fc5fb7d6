package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"
)

// maxAnswer bounds the body of an answer that is passed on, in bytes.
const maxAnswer = 64 << 20

// httpRequest is the body of POST /client/{name}/http.
type httpRequest struct {
	URL        string            `json:"url"`
	Method     string            `json:"method"`      // default GET
	Headers    map[string]string `json:"headers"`     // Host sets the authority
	Body       string            `json:"body"`        //
	BodyBase64 string            `json:"body_base64"` // instead of body
	Address    string            `json:"address"`     // host:port to dial instead of the URL's
	ServerName string            `json:"server_name"` // SNI and verified name instead of the URL's
	RootCAPEM  string            `json:"root_ca_pem"` // trusted besides the tailnet's root
	Version    string            `json:"version"`     // "1.1" or "2"; default: ALPN decides
	Timeout    string            `json:"timeout"`     // default 30s
}

type httpAnswer struct {
	Status        int                 `json:"status"`
	Protocol      string              `json:"protocol"`
	Headers       map[string][]string `json:"headers"`
	Body          string              `json:"body"`
	BodyBase64    string              `json:"body_base64,omitempty"` // of a body that is not UTF-8
	TLS           *tlsAnswer          `json:"tls"`
	LocalAddress  string              `json:"local_addr"`
	RemoteAddress string              `json:"remote_addr"`
	Client        *shownNode          `json:"client"`
}

type tlsAnswer struct {
	Version       string             `json:"version"`
	Cipher        string             `json:"cipher"`
	ALPN          string             `json:"alpn"`
	ServerName    string             `json:"server_name"`
	Resumed       bool               `json:"resumed"`
	VerifiedChain []chainCertificate `json:"verified_chain"`
}

type chainCertificate struct {
	Subject   string    `json:"subject"`
	Issuer    string    `json:"issuer"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	DNSNames  []string  `json:"dns_names"`
	Serial    string    `json:"serial"`
}

// serveHTTP makes one request as the client, over a connection of its own.
func (c *clients) serveHTTP(r *http.Request) (any, error) {
	var wanted httpRequest
	if err := readBody(r, &wanted); err != nil {
		return nil, err
	}
	request, timeout, err := wanted.build()
	if err != nil {
		return nil, err
	}
	roots := c.tailnet.acme.authority.pool()
	if wanted.RootCAPEM != "" && !roots.AppendCertsFromPEM([]byte(wanted.RootCAPEM)) {
		return nil, badRequest("root_ca_pem: no certificate in it")
	}
	one, err := c.joined(r.Context(), r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	answer, err := one.request(ctx, request, wanted, roots)
	if err != nil {
		return nil, refuse(http.StatusBadGateway, "%s %s: %v", request.Method, wanted.URL, err)
	}
	return answer, nil
}

func (h *httpRequest) build() (*http.Request, time.Duration, error) {
	target, err := url.Parse(h.URL)
	if err != nil || (target.Scheme != "http" && target.Scheme != "https") || target.Hostname() == "" {
		return nil, 0, badRequest("url %q: want http://… or https://…", h.URL)
	}
	timeout := joinTimeout
	if h.Timeout != "" {
		if timeout, err = time.ParseDuration(h.Timeout); err != nil || timeout <= 0 {
			return nil, 0, badRequest("timeout %q: want a duration such as 10s", h.Timeout)
		}
	}
	if h.Version != "" && h.Version != "1.1" && h.Version != "2" {
		return nil, 0, badRequest(`version %q: want "1.1" or "2"`, h.Version)
	}
	body := []byte(h.Body)
	if h.BodyBase64 != "" {
		if body, err = base64.StdEncoding.DecodeString(h.BodyBase64); err != nil {
			return nil, 0, badRequest("body_base64: %v", err)
		}
	}
	method := h.Method
	if method == "" {
		method = http.MethodGet
	}
	request, err := http.NewRequest(method, h.URL, strings.NewReader(string(body)))
	if err != nil {
		return nil, 0, badRequest("request: %v", err)
	}
	for name, value := range h.Headers {
		if strings.EqualFold(name, "host") {
			request.Host = value
			continue
		}
		request.Header.Set(name, value)
	}
	return request, timeout, nil
}

func (c *client) request(ctx context.Context, request *http.Request, wanted httpRequest, roots *x509.CertPool) (*httpAnswer, error) {
	answer := &httpAnswer{}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(wanted.Version != "2")
	protocols.SetHTTP2(wanted.Version != "1.1")
	protocols.SetUnencryptedHTTP2(wanted.Version == "2")
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			if wanted.Address != "" {
				address = wanted.Address
			}
			connection, err := c.dial(ctx, address)
			if err == nil {
				answer.LocalAddress = connection.LocalAddr().String()
				answer.RemoteAddress = connection.RemoteAddr().String()
			}
			return connection, err
		},
		TLSClientConfig:    &tls.Config{RootCAs: roots, ServerName: wanted.ServerName},
		Protocols:          protocols,
		DisableCompression: true,
	}
	defer transport.CloseIdleConnections()
	response, err := transport.RoundTrip(request.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("answer's body: %w", err)
	}
	answer.Status, answer.Protocol, answer.Headers = response.StatusCode, response.Proto, response.Header
	if utf8.Valid(body) {
		answer.Body = string(body)
	} else {
		answer.BodyBase64 = base64.StdEncoding.EncodeToString(body)
	}
	if response.TLS != nil {
		answer.TLS = describeTLS(response.TLS)
	}
	if shown, err := c.tailnet.nodeAt(c.address); err == nil {
		answer.Client = &shown
	}
	return answer, nil
}

func describeTLS(state *tls.ConnectionState) *tlsAnswer {
	answer := &tlsAnswer{
		Version:    tls.VersionName(state.Version),
		Cipher:     tls.CipherSuiteName(state.CipherSuite),
		ALPN:       state.NegotiatedProtocol,
		ServerName: state.ServerName,
		Resumed:    state.DidResume,
	}
	if len(state.VerifiedChains) == 0 {
		return answer
	}
	for _, certificate := range state.VerifiedChains[0] {
		answer.VerifiedChain = append(answer.VerifiedChain, chainCertificate{
			Subject: certificate.Subject.String(), Issuer: certificate.Issuer.String(),
			NotBefore: certificate.NotBefore, NotAfter: certificate.NotAfter,
			DNSNames: append([]string{}, certificate.DNSNames...), Serial: fmt.Sprintf("%x", certificate.SerialNumber.Bytes()),
		})
	}
	return answer
}
