package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"tailscale.com/ipn"
	"tailscale.com/tsnet"
)

// oauthClient is a client of the API, as the admin API makes it.
type oauthClient struct {
	ID     string `json:"client_id"`
	Secret string `json:"client_secret"`
}

func newOAuthClient(t *testing.T, tailnet *Tailnet, body map[string]any) oauthClient {
	t.Helper()
	var client oauthClient
	must(t, tailnet, "POST", "/api/clients", body, &client)
	return client
}

func readyClient(tailnet *Tailnet) oauthClient {
	return oauthClient{ID: tailnet.Ready().OAuthClientID, Secret: tailnet.Ready().OAuthSecret}
}

// apiAnswer is what the API said.
type apiAnswer struct {
	Status int
	Header http.Header
	Body   string
}

func (a apiAnswer) decode(t *testing.T, into any) {
	t.Helper()
	if a.Status != http.StatusOK {
		t.Fatalf("status %d, body %s", a.Status, a.Body)
	}
	if err := json.Unmarshal([]byte(a.Body), into); err != nil {
		t.Fatalf("body %s: %v", a.Body, err)
	}
}

func askAPI(t *testing.T, tailnet *Tailnet, token, method, path, body string) apiAnswer {
	t.Helper()
	request, err := http.NewRequestWithContext(testContext(t), method, tailnet.Ready().APIURL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+token)
	return exchange(t, request)
}

func exchange(t *testing.T, request *http.Request) apiAnswer {
	t.Helper()
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return apiAnswer{Status: response.StatusCode, Header: response.Header, Body: strings.TrimSpace(string(body))}
}

func postForm(t *testing.T, tailnet *Tailnet, path string, form url.Values) apiAnswer {
	t.Helper()
	request, err := http.NewRequestWithContext(testContext(t), "POST", tailnet.Ready().APIURL+path, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return exchange(t, request)
}

func tokenFor(t *testing.T, tailnet *Tailnet, client oauthClient) string {
	t.Helper()
	var granted grantedToken
	postForm(t, tailnet, "/api/v2/oauth/token", url.Values{"client_id": {client.ID}, "client_secret": {client.Secret}}).decode(t, &granted)
	return granted.AccessToken
}

func mint(t *testing.T, tailnet *Tailnet, token, create string) shownKey {
	t.Helper()
	var key shownKey
	body := fmt.Sprintf(`{"capabilities":{"devices":{"create":{%s}}},"expirySeconds":600,"description":"a test"}`, create)
	askAPI(t, tailnet, token, "POST", "/api/v2/tailnet/-/keys", body).decode(t, &key)
	return key
}

// joinWith joins with a key and gives the error of the control server, if any.
func joinWith(t *testing.T, tailnet *Tailnet, hostname, key string) (*tsnet.Server, error) {
	t.Helper()
	server := newNode(t, tailnet, hostname)
	server.AuthKey = key
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	_, err := server.Up(testContext(t))
	return server, err
}

func TestAClientGetsATokenByFormOrBasicAndAWrongOneIsRefused(t *testing.T) {
	tailnet := startTailnet(t, Config{})
	client := readyClient(tailnet)
	want := grantedToken{TokenType: "Bearer", ExpiresIn: 3600, Scope: "auth_keys devices:core"}
	var byForm, byBasic grantedToken
	postForm(t, tailnet, "/api/v2/oauth/token", url.Values{
		"grant_type": {"client_credentials"}, "client_id": {client.ID}, "client_secret": {client.Secret},
	}).decode(t, &byForm)
	request, err := http.NewRequestWithContext(testContext(t), "POST", tailnet.Ready().APIURL+"/api/v2/oauth/token", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.SetBasicAuth(client.ID, client.Secret)
	exchange(t, request).decode(t, &byBasic)
	for _, granted := range []grantedToken{byForm, byBasic} {
		if !strings.HasPrefix(granted.AccessToken, "tskey-api-") {
			t.Errorf("access token %q", granted.AccessToken)
		}
		granted.AccessToken = ""
		if granted != want {
			t.Errorf("granted %+v, want %+v", granted, want)
		}
	}

	for _, form := range []url.Values{
		{}, {"client_id": {client.ID}}, {"client_id": {client.ID}, "client_secret": {client.Secret + "x"}},
	} {
		answer := postForm(t, tailnet, "/api/v2/oauth/token", form)
		if answer.Status != 401 || answer.Body != `{"message":"API token invalid"}` {
			t.Errorf("%v: %d %s", form, answer.Status, answer.Body)
		}
	}
	answer := postForm(t, tailnet, "/api/v2/oauth/token", url.Values{"client_secret": {client.Secret}, "scope": {"dns"}})
	if answer.Status != 403 || answer.Body != `{"message":"OAuth client cannot grant scopes \"dns\""}` {
		t.Errorf("a foreign scope: %d %s", answer.Status, answer.Body)
	}
	for _, token := range []string{"", "tskey-api-wrong", client.Secret} {
		if answer := askAPI(t, tailnet, token, "GET", "/api/v2/tailnet/-/devices", ""); answer.Status != 401 {
			t.Errorf("token %q: %d %s", token, answer.Status, answer.Body)
		}
	}
}

func TestTokensEndWithTheirTimeTheirClientAndARevocation(t *testing.T) {
	tailnet := startTailnet(t, Config{})
	client := newOAuthClient(t, tailnet, map[string]any{"scopes": []string{"devices:core:read"}})
	works := func(token string) bool {
		return askAPI(t, tailnet, token, "GET", "/api/v2/tailnet/-/devices", "").Status == 200
	}
	for _, end := range []func(){
		func() { must(t, tailnet, "POST", "/api/tokens/revoke", nil, nil) },
		func() { must(t, tailnet, "DELETE", "/api/clients/"+client.ID, nil, nil) },
	} {
		token := tokenFor(t, tailnet, client)
		if !works(token) {
			t.Fatal("a fresh token does not work")
		}
		end()
		if works(token) {
			t.Error("the token works on")
		}
	}
	must(t, tailnet, "POST", "/api/tokens/lifetime", map[string]string{"lifetime": "1s"}, nil)
	token := tokenFor(t, tailnet, readyClient(tailnet))
	eventually(t, "the token expires", func() bool { return !works(token) })
}

func TestScopesDecideWhatATokenMayDo(t *testing.T) {
	tailnet := startTailnet(t, Config{})
	join(t, tailnet, "subject")
	calls := []struct{ method, path, body string }{
		{"GET", "/api/v2/tailnet/-/keys?all=true", ""},
		{"POST", "/api/v2/tailnet/-/keys", `{"capabilities":{"devices":{"create":{"tags":["tag:a"]}}}}`},
		{"GET", "/api/v2/tailnet/-/devices", ""},
		{"GET", "/api/v2/device/1", ""},
		{"POST", "/api/v2/device/1/name", `{"name":"subject"}`},
		{"DELETE", "/api/v2/tailnet/-/keys/none", ""},
	}
	for _, scene := range []struct {
		scopes []string
		want   []int
	}{
		{[]string{"dns"}, []int{403, 403, 403, 403, 403, 403}},
		{[]string{"auth_keys:read"}, []int{200, 403, 403, 403, 403, 403}},
		{[]string{"auth_keys"}, []int{200, 200, 403, 403, 403, 404}},
		{[]string{"devices:core:read"}, []int{403, 403, 200, 200, 403, 403}},
		{[]string{"devices:core"}, []int{403, 403, 200, 200, 200, 403}},
		{[]string{"all:read"}, []int{200, 403, 200, 200, 403, 403}},
		{[]string{"all"}, []int{200, 200, 200, 200, 200, 404}},
	} {
		token := tokenFor(t, tailnet, newOAuthClient(t, tailnet, map[string]any{"scopes": scene.scopes, "tags": []string{"tag:a"}}))
		var got []int
		for _, call := range calls {
			got = append(got, askAPI(t, tailnet, token, call.method, call.path, call.body).Status)
		}
		if !slices.Equal(got, scene.want) {
			t.Errorf("%v: %v, want %v", scene.scopes, got, scene.want)
		}
	}
}

func TestAMintedKeyLetsOneNodeInWithItsTags(t *testing.T) {
	tailnet := startTailnet(t, Config{})
	token := tokenFor(t, tailnet, readyClient(tailnet))
	key := mint(t, tailnet, token, `"reusable":false,"ephemeral":true,"preauthorized":true,"tags":["tag:web","tag:prod"]`)
	if !strings.HasPrefix(key.Key, "tskey-auth-"+key.ID+"-") || key.KeyType != "auth" || key.Description != "a test" || key.ExpirySeconds != 600 || key.Expires.Sub(key.Created) != 10*time.Minute {
		t.Errorf("minted %+v", key)
	}
	secret := key.Key
	key.Key = ""
	var listed struct{ Keys []shownKey }
	var read shownKey
	askAPI(t, tailnet, token, "GET", "/api/v2/tailnet/-/keys?all=true", "").decode(t, &listed)
	askAPI(t, tailnet, token, "GET", "/api/v2/tailnet/-/keys/"+key.ID, "").decode(t, &read)
	if !reflect.DeepEqual(listed.Keys, []shownKey{key}) || !reflect.DeepEqual(read, key) {
		t.Errorf("listed %+v, read %+v, want %+v", listed.Keys, read, key)
	}

	if _, err := joinWith(t, tailnet, "first", secret); err != nil {
		t.Fatalf("join: %v", err)
	}
	node := listedNode(t, tailnet, "first")
	if !slices.Equal(node.Tags, []string{"tag:web", "tag:prod"}) || !node.Ephemeral || node.Login != taggedLogin {
		t.Errorf("joined as %+v", node)
	}
	if _, err := joinWith(t, tailnet, "second", secret); err == nil {
		t.Error("a key of one use let a second node in")
	}
	askAPI(t, tailnet, token, "GET", "/api/v2/tailnet/-/keys?all=true", "").decode(t, &listed)
	askAPI(t, tailnet, token, "GET", "/api/v2/tailnet/-/keys/"+key.ID, "").decode(t, &read)
	if len(listed.Keys) != 0 || !read.Invalid {
		t.Errorf("the used key is listed as %+v, read as %+v", listed.Keys, read)
	}
}

func TestARevokedOrExpiredKeyLetsNobodyIn(t *testing.T) {
	tailnet := startTailnet(t, Config{})
	token := tokenFor(t, tailnet, readyClient(tailnet))
	revoked := mint(t, tailnet, token, `"reusable":true,"tags":["tag:a"]`)
	if answer := askAPI(t, tailnet, token, "DELETE", "/api/v2/tailnet/-/keys/"+revoked.ID, ""); answer.Status != 200 {
		t.Fatalf("delete: %d %s", answer.Status, answer.Body)
	}
	if answer := askAPI(t, tailnet, token, "DELETE", "/api/v2/tailnet/-/keys/"+revoked.ID, ""); answer.Status != 404 {
		t.Errorf("delete again: %d %s", answer.Status, answer.Body)
	}
	var read shownKey
	askAPI(t, tailnet, token, "GET", "/api/v2/tailnet/-/keys/"+revoked.ID, "").decode(t, &read)
	if !read.Invalid || read.Revoked == nil {
		t.Errorf("the revoked key reads %+v", read)
	}
	var expired shownKey
	askAPI(t, tailnet, token, "POST", "/api/v2/tailnet/-/keys", `{"capabilities":{"devices":{"create":{"tags":["tag:a"]}}},"expirySeconds":1}`).decode(t, &expired)
	eventually(t, "the key expires", func() bool {
		var read shownKey
		askAPI(t, tailnet, token, "GET", "/api/v2/tailnet/-/keys/"+expired.ID, "").decode(t, &read)
		return read.Invalid
	})
	for hostname, secret := range map[string]string{"revoked": revoked.Key, "expired": expired.Key} {
		if _, err := joinWith(t, tailnet, hostname, secret); err == nil {
			t.Errorf("the %s key let a node in", hostname)
		}
	}
}

func TestKeysThatTheAPIWouldRefuseAreRefused(t *testing.T) {
	tailnet := startTailnet(t, Config{})
	client := newOAuthClient(t, tailnet, map[string]any{"scopes": []string{"auth_keys"}, "tags": []string{"tag:a", "tag:b"}, "owned_tags": []string{"tag:c"}})
	token := tokenFor(t, tailnet, client)
	for body, want := range map[string]apiAnswer{
		`{"capabilities":{"devices":{"create":{"tags":["tag:b","tag:a"]}}}}`: {Status: 200},
		`{"capabilities":{"devices":{"create":{"tags":["tag:c"]}}}}`:         {Status: 200},
		`{"capabilities":{"devices":{"create":{"tags":["tag:a"]}}}}`:         {Status: 400, Body: `{"message":"requested tags [tag:a] are invalid or not permitted"}`},
		`{"capabilities":{"devices":{"create":{"tags":["web"]}}}}`:           {Status: 400, Body: `{"message":"requested tags [web] are invalid or not permitted"}`},
		`{"capabilities":{"devices":{"create":{}}}}`:                         {Status: 400, Body: `{"message":"tailnet-owned auth key must have tags set"}`},
		`{}`: {Status: 400, Body: `{"message":"capabilities are required"}`},
		`{"capabilities":{"devices":{"create":{"tags":["tag:c"]}}},"expirySeconds":7776001}`:                         {Status: 400, Body: `{"message":"expirySeconds must be between 1 second and 90 days"}`},
		`{"capabilities":{"devices":{"create":{"tags":["tag:c"]}}},"description":"a/b"}`:                             {Status: 400, Body: `{"message":"description must be at most 50 letters, digits, hyphens and spaces"}`},
		`{"capabilities":{"devices":{"create":{"tags":["tag:c"]}}},"description":"` + strings.Repeat("a", 51) + `"}`: {Status: 400, Body: `{"message":"description must be at most 50 letters, digits, hyphens and spaces"}`},
	} {
		got := askAPI(t, tailnet, token, "POST", "/api/v2/tailnet/-/keys", body)
		if got.Status != want.Status || (want.Body != "" && got.Body != want.Body) {
			t.Errorf("%s: %d %s, want %d %s", body, got.Status, got.Body, want.Status, want.Body)
		}
	}
	if got := askAPI(t, tailnet, token, "POST", "/api/v2/tailnet/-/keys", "{"); got.Status != 400 {
		t.Errorf("a broken body: %d %s", got.Status, got.Body)
	}
	for _, path := range []string{"/api/v2/tailnet/other.example/keys?all=true", "/api/v2/tailnet/-/keys/none", "/api/v2/nowhere"} {
		if got := askAPI(t, tailnet, token, "GET", path, ""); got.Status != 404 {
			t.Errorf("%s: %d %s", path, got.Status, got.Body)
		}
	}
}

func TestDevicesAreShownRenamedAndReallyGo(t *testing.T) {
	tailnet := startTailnet(t, Config{})
	token := tokenFor(t, tailnet, readyClient(tailnet))
	one, two := join(t, tailnet, "one"), join(t, tailnet, "two")
	must(t, tailnet, "POST", "/nodes/one/tags", map[string]any{"tags": []string{"tag:a"}}, nil)
	status, err := localClient(t, one).Status(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	var listed struct{ Devices []apiDevice }
	askAPI(t, tailnet, token, "GET", "/api/v2/tailnet/-/devices?fields=default&tags=tag:a&isEphemeral=false", "").decode(t, &listed)
	if len(listed.Devices) != 1 {
		t.Fatalf("devices with tag:a: %+v", listed.Devices)
	}
	device := listed.Devices[0]
	if device.NodeID != string(status.Self.ID) || device.Name != "one.tail1234.ts.net" || device.Hostname != "one" ||
		!slices.Equal(device.Tags, []string{"tag:a"}) || device.User != taggedLogin || !device.ConnectedToControl || !device.Authorized ||
		device.Addresses[0] != status.TailscaleIPs[0].String() || device.NodeKey != status.Self.PublicKey.String() {
		t.Errorf("the device shows %+v", device)
	}
	for _, id := range []string{device.ID, device.NodeID} {
		var read apiDevice
		askAPI(t, tailnet, token, "GET", "/api/v2/device/"+id, "").decode(t, &read)
		if !reflect.DeepEqual(read, device) {
			t.Errorf("device %s reads %+v, want %+v", id, read, device)
		}
	}
	askAPI(t, tailnet, token, "GET", "/api/v2/tailnet/tail1234.ts.net/devices", "").decode(t, &listed)
	if len(listed.Devices) != 2 {
		t.Errorf("all devices: %+v", listed.Devices)
	}

	path := "/api/v2/device/" + device.NodeID
	for _, rename := range []struct {
		name, shown string
		status      int
	}{
		{"web", "web", 200}, {"www.tail1234.ts.net", "www", 200}, {"two", "www", 409}, {"no good", "www", 400}, {"", "one", 200},
	} {
		answer := askAPI(t, tailnet, token, "POST", path+"/name", fmt.Sprintf(`{"name":%q}`, rename.name))
		var read apiDevice
		askAPI(t, tailnet, token, "GET", path, "").decode(t, &read)
		if answer.Status != rename.status || read.Name != rename.shown+".tail1234.ts.net" {
			t.Errorf("rename to %q: %d %s, then it is %s", rename.name, answer.Status, answer.Body, read.Name)
		}
	}

	if answer := askAPI(t, tailnet, token, "DELETE", path, ""); answer.Status != 200 {
		t.Fatalf("delete: %d %s", answer.Status, answer.Body)
	}
	for _, method := range []string{"GET", "DELETE"} {
		answer := askAPI(t, tailnet, token, method, path, "")
		if answer.Status != 404 || answer.Body != `{"message":"no manageable device matching this ID found"}` {
			t.Errorf("%s after the delete: %d %s", method, answer.Status, answer.Body)
		}
	}
	peers := localClient(t, two)
	eventually(t, "its peer forgets it", func() bool {
		status, err := peers.Status(testContext(t))
		return err == nil && len(status.Peer) == 0
	})
}

func TestOnlyPreauthorizedKeysSpareANodeItsApproval(t *testing.T) {
	tailnet := startTailnet(t, Config{})
	must(t, tailnet, "POST", "/approval", map[string]bool{"required": true}, nil)
	token := tokenFor(t, tailnet, readyClient(tailnet))
	spared := mint(t, tailnet, token, `"preauthorized":true,"tags":["tag:a"]`)
	server, err := joinWith(t, tailnet, "spared", spared.Key)
	if err != nil {
		t.Fatal(err)
	}
	peers := func() int {
		status, err := localClient(t, server).Status(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		return len(status.Peer)
	}
	waiting := newNode(t, tailnet, "waiting")
	waiting.AuthKey = mint(t, tailnet, token, `"preauthorized":false,"tags":["tag:a"]`).Key
	if err := waiting.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { waiting.Close() })
	client := localClient(t, waiting)
	eventually(t, "the node waits for approval", func() bool { return state(t, client) == ipn.NeedsMachineAuth.String() })
	if peers() != 0 {
		t.Error("a node that is not approved is seen")
	}
	var listed struct{ Devices []apiDevice }
	askAPI(t, tailnet, token, "GET", "/api/v2/tailnet/-/devices?authorized=false", "").decode(t, &listed)
	if len(listed.Devices) != 1 || listed.Devices[0].Hostname != "waiting" {
		t.Fatalf("devices that wait: %+v", listed.Devices)
	}
	answer := askAPI(t, tailnet, token, "POST", "/api/v2/device/"+listed.Devices[0].NodeID+"/authorized", `{"authorized":true}`)
	if answer.Status != 200 {
		t.Fatalf("authorize: %d %s", answer.Status, answer.Body)
	}
	eventually(t, "the approved node runs", func() bool { return state(t, client) == ipn.Running.String() })
	eventually(t, "the approved node is seen", func() bool { return peers() == 1 })
	must(t, tailnet, "POST", "/nodes/waiting/approve", map[string]bool{"approved": false}, nil)
	eventually(t, "the node waits again", func() bool { return state(t, client) == ipn.NeedsMachineAuth.String() })
	must(t, tailnet, "POST", "/nodes/waiting/approve", nil, nil)
	eventually(t, "the node runs again", func() bool { return state(t, client) == ipn.Running.String() })
}

// signedToken is a JWT as a cluster would issue it.
func signedToken(t *testing.T, private *ecdsa.PrivateKey, claims map[string]any) string {
	t.Helper()
	encode := func(value any) string {
		encoded, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(encoded)
	}
	signed := encode(map[string]string{"alg": "ES256", "typ": "JWT"}) + "." + encode(claims)
	digest := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, private, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	signature := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func TestAWorkloadGetsATokenForItsIdentity(t *testing.T) {
	tailnet := startTailnet(t, Config{})
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	client := newOAuthClient(t, tailnet, map[string]any{
		"scopes": []string{"devices:core:read"},
		"federated": map[string]string{
			"issuer": "https://kubernetes.default.svc", "subject": "system:serviceaccount:*:tailway-*", "audience": "api.tailscale.com/x",
			"public_key_pem": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})),
		},
	})
	if client.Secret != "" {
		t.Error("a federated identity has a secret")
	}
	claims := func(changes map[string]any) map[string]any {
		all := map[string]any{
			"iss": "https://kubernetes.default.svc", "sub": "system:serviceaccount:tailway-system:tailway-controller",
			"aud": []string{"other", "api.tailscale.com/x"}, "exp": time.Now().Add(time.Hour).Unix(),
		}
		for name, value := range changes {
			all[name] = value
		}
		return all
	}
	ask := func(clientID, token string) apiAnswer {
		return postForm(t, tailnet, "/api/v2/oauth/token-exchange", url.Values{"client_id": {clientID}, "jwt": {token}})
	}
	var granted grantedToken
	ask(client.ID, signedToken(t, private, claims(nil))).decode(t, &granted)
	if granted.Scope != "devices:core:read" || granted.ExpiresIn != 3600 {
		t.Errorf("granted %+v", granted)
	}
	if answer := askAPI(t, tailnet, granted.AccessToken, "GET", "/api/v2/tailnet/-/devices", ""); answer.Status != 200 {
		t.Errorf("with its token: %d %s", answer.Status, answer.Body)
	}
	good := signedToken(t, private, claims(nil))
	for name, answer := range map[string]apiAnswer{
		"another client":  ask(readyClient(tailnet).ID, good),
		"no client":       ask("", good),
		"no token":        ask(client.ID, ""),
		"a broken token":  ask(client.ID, "a.b.c"),
		"another issuer":  ask(client.ID, signedToken(t, private, claims(map[string]any{"iss": "https://evil"}))),
		"another subject": ask(client.ID, signedToken(t, private, claims(map[string]any{"sub": "system:serviceaccount:a:other"}))),
		"no audience":     ask(client.ID, signedToken(t, private, claims(map[string]any{"aud": "other"}))),
		"an old token":    ask(client.ID, signedToken(t, private, claims(map[string]any{"exp": time.Now().Add(-time.Minute).Unix()}))),
		"another key":     ask(client.ID, signedToken(t, foreign, claims(nil))),
	} {
		if answer.Status != 401 {
			t.Errorf("%s: %d %s", name, answer.Status, answer.Body)
		}
	}
}

func TestANodeJoinsWithAClientSecret(t *testing.T) {
	tailnet := startTailnet(t, Config{})
	for secret, ephemeral := range map[string]bool{
		readyClient(tailnet).Secret + "?baseURL=" + tailnet.Ready().APIURL:                                    true,
		readyClient(tailnet).Secret + "?ephemeral=false&preauthorized=true&baseURL=" + tailnet.Ready().APIURL: false,
	} {
		server := newNode(t, tailnet, fmt.Sprintf("client-%t", ephemeral))
		server.AuthKey, server.ClientSecret, server.AdvertiseTags = "", secret, []string{"tag:web"}
		up(t, tailnet, server)
		node := listedNode(t, tailnet, server.Hostname)
		if node.Ephemeral != ephemeral || !slices.Equal(node.Tags, []string{"tag:web"}) {
			t.Errorf("joined as %+v", node)
		}
	}
	server := newNode(t, tailnet, "wrong")
	server.AuthKey, server.ClientSecret, server.AdvertiseTags = "", "tskey-client-wrong?baseURL="+tailnet.Ready().APIURL, []string{"tag:web"}
	t.Cleanup(func() { server.Close() })
	if err := server.Start(); err == nil || !strings.Contains(err.Error(), "API token invalid") {
		t.Errorf("with a wrong secret: %v", err)
	}
}

func TestAServiceIsListedUnderAnAddressThatItKeeps(t *testing.T) {
	tailnet := startTailnet(t, Config{})
	client := newOAuthClient(t, tailnet, map[string]any{"scopes": []string{"services"}})
	token := tokenFor(t, tailnet, client)
	put := func(body string) int {
		return askAPI(t, tailnet, token, "PUT", "/api/v2/tailnet/-/vip-services/svc:shop", body).Status
	}
	list := func() []apiService {
		var listed struct {
			VIPServices []apiService `json:"vipServices"`
		}
		askAPI(t, tailnet, token, "GET", "/api/v2/tailnet/-/vip-services", "").decode(t, &listed)
		return listed.VIPServices
	}
	if status := put(`{"name":"svc:shop","ports":["tcp:443"],"tags":["tag:shop"]}`); status != 200 {
		t.Fatalf("status %d", status)
	}
	if status := put(`{"name":"svc:shop","ports":["tcp:80"]}`); status != 200 {
		t.Fatalf("status %d", status)
	}
	want := []apiService{{Name: "svc:shop", Addrs: []string{"100.100.0.1"}, Ports: []string{"tcp:80"}}}
	if listed := list(); !reflect.DeepEqual(listed, want) {
		t.Errorf("listed %+v", listed)
	}
	if status := put(`{"name":"svc:other"}`); status != 400 {
		t.Errorf("another name: status %d", status)
	}
	askAPI(t, tailnet, token, "DELETE", "/api/v2/tailnet/-/vip-services/svc:shop", "")
	if listed := list(); len(listed) != 0 {
		t.Errorf("left %+v", listed)
	}
}
