package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tailway/libtailscale/engine/relay"
	"github.com/tailway/libtailscale/engine/shelter"
	"github.com/tailway/libtailscale/engine/stack"
	"tailscale.com/ipn/ipnlocal"
	"tailscale.com/ipn/store"
	"tailscale.com/net/tsaddr"
	"tailscale.com/tailcfg"
	"tailscale.com/tsnet"
	"tailscale.com/types/netmap"
)

// ErrClosed says that the node was closed.
var ErrClosed = errors.New("the node is closed")

// Node is a node of a tailnet.
type Node struct {
	options Options
	dir     *stateDir
	server  *tsnet.Server
	backend *ipnlocal.LocalBackend
	stack   stack.Stack
	status  *statusWatcher

	epoch atomic.Uint64 // of the identities; changes when they may have

	closing context.Context // done when Close begins
	cancel  context.CancelFunc

	mu        sync.Mutex
	conns     map[*Conn]struct{}
	closers   map[uint64]func() // packet sockets
	nextClose uint64
	stop      func() // ends Accept
	accepted  func() // called when no more are accepted
}

// Start starts a node and returns when its parts run, before any login.
func Start(options Options) (*Node, error) {
	if err := options.check(); err != nil {
		return nil, err
	}
	if options.Logf == nil {
		options.Logf = func(bool, string) {}
	}
	if options.ControlURL != "" {
		adaptToLoopback(options.ControlURL)
	}
	dir, err := openStateDir(options.Dir)
	if err != nil {
		return nil, err
	}
	n := &Node{
		options: options,
		dir:     dir,
		conns:   make(map[*Conn]struct{}),
		closers: make(map[uint64]func()),
	}
	n.closing, n.cancel = context.WithCancel(context.Background())
	if err := n.start(); err != nil {
		n.cancel()
		dir.close()
		return nil, err
	}
	return n, nil
}

func (n *Node) start() error {
	o := &n.options
	log := func(user bool) func(string, ...any) {
		return func(format string, args ...any) { o.Logf(user, strings.TrimRight(fmt.Sprintf(format, args...), "\n")) }
	}
	switch {
	case o.Memory:
		o.Store = &memoryStore{}
	case o.Store == nil:
		file, err := store.New(log(false), filepath.Join(n.dir.path, "tailscaled.state"))
		if err != nil {
			return fmt.Errorf("the state in %s cannot be used: %w", n.dir.path, err)
		}
		o.Store = file
	}
	secret := o.clientSecret()
	if hasIdentity(o.Store) {
		// With a secret the engine mints a key at every start, also for a node
		// that needs none, and does not start while it cannot.
		secret = ""
		forgetVariable("TS_CLIENT_SECRET")
	}
	n.server = &tsnet.Server{
		Dir: n.dir.path, Store: o.Store, Hostname: o.Hostname,
		AuthKey: o.AuthKey, ClientSecret: secret, AdvertiseTags: o.Tags,
		Ephemeral: o.Ephemeral, ControlURL: o.ControlURL, Port: o.Port,
		Logf: log(false), UserLogf: log(true),
	}
	if err := n.server.Start(); err != nil {
		return err
	}
	fail := func(err error) error {
		n.server.Close()
		return err
	}
	backend, ok := backendOf(n.server.Sys())
	if !ok {
		return fail(errors.New("the engine has no backend"))
	}
	n.backend = backend
	netstack, err := stack.NewNetstack(n.server, keepalive())
	if err != nil {
		return fail(err)
	}
	n.stack = netstack
	receive, send := o.ReceiveMax, o.SendMax
	if receive == 0 {
		receive = DefaultBuffer
	}
	if send == 0 {
		send = DefaultBuffer
	}
	if err := n.stack.SetBuffers(receive, send); err != nil {
		return fail(err)
	}
	n.status = watchStatus(n)
	return nil
}

// Up waits until the node is usable and gives its status.
func (n *Node) Up(ctx context.Context) (string, error) {
	changes, stop := n.status.subscribe()
	defer stop()
	for {
		status := n.status.current()
		switch {
		case status.usable():
			return status.json(), nil
		case status.refused != "":
			return "", errors.New(status.refused)
		}
		select {
		case <-changes:
		case <-ctx.Done():
			return "", fmt.Errorf("the node is not up: %s: %w", status.reason(), ctx.Err())
		case <-n.closing.Done():
			return "", ErrClosed
		}
	}
}

// Status is tailscale_status's document.
func (n *Node) Status() string { return n.status.refresh().json() }

// Watch calls fn with the status now and at each change until ctx ends.
func (n *Node) Watch(ctx context.Context, fn func(status string)) error {
	changes, stop := n.status.subscribe()
	defer stop()
	last := ""
	for {
		if text := n.status.current().json(); text != last {
			fn(text)
			last = text
		}
		select {
		case <-changes:
		case <-ctx.Done():
			return ctx.Err()
		case <-n.closing.Done():
			return ErrClosed
		}
	}
}

// Listen accepts connections on every port until the node is closed or Unlisten,
// when closed is called, once. closed is not called when Listen fails.
func (n *Node) Listen(decide func(src, dst netip.AddrPort) bool, accept func(*Conn), closed func()) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.closing.Err() != nil:
		return ErrClosed
	case n.stop != nil:
		return errors.New("the node has a listener already")
	}
	// calls keeps the callbacks usable until the last of them returned.
	var calls sync.RWMutex
	ended := false
	n.stop = n.stack.Accept(
		func(src, dst netip.AddrPort) (accepted bool) {
			defer shelter.Recover("the decision about a connection", nil)
			calls.RLock()
			defer calls.RUnlock()
			return !ended && decide(src, dst)
		},
		func(c stack.Conn) {
			defer shelter.Recover("an accepted connection", c.Abort)
			calls.RLock()
			defer calls.RUnlock()
			if ended {
				c.Abort()
				return
			}
			conn, err := n.track(c)
			if err != nil {
				c.Abort()
				return
			}
			accept(conn)
		})
	n.accepted = func() {
		calls.Lock()
		defer calls.Unlock()
		ended = true
		closed()
	}
	return nil
}

// Unlisten refuses further connections; open ones go on.
func (n *Node) Unlisten() {
	n.mu.Lock()
	stop, closed := n.stop, n.accepted
	n.stop, n.accepted = nil, nil
	n.mu.Unlock()
	if stop != nil {
		stop()
		closed()
	}
}

// Dial connects to "host:port" in the tailnet.
func (n *Node) Dial(ctx context.Context, address string) (*Conn, error) {
	dst, err := n.resolve(address)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.closing, cancel)()
	c, err := n.stack.Dial(ctx, dst)
	if err != nil {
		return nil, fmt.Errorf("cannot connect to %s: %w", address, err)
	}
	conn, err := n.track(c)
	if err != nil {
		c.Abort()
	}
	return conn, err
}

// resolve finds an address among those of the tailnet.
func (n *Node) resolve(address string) (netip.AddrPort, error) {
	none := netip.AddrPort{}
	host, port, ok := cutPort(address)
	if !ok {
		return none, fmt.Errorf("%q is no host:port", address)
	}
	ip, err := n.LookUp(host)
	if err != nil {
		return none, err
	}
	return netip.AddrPortFrom(ip, port), nil
}

// LookUp finds the address of a node by name or IP address, or of a Service
// also as "svc:" and its name. It is somebody's in the tailnet.
func (n *Node) LookUp(host string) (netip.Addr, error) {
	none := netip.Addr{}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		nm := n.backend.NetMapWithPeers()
		if nm == nil {
			return none, errors.New("the node has no network map yet")
		}
		var ok bool
		if ip, ok = lookUp(nm, strings.TrimSuffix(host, ".")); !ok {
			return none, fmt.Errorf("the tailnet has no %s", host)
		}
	}
	ip = ip.Unmap()
	if _, _, ok := n.backend.WhoIs("tcp", netip.AddrPortFrom(ip, 0)); ok {
		return ip, nil
	}
	if _, ok := n.backend.PeerForIP(ip); ok && tsaddr.IsTailscaleIP(ip) {
		return ip, nil // of a Service
	}
	return none, fmt.Errorf("nobody in the tailnet has the address %v", ip)
}

func cutPort(address string) (host string, port uint16, ok bool) {
	if ap, err := netip.ParseAddrPort(address); err == nil {
		return ap.Addr().String(), ap.Port(), true
	}
	i := strings.LastIndexByte(address, ':')
	if i <= 0 {
		return "", 0, false
	}
	ap, err := netip.ParseAddrPort("0.0.0.0" + address[i:])
	return strings.TrimSuffix(address[:i], "."), ap.Port(), err == nil
}

// lookUp finds a node by its full name or, in the node's own tailnet, by its
// first label: nodes that others shared have names of other tailnets. A Service
// is a record of the tailnet's DNS; "svc:" leaves out nodes of the same name.
func lookUp(nm *netmap.NetworkMap, host string) (netip.Addr, bool) {
	host, service := strings.CutPrefix(host, "svc:")
	full := host
	if suffix := nm.MagicDNSSuffix(); !strings.Contains(host, ".") && suffix != "" {
		full = host + "." + suffix
	}
	address := func(node tailcfg.NodeView) (netip.Addr, bool) {
		if !node.Valid() || node.Addresses().Len() == 0 || !strings.EqualFold(strings.TrimSuffix(node.Name(), "."), full) {
			return netip.Addr{}, false
		}
		return node.Addresses().At(0).Addr(), true
	}
	if !service {
		if ip, ok := address(nm.SelfNode); ok {
			return ip, true
		}
		for _, peer := range nm.Peers {
			if ip, ok := address(peer); ok {
				return ip, true
			}
		}
	}
	for _, record := range nm.DNS.ExtraRecords {
		if strings.EqualFold(strings.TrimSuffix(record.Name, "."), full) {
			if ip, err := netip.ParseAddr(record.Value); err == nil {
				return ip, true
			}
		}
	}
	return netip.Addr{}, false
}

// identity is tailscale_whois's document.
type identity struct {
	Node          string                       `json:"node"`
	NodeID        string                       `json:"node_id"`
	Login         string                       `json:"login"`
	DisplayName   string                       `json:"display_name"`
	ProfilePicURL string                       `json:"profile_pic_url"`
	Tags          []string                     `json:"tags"`
	Capabilities  map[string][]json.RawMessage `json:"capabilities"`
}

// WhoIs says who has an address "ip" or "ip:port".
func (n *Node) WhoIs(address string) (string, error) {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		ip, err := netip.ParseAddr(address)
		if err != nil {
			return "", fmt.Errorf("%q is neither an IP address nor ip:port", address)
		}
		ap = netip.AddrPortFrom(ip, 0)
	}
	node, user, ok := n.backend.WhoIs("tcp", ap)
	if !ok {
		return "", fmt.Errorf("nobody in the tailnet has the address %v", ap.Addr())
	}
	id := identity{
		Node:         strings.TrimSuffix(node.Name(), "."),
		NodeID:       string(node.StableID()),
		Tags:         node.Tags().AsSlice(),
		Capabilities: make(map[string][]json.RawMessage),
	}
	if id.Tags == nil {
		id.Tags = []string{}
	}
	if !node.IsTagged() {
		id.Login, id.DisplayName, id.ProfilePicURL = user.LoginName, user.DisplayName, user.ProfilePicURL
	}
	for name, values := range n.backend.PeerCaps(ap.Addr().Unmap()) {
		raw := make([]json.RawMessage, 0, len(values))
		for _, value := range values {
			raw = append(raw, json.RawMessage(value))
		}
		id.Capabilities[string(name)] = raw
	}
	text, err := json.Marshal(id)
	return string(text), err
}

// track makes a Conn of this node, with its peer looked up.
func (n *Node) track(c stack.Conn) (*Conn, error) {
	conn := &Conn{node: n, peer: c, epoch: n.epoch.Load()}
	if node, _, ok := n.backend.WhoIs("tcp", c.Source()); ok {
		conn.peerNode = uint64(node.ID())
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closing.Err() != nil {
		return nil, ErrClosed
	}
	n.conns[conn] = struct{}{}
	connections.Add(1)
	return conn, nil
}

func (n *Node) forget(c *Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, ok := n.conns[c]; ok {
		delete(n.conns, c)
		connections.Add(-1)
	}
}

// settleGrace is how long Close waits for connections that were closed before.
const settleGrace = 2 * time.Second

// Close ends listeners, connections and packet sockets, then the engine.
func (n *Node) Close(timeout time.Duration) error {
	n.mu.Lock()
	if n.closing.Err() != nil {
		n.mu.Unlock()
		return ErrClosed
	}
	n.cancel()
	conns := make([]*Conn, 0, len(n.conns))
	for c := range n.conns {
		conns = append(conns, c)
	}
	closers := n.closers
	n.closers = nil
	n.mu.Unlock()
	deadline := time.Now().Add(timeout)

	n.Unlisten()
	for _, c := range closers {
		c()
	}
	for _, c := range conns {
		c.stop(relay.Closed)
	}
	n.stack.Settle(len(conns), min(timeout/4, settleGrace))
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer shelter.Recover("the end of the engine", nil)
		n.server.Close()
	}()
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case <-done:
		n.dir.close()
		return nil
	case <-timer.C:
		return fmt.Errorf("the engine did not end within %v", timeout)
	}
}
