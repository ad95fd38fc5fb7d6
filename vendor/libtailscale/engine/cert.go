package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"tailscale.com/tsweb"
	"tailscale.com/util/clientmetric"
)

// CertError is why there is no certificate.
type CertError struct {
	Text       string
	RetryAfter time.Duration // 0 when the ACME server named none
}

func (e *CertError) Error() string {
	text, err := json.Marshal(struct {
		Error      string `json:"error"`
		RetryAfter int64  `json:"retry_after_s"`
	}{e.Text, int64((e.RetryAfter + time.Second - 1) / time.Second)})
	if err != nil {
		return e.Text
	}
	return string(text)
}

// CertPair gives the private key and the chain for domain, PEM: the stored one
// while it is valid for minValidity more, else a new one.
func (n *Node) CertPair(ctx context.Context, domain string, minValidity time.Duration) (string, error) {
	domain = strings.TrimSuffix(domain, ".")
	files := certFiles{dir: filepath.Join(n.dir.path, "certs"), store: n.options.Store}
	inStore := n.options.Dir == ""
	if inStore {
		if err := files.restore(domain); err != nil {
			return "", &CertError{Text: err.Error()}
		}
	}
	limit := &rateLimit{}
	ctx, limit.cancel = context.WithCancel(context.WithValue(ctx, rateLimitKey{}, limit))
	defer limit.cancel()
	defer context.AfterFunc(n.closing, limit.cancel)()

	// The backend's lock per domain does not heed the context.
	type result struct {
		text string
		err  error
	}
	results := make(chan result, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				results <- result{err: fmt.Errorf("internal error: %v", p)}
			}
		}()
		pair, err := n.backend.GetCertPEMWithValidity(ctx, domain, minValidity)
		if err == nil && inStore {
			err = files.save(domain)
		}
		if err != nil {
			results <- result{err: err}
			return
		}
		results <- result{text: string(pair.KeyPEM) + string(pair.CertPEM)}
	}()
	select {
	case r := <-results:
		if r.err == nil {
			return r.text, nil
		}
		return "", n.certError(domain, r.err, limit)
	case <-ctx.Done():
		return "", n.certError(domain, ctx.Err(), limit)
	}
}

func (n *Node) certError(domain string, err error, limit *rateLimit) error {
	if text, after, ok := limit.hit(); ok {
		return &CertError{Text: fmt.Sprintf("the ACME server limits certificates for %s: %s", domain, text), RetryAfter: after}
	}
	var statuser tsweb.HTTPStatuser
	if errors.As(err, &statuser) {
		status := statuser.HTTPStatus()
		seconds, _ := strconv.Atoi(status.Header.Get("Retry-After"))
		return &CertError{Text: err.Error(), RetryAfter: time.Duration(seconds) * time.Second}
	}
	switch {
	case n.closing.Err() != nil:
		return ErrClosed
	case errors.Is(err, context.DeadlineExceeded):
		return &CertError{Text: fmt.Sprintf("no certificate for %s within the time given: the ACME server or the tailnet's DNS is slow", domain)}
	case len(n.status.current().CertDomains) == 0:
		return &CertError{Text: fmt.Sprintf("no certificate for %s: enable HTTPS certificates in the DNS page of the tailnet's admin console (%v)", domain, err)}
	default:
		return &CertError{Text: fmt.Sprintf("no certificate for %s: %v", domain, err)}
	}
}

type rateLimitKey struct{}

// rateLimit notes that the ACME server said 429. Its client would sleep as long as
// the server asks and try again; the caller wants to know.
type rateLimit struct {
	cancel context.CancelFunc

	mu    sync.Mutex
	text  string
	after time.Duration
	seen  bool
}

func (l *rateLimit) note(text string, after time.Duration) {
	l.mu.Lock()
	l.text, l.after, l.seen = text, after, true
	l.mu.Unlock()
	l.cancel()
}

func (l *rateLimit) hit() (text string, after time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text, l.after, l.seen
}

// acmeTransport is what the ACME client of the engine sends through.
type acmeTransport struct{ base http.RoundTripper }

func init() {
	http.DefaultClient.Transport = acmeTransport{http.DefaultTransport}
}

func (t acmeTransport) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := t.base.RoundTrip(request)
	limit, ok := request.Context().Value(rateLimitKey{}).(*rateLimit)
	if err != nil || !ok || response.StatusCode != http.StatusTooManyRequests {
		return response, err
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(response.Body, 4<<10))
	var problem struct {
		Detail string `json:"detail"`
	}
	if json.Unmarshal(body, &problem) != nil || problem.Detail == "" {
		problem.Detail = response.Status
	}
	after := retryAfter(response.Header.Get("Retry-After"))
	limit.note(problem.Detail, after)
	return nil, fmt.Errorf("rate limited: %s", problem.Detail)
}

// retryAfter reads the header of RFC 9110 §10.2.3: seconds or a date.
func retryAfter(value string) time.Duration {
	if seconds, err := strconv.Atoi(value); err == nil {
		return time.Duration(max(seconds, 0)) * time.Second
	}
	if date, err := http.ParseTime(value); err == nil {
		return max(time.Until(date), 0)
	}
	return 0
}

// Metrics gives the engine's own, Prometheus text format.
func (n *Node) Metrics() string {
	var text strings.Builder
	text.WriteString(n.server.Sys().UserMetricsRegistry().String())
	clientmetric.WritePrometheusExpositionFormat(&text)
	return text.String()
}
