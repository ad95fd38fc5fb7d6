package main

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// recordedCalls are the calls as "METHOD path client status".
func recordedCalls(t *testing.T, tailnet *Tailnet) []string {
	t.Helper()
	var calls []apiCall
	must(t, tailnet, "GET", "/api/calls", nil, &calls)
	var shown []string
	for _, call := range calls {
		client := "nobody"
		if call.Client == readyClient(tailnet).ID {
			client = "ready"
		}
		shown = append(shown, fmt.Sprintf("%s %s %s %d", call.Method, strings.TrimPrefix(call.Path, "/api/v2/"), client, call.Status))
	}
	return shown
}

// getAlone asks on a connection of its own; it gives the error of having no
// answer.
func getAlone(t *testing.T, tailnet *Tailnet) error {
	t.Helper()
	request, err := http.NewRequestWithContext(testContext(t), "GET", tailnet.Ready().APIURL+"/api/v2/device/none", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(request)
	if err == nil {
		response.Body.Close()
	}
	return err
}

func TestCallsFailOnceOrUntilTheFailureIsLifted(t *testing.T) {
	tailnet := startTailnet(t, Config{})
	token := tokenFor(t, tailnet, readyClient(tailnet))
	devices := func() apiAnswer { return askAPI(t, tailnet, token, "GET", "/api/v2/tailnet/-/devices", "") }
	must(t, tailnet, "DELETE", "/api/calls", nil, nil)

	must(t, tailnet, "POST", "/api/failures", map[string]any{
		"method": "GET", "path": "/api/v2/tailnet/*/devices", "status": 429, "retry_after": "7", "body": `{"message":"slow down"}`, "count": 1,
	}, nil)
	if answer := askAPI(t, tailnet, token, "GET", "/api/v2/tailnet/-/keys", ""); answer.Status != 200 {
		t.Errorf("another path: %d %s", answer.Status, answer.Body)
	}
	if answer := devices(); answer.Status != 429 || answer.Header.Get("Retry-After") != "7" || answer.Body != `{"message":"slow down"}` {
		t.Errorf("the failure: %+v", answer)
	}
	if answer := devices(); answer.Status != 200 {
		t.Errorf("after one failure: %+v", answer)
	}

	var fault apiFault
	must(t, tailnet, "POST", "/api/failures", map[string]any{"status": 503}, &fault)
	for range 2 {
		if answer := devices(); answer.Status != 503 || answer.Body != `{"message":"service unavailable"}` {
			t.Errorf("until it is lifted: %+v", answer)
		}
	}
	must(t, tailnet, "DELETE", fmt.Sprintf("/api/failures/%d", fault.ID), nil, nil)
	if answer := devices(); answer.Status != 200 {
		t.Errorf("after it is lifted: %+v", answer)
	}

	got, want := recordedCalls(t, tailnet), []string{
		"GET tailnet/-/keys ready 200",
		"GET tailnet/-/devices ready 429",
		"GET tailnet/-/devices ready 200",
		"GET tailnet/-/devices ready 503",
		"GET tailnet/-/devices ready 503",
		"GET tailnet/-/devices ready 200",
	}
	if !slices.Equal(got, want) {
		t.Errorf("calls:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestCallsHangAreCutOrAreRefused(t *testing.T) {
	tailnet := startTailnet(t, Config{})
	must(t, tailnet, "POST", "/api/failures", map[string]any{"close": true, "count": 1}, nil)
	if err := getAlone(t, tailnet); err == nil {
		t.Error("a call whose connection is closed was answered")
	}

	must(t, tailnet, "POST", "/api/failures", map[string]any{"hang": true}, nil)
	hung := make(chan error, 1)
	go func() { hung <- getAlone(t, tailnet) }()
	eventually(t, "the call that hangs is known", func() bool { return len(recordedCalls(t, tailnet)) == 2 })
	select {
	case err := <-hung:
		t.Errorf("it did not hang: %v", err)
	default:
	}
	must(t, tailnet, "DELETE", "/api/failures", nil, nil)
	if err := <-hung; err == nil {
		t.Error("the call that hung was answered")
	}

	must(t, tailnet, "POST", "/api/stop", nil, nil)
	if err := getAlone(t, tailnet); err == nil {
		t.Error("the API answers while it is stopped")
	}
	must(t, tailnet, "POST", "/api/start", nil, nil)
	if err := getAlone(t, tailnet); err != nil {
		t.Errorf("after the start: %v", err)
	}
	got, want := recordedCalls(t, tailnet), []string{
		"GET device/none nobody 0",
		"GET device/none nobody 0",
		"GET device/none nobody 401",
	}
	if !slices.Equal(got, want) {
		t.Errorf("calls %q, want %q", got, want)
	}
}

func TestRecordedCallsHoldNoSecret(t *testing.T) {
	tailnet := startTailnet(t, Config{})
	token := tokenFor(t, tailnet, readyClient(tailnet))
	mint(t, tailnet, token, `"tags":["tag:a"]`)
	var recorded []map[string]any
	must(t, tailnet, "GET", "/api/calls", nil, &recorded)
	if len(recorded) != 2 || strings.Contains(fmt.Sprint(recorded), "tskey-") {
		t.Errorf("recorded %v", recorded)
	}
}

func TestTheAdminOfTheAPIRefusesWhatItCannotDo(t *testing.T) {
	tailnet := startTailnet(t, Config{})
	for _, wrong := range []struct {
		method, path string
		body         map[string]any
		status       int
	}{
		{"POST", "/api/clients", map[string]any{}, 400},
		{"POST", "/api/clients", map[string]any{"scopes": []string{"all"}, "tags": []string{"web"}}, 400},
		{"POST", "/api/clients", map[string]any{"scopes": []string{"all"}, "federated": map[string]string{"issuer": "https://a"}}, 400},
		{"POST", "/api/clients", map[string]any{"scopes": []string{"all"}, "federated": map[string]string{"issuer": "https://a", "subject": "*", "public_key_pem": "x"}}, 400},
		{"DELETE", "/api/clients/none", nil, 404},
		{"POST", "/api/tokens/lifetime", map[string]any{"lifetime": "soon"}, 400},
		{"POST", "/api/failures", map[string]any{}, 400},
		{"POST", "/api/failures", map[string]any{"status": 200}, 400},
		{"POST", "/api/failures", map[string]any{"status": 500, "hang": true}, 400},
		{"POST", "/api/failures", map[string]any{"status": 500, "path": "["}, 400},
		{"POST", "/api/failures", map[string]any{"status": 500, "count": 0}, 400},
		{"DELETE", "/api/failures/1", nil, 404},
		{"DELETE", "/api/failures/all", nil, 404},
	} {
		if status := call(t, tailnet, wrong.method, wrong.path, wrong.body, nil); status != wrong.status {
			t.Errorf("%s %s %v: %d, want %d", wrong.method, wrong.path, wrong.body, status, wrong.status)
		}
	}
}
