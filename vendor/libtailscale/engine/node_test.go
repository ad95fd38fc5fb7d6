package engine

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tailway/libtailscale/engine/relay"
	"golang.org/x/sys/unix"
	"tailscale.com/ipn"
)

func contextWithTimeout(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}

func TestManyIdleConnectionsHoldNoBuffersAndEndWithTheNode(t *testing.T) {
	client, server := up(t, "client"), up(t, "server")
	conns := accepting(t, server)
	filesBefore, before := openFiles(t), Connections()

	const count = 500
	to := netip.AddrPortFrom(addressOf(t, server), 80).String()
	await(t, "the client knows the server", func() bool { return client.knows(to) })
	for range count {
		ours, theirs := dialed(t, client, server, conns)
		exchange(t, opened(t, ours), opened(t, theirs))
	}
	if open := Connections() - before; open != 2*count {
		t.Errorf("%d connections are open, want %d", open, 2*count)
	}
	await(t, "no buffer is taken", func() bool { return relay.PooledBytes() == 0 })

	closed := make(chan error, 1)
	go func() { closed <- server.Close(patience) }()
	select {
	case err := <-closed:
		check(t, err)
	case <-time.After(patience):
		t.Fatal("closing a node with open connections takes for ever")
	}
	// The peer was told of each: resets went out before the engine ended.
	await(t, "the client saw its connections end", func() bool { return Connections() == before })
	check(t, client.Close(patience))
	if files := openFiles(t); files > filesBefore+2*count {
		t.Errorf("%d files are open, more than the test's own", files)
	}
}

func TestTheListenerIsToldOfItsEndOnce(t *testing.T) {
	server := startNode(t, nil)
	ends := make(chan struct{}, 10)
	listen := func() error {
		return server.Listen(
			func(_, _ netip.AddrPort) bool { return true },
			func(*Conn) {},
			func() { ends <- struct{}{} })
	}
	check(t, listen())
	if err := listen(); err == nil {
		t.Error("a node took two listeners")
	}
	server.Unlisten()
	server.Unlisten()
	check(t, listen())
	check(t, server.Close(patience))
	if err := listen(); !errors.Is(err, ErrClosed) {
		t.Errorf("listening on a closed node says %v", err)
	}
	if len(ends) != 2 {
		t.Errorf("told %d times of the end of 2 listeners", len(ends))
	}
}

func TestAWrongKeyFailsAtOnce(t *testing.T) {
	node := startNode(t, func(o *Options) { o.AuthKey = "tskey-auth-wrong" })
	_, err := node.Up(withPatience(t))
	if err == nil || !strings.Contains(err.Error(), "key") || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("up says %v, want a refused key", err)
	}
}

func TestWithoutAKeyItWaitsAndTellsTheLogin(t *testing.T) {
	node := startNode(t, func(o *Options) { o.AuthKey = "" })
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := node.Up(ctx)
		ended <- err
	}()
	urls := make(chan string, 1)
	go node.Watch(ctx, func(text string) {
		var s status
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			t.Error(err)
		}
		if s.State == "NeedsLogin" && s.AuthURL != "" {
			select {
			case urls <- s.AuthURL:
			default:
			}
		}
	})
	select {
	case url := <-urls:
		if !strings.HasPrefix(url, "http://127.0.0.1:") {
			t.Errorf("the login is at %q", url)
		}
	case err := <-ended:
		t.Fatalf("up ended with %v", err)
	case <-time.After(patience):
		t.Fatal("no login was told")
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled up says %v", err)
	}
}

func TestAControlServerThatIsAwayIsSaid(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	gone := listener.Addr().String()
	check(t, listener.Close())
	node := startNode(t, func(o *Options) { o.ControlURL = "http://" + gone })
	await(t, "the status tells", func() bool {
		var s status
		check(t, json.Unmarshal([]byte(node.Status()), &s))
		return strings.Contains(s.ControlError, gone) && !s.LoginRefused
	})
}

func TestUpEndsWithItsNode(t *testing.T) {
	node := startNode(t, func(o *Options) { o.AuthKey = "" })
	ended := make(chan error, 1)
	go func() {
		_, err := node.Up(context.Background())
		ended <- err
	}()
	check(t, node.Close(patience))
	select {
	case err := <-ended:
		if !errors.Is(err, ErrClosed) {
			t.Errorf("up says %v, want %v", err, ErrClosed)
		}
	case <-time.After(patience):
		t.Fatal("up outlived its node")
	}
}

func TestUpEndsWithItsTimeout(t *testing.T) {
	node := startNode(t, func(o *Options) { o.AuthKey = "" })
	ctx, cancel := contextWithTimeout(50 * time.Millisecond)
	defer cancel()
	if _, err := node.Up(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("up says %v, want a timeout", err)
	}
}

func TestTheStatusTellsWhoTheNodeIs(t *testing.T) {
	node := startNode(t, func(o *Options) { o.Hostname = "status"; o.Tags = []string{"tag:gateway"} })
	text, err := node.Up(withPatience(t))
	check(t, err)
	var s status
	check(t, json.Unmarshal([]byte(text), &s))
	if s.State != "Running" || s.Hostname != "status" || s.AuthURL != "" || s.ControlError != "" {
		t.Errorf("the status is %s", text)
	}
	if s.Domain != tailnet.Domain || !strings.HasPrefix(s.DNSName, "status") || !strings.HasSuffix(s.DNSName, "."+tailnet.Domain) {
		t.Errorf("the names are %q and %q", s.DNSName, s.Domain)
	}
	if len(s.IPs) != 2 || !netip.MustParseAddr(s.IPs[0]).Is4() || !netip.MustParseAddr(s.IPs[1]).Is6() {
		t.Errorf("the addresses are %v", s.IPs)
	}
	if s.MagicDNSOff || len(s.CertDomains) != 1 || s.CertDomains[0] != s.DNSName {
		t.Errorf("MagicDNS off is %v, the certificate domains are %v", s.MagicDNSOff, s.CertDomains)
	}
	if len(s.Tags) != 1 || s.Tags[0] != "tag:gateway" || s.User != "" || s.NodeID == "" {
		t.Errorf("tags %v, user %q, node %q", s.Tags, s.User, s.NodeID)
	}
}

func TestWhoisKnowsUsersAndTags(t *testing.T) {
	asking := up(t, "asking")
	tagged := startNode(t, func(o *Options) { o.Hostname = "tagged"; o.Tags = []string{"tag:web", "tag:db"} })
	_, err := tagged.Up(withPatience(t))
	check(t, err)
	for _, test := range []struct {
		node  *Node
		login bool
		tags  string
	}{{asking, true, ""}, {tagged, false, "tag:db,tag:web"}} {
		address := addressOf(t, test.node).String()
		await(t, "the network map has it", func() bool {
			_, err := asking.WhoIs(address)
			return err == nil
		})
		text, err := asking.WhoIs(address + ":1234")
		check(t, err)
		var id identity
		check(t, json.Unmarshal([]byte(text), &id))
		if id.Node != test.node.status.current().DNSName || id.NodeID != test.node.status.current().NodeID {
			t.Errorf("%s is %q %q", address, id.Node, id.NodeID)
		}
		if (id.Login != "") != test.login || (id.DisplayName != "") != test.login {
			t.Errorf("%s has the login %q, name %q", address, id.Login, id.DisplayName)
		}
		if sorted := sortedTags(id.Tags); sorted != test.tags {
			t.Errorf("%s has the tags %q, want %q", address, sorted, test.tags)
		}
	}
	for _, address := range []string{"100.127.255.254", "1.1.1.1:80", "nonsense", ""} {
		if text, err := asking.WhoIs(address); err == nil {
			t.Errorf("%q is %s", address, text)
		}
	}
}

func sortedTags(tags []string) string {
	tags = append([]string(nil), tags...)
	for i := range tags {
		for j := range tags[:i] {
			if tags[i] < tags[j] {
				tags[i], tags[j] = tags[j], tags[i]
			}
		}
	}
	return strings.Join(tags, ",")
}

func TestAcceptedConnectionsSayWhoThePeerIs(t *testing.T) {
	client, server := up(t, "client"), up(t, "server")
	conns := accepting(t, server)
	_, first := dialed(t, client, server, conns)
	node, epoch := first.Peer()
	if node == 0 || epoch == 0 {
		t.Errorf("the peer is %d in epoch %d", node, epoch)
	}
	// A tag changes who the client is: the same node comes with another epoch.
	ask(t, "POST", "/nodes/"+strings.Split(client.status.current().DNSName, ".")[0]+"/tags", map[string]any{"tags": []string{"tag:new"}})
	await(t, "whois changed", func() bool {
		text, err := server.WhoIs(first.Source().String())
		return err == nil && strings.Contains(text, "tag:new")
	})
	await(t, "the epoch changed", func() bool {
		_, next := dialed(t, client, server, conns)
		defer next.Release()
		sameNode, later := next.Peer()
		return sameNode == node && later != epoch
	})
}

func TestDatagramsKeepTheirBoundariesAndSource(t *testing.T) {
	a, b := up(t, "a"), up(t, "b")
	left, leftPort, err := a.ListenPacket(netip.AddrPortFrom(addressOf(t, a), 0).String())
	check(t, err)
	defer unix.Close(left)
	right, rightPort, err := b.ListenPacket(netip.AddrPortFrom(addressOf(t, b), 5353).String())
	check(t, err)
	defer unix.Close(right)
	if leftPort == 0 || rightPort != 5353 {
		t.Fatalf("bound to %d and %d", leftPort, rightPort)
	}
	await(t, "they know each other", func() bool {
		return a.knows(netip.AddrPortFrom(addressOf(t, b), 1).String()) && b.knows(netip.AddrPortFrom(addressOf(t, a), 1).String())
	})
	to, from := netip.AddrPortFrom(addressOf(t, b), rightPort), netip.AddrPortFrom(addressOf(t, a), leftPort)
	// The first ones may be lost while the path is found.
	for _, size := range []int{1, 0, 1000, 9000} {
		payload := make([]byte, size)
		for i := range payload {
			payload[i] = byte(i)
		}
		message := make([]byte, packetHeader+size)
		putHeader(message, to)
		copy(message[packetHeader:], payload)
		got := make([]byte, packetHeader+PacketMax)
		var n int
		await(t, "the datagram arrived", func() bool {
			if err := unix.Send(left, message, 0); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Millisecond)
			n, _, err = unix.Recvfrom(right, got, 0)
			return err == nil && n == len(message)
		})
		source, ok := header(got[:n])
		if !ok || source != from || string(got[packetHeader:n]) != string(payload) {
			t.Errorf("%d bytes from %v, want %d from %v", n-packetHeader, source, size, from)
		}
		for { // repeats of it
			if _, _, err := unix.Recvfrom(right, got, 0); err != nil {
				break
			}
		}
	}
	for _, address := range []string{"127.0.0.1:0", "100.127.255.254:0", "0.0.0.0:0", "nonsense", ""} {
		if fd, _, err := a.ListenPacket(address); err == nil {
			unix.Close(fd)
			t.Errorf("bound %q", address)
		}
	}
}

func TestAPacketSocketEndsWithItsNode(t *testing.T) {
	node := up(t, "packets")
	fd, _, err := node.ListenPacket(netip.AddrPortFrom(addressOf(t, node), 0).String())
	check(t, err)
	defer unix.Close(fd)
	check(t, node.Close(patience))
	await(t, "the socket ended", func() bool {
		n, _, err := unix.Recvfrom(fd, make([]byte, 100), 0)
		return n == 0 && err == nil
	})
}

func TestAStateDirectoryIsPrivateAndServesOneNode(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	node := startNode(t, func(o *Options) { o.Memory = false; o.Dir = dir })
	info, err := os.Stat(dir)
	check(t, err)
	if info.Mode().Perm() != 0o700 {
		t.Errorf("the directory has mode %o", info.Mode().Perm())
	}
	_, err = Start(Options{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), "in use by another process or node") {
		t.Errorf("a second node says %v", err)
	}
	check(t, node.Close(patience))
	again := startNode(t, func(o *Options) { o.Memory = false; o.Dir = dir })
	check(t, again.Close(patience))
}

func TestAStateDirectoryThatCannotBeMadeIsSaid(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	check(t, os.WriteFile(file, nil, 0o600))
	_, err := Start(Options{Dir: filepath.Join(file, "state")})
	if err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("starting says %v", err)
	}
}

func TestANodeIsTheSameAfterARestart(t *testing.T) {
	dir := t.TempDir()
	names := [2]status{}
	for i := range names {
		node := startNode(t, func(o *Options) {
			o.Memory, o.Dir = false, dir
			if i > 0 {
				o.AuthKey = ""
			}
		})
		text, err := node.Up(withPatience(t))
		check(t, err)
		check(t, json.Unmarshal([]byte(text), &names[i]))
		check(t, node.Close(patience))
	}
	if names[0].NodeID != names[1].NodeID || names[0].DNSName != names[1].DNSName {
		t.Errorf("the node was %v and is %v", names[0].NodeID, names[1].NodeID)
	}
}

func TestAClientSecretLetsTheNodeInOnceAndAsTheOptionsSay(t *testing.T) {
	// The engine reads this, where it is given no secret.
	t.Setenv("TS_CLIENT_SECRET", tailnet.Secret+"?baseURL="+tailnet.APIURL)
	for name, scene := range map[string]struct {
		ephemeral, want bool
		attributes      string
	}{
		"client-kept":      {ephemeral: false, want: false},
		"client-ephemeral": {ephemeral: true, want: true},
		"client-by-secret": {ephemeral: false, want: true, attributes: "&ephemeral=true"},
	} {
		dir := t.TempDir()
		minted := func() (keys int) {
			var calls []struct{ Method, Path string }
			askFor(t, "GET", "/api/calls", nil, &calls)
			for _, call := range calls {
				if call.Method == "POST" && strings.HasSuffix(call.Path, "/keys") {
					keys++
				}
			}
			return keys
		}
		before := minted()
		for range 2 {
			node := startNode(t, func(o *Options) {
				o.Hostname, o.Memory, o.Dir, o.Ephemeral = name, false, dir, scene.ephemeral
				o.AuthKey, o.ClientSecret, o.Tags = "", tailnet.Secret+"?baseURL="+tailnet.APIURL+scene.attributes, []string{"tag:web"}
			})
			_, err := node.Up(withPatience(t))
			check(t, err)
			var shown struct {
				Tags      []string
				Ephemeral bool
			}
			askFor(t, "GET", "/nodes/"+name, nil, &shown)
			if !slices.Equal(shown.Tags, []string{"tag:web"}) || shown.Ephemeral != scene.want {
				t.Errorf("%s joined as %+v", name, shown)
			}
			check(t, node.Close(patience))
			if scene.want {
				break // gone with its end
			}
		}
		if keys := minted() - before; keys != 1 {
			t.Errorf("%s: %d keys were minted, want 1", name, keys)
		}
	}
}

func TestAClientSecretThatCannotBeUsedIsSaid(t *testing.T) {
	for secret, want := range map[string]string{
		"some-secret": "tskey-client-",
		"tskey-client-wrong?baseURL=" + tailnet.APIURL:      "API token invalid",
		"tskey-client-wrong?color=red":                      "color",
		tailnet.Secret + "?baseURL=http://127.0.0.1:1":      "connection refused",
		tailnet.Secret + "?baseURL=" + tailnet.APIURL + "%": "invalid URL escape",
	} {
		_, err := Start(Options{Memory: true, ControlURL: tailnet.ControlURL, ClientSecret: secret, Tags: []string{"tag:web"}})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), secret) {
			t.Errorf("starting says %v, want %q", err, want)
		}
	}
}

// mapStore is a store of the caller.
type mapStore struct {
	mu     sync.Mutex
	values map[ipn.StateKey]string
	fail   error // of writes
}

func (s *mapStore) ReadState(key ipn.StateKey) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if value, ok := s.values[key]; ok {
		return []byte(value), nil
	}
	return nil, ipn.ErrStateNotExist
}

func (s *mapStore) WriteState(key ipn.StateKey, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	s.values[key] = string(value)
	return nil
}

func TestACertificateAndItsAccountGoThroughTheStore(t *testing.T) {
	store := &mapStore{values: map[ipn.StateKey]string{}}
	start := func() *Node {
		node := startNode(t, func(o *Options) { o.Hostname = "stored"; o.Memory, o.Store = false, store })
		_, err := node.Up(withPatience(t))
		check(t, err)
		return node
	}
	node := start()
	domain := node.status.current().CertDomains[0]
	pair, err := node.CertPair(withPatience(t), domain, 0)
	check(t, err)
	if !strings.HasPrefix(pair, "-----BEGIN EC PRIVATE KEY-----") || !strings.Contains(pair, "-----BEGIN CERTIFICATE-----") {
		t.Errorf("the pair is %q", pair)
	}
	for _, key := range []string{domain + ".key", domain + ".crt", "acme-account.key.pem"} {
		if store.values[ipn.StateKey(key)] == "" {
			t.Errorf("the store has no %s", key)
		}
	}
	if pair != store.values[ipn.StateKey(domain+".key")]+store.values[ipn.StateKey(domain+".crt")] {
		t.Error("the store has another certificate than was given out")
	}
	check(t, node.Close(patience))
	// Another start has no file of the first: the same certificate is the store's.
	again := start()
	same, err := again.CertPair(withPatience(t), domain, 0)
	check(t, err)
	if same != pair {
		t.Error("a restart issued a certificate")
	}
}

func TestARateLimitIsToldWithItsTime(t *testing.T) {
	node := up(t, "limited")
	ask(t, "POST", "/acme/rate-limit", map[string]any{"retry_after": 7200, "count": 1})
	_, err := node.CertPair(withPatience(t), node.status.current().CertDomains[0], 0)
	var text struct {
		Error      string `json:"error"`
		RetryAfter int    `json:"retry_after_s"`
	}
	if err == nil || json.Unmarshal([]byte(err.Error()), &text) != nil {
		t.Fatalf("the error is %v, want JSON", err)
	}
	if text.Error == "" || text.RetryAfter < 7100 || text.RetryAfter > 7200 {
		t.Errorf("the error is %+v", text)
	}
}

func TestACertificateOfAForeignNameIsRefused(t *testing.T) {
	node := up(t, "foreign")
	if pair, err := node.CertPair(withPatience(t), "www.example.com", 0); err == nil {
		t.Errorf("issued %q", pair)
	}
}

func TestMetricsAreGiven(t *testing.T) {
	if text := up(t, "metered").Metrics(); !strings.Contains(text, "tailscaled_") && !strings.Contains(text, "magicsock_") {
		t.Errorf("the metrics are %q", text)
	}
}

func TestClosedNodesLeaveNothingRunning(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 3 {
		client, server := up(t, "client"), up(t, "server")
		conns := accepting(t, server)
		ours, theirs := dialed(t, client, server, conns)
		exchange(t, opened(t, ours), opened(t, theirs))
		check(t, client.Close(patience))
		check(t, server.Close(patience))
	}
	// The engine keeps a few for the process.
	await(t, "goroutines ended", func() bool { return runtime.NumGoroutine() < before+20 })
}
