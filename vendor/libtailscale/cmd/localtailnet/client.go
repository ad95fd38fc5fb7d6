package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"tailscale.com/net/tsaddr"
	"tailscale.com/tsnet"
	"tailscale.com/types/logger"
	"tailscale.com/util/dnsname"
)

// joinTimeout bounds how long a client may take to join the tailnet, and to
// hear of a peer that is there.
const joinTimeout = 30 * time.Second

// closeTimeout bounds the closing of a client: that of a tsnet node with many
// open connections can hang.
const closeTimeout = 3 * time.Second

// clients are the tailnet nodes that this process runs for its users.
type clients struct {
	tailnet *Tailnet
	mu      sync.Mutex
	byName  map[string]*client
	closed  bool
}

// client is one node of our own. Its name is that of the API; the tailnet may
// have given it another.
type client struct {
	name    string
	tailnet *Tailnet
	server  *tsnet.Server
	dir     string

	joining sync.Mutex // held by join, so that it runs once
	started bool       // server.Close crashes on a server that never started
	up      bool
	address netip.Addr
}

// clientOptions is the body of POST /client/{name}.
type clientOptions struct {
	Login     string   `json:"login"`
	Tags      []string `json:"tags"`
	Hostname  string   `json:"hostname"`
	Ephemeral bool     `json:"ephemeral"`
}

func newClients(t *Tailnet) *clients { return &clients{tailnet: t, byName: map[string]*client{}} }

func (c *clients) close() error {
	c.mu.Lock()
	c.closed = true
	all := c.byName
	c.byName = map[string]*client{}
	c.mu.Unlock()
	results := make(chan error, len(all))
	for _, one := range all {
		go func() { results <- one.close() }()
	}
	var errs []error
	for range all {
		errs = append(errs, <-results)
	}
	return errors.Join(errs...)
}

func (c *clients) list() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	names := []string{}
	for name := range c.byName {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// serveCreate joins a client, and waits until it is up. A client that is there
// already is left as it is.
func (c *clients) serveCreate(r *http.Request) (any, error) {
	var options clientOptions
	if err := readBody(r, &options); err != nil {
		return nil, err
	}
	one, err := c.obtain(r.PathValue("name"), options)
	if err != nil {
		return nil, err
	}
	if err := one.join(r.Context()); err != nil {
		return nil, err
	}
	return c.tailnet.nodeAt(one.address)
}

func (c *clients) serveDelete(r *http.Request) (any, error) {
	name := r.PathValue("name")
	c.mu.Lock()
	one := c.byName[name]
	delete(c.byName, name)
	c.mu.Unlock()
	if one == nil {
		return nil, refuse(http.StatusNotFound, "no client is named %q", name)
	}
	return map[string]string{"deleted": name}, one.close()
}

// obtain finds a client or makes it; it has not joined yet.
func (c *clients) obtain(name string, options clientOptions) (*client, error) {
	if options.Hostname == "" {
		options.Hostname = name
	}
	for _, label := range []string{name, options.Hostname} {
		if dnsname.ValidLabel(label) != nil || strings.ToLower(label) != label {
			return nil, badRequest("client %q: its name and hostname must be DNS labels in lower case", label)
		}
	}
	granted := authKey{login: options.Login, tags: options.Tags, ephemeral: options.Ephemeral, approved: true}
	if granted.login == "" {
		granted.login = c.tailnet.config.Login
	}
	if err := errors.Join(checkLogin(granted.login), checkTags(granted.tags)); err != nil {
		return nil, badRequest("%v", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, refuse(http.StatusServiceUnavailable, "the local tailnet is shutting down")
	}
	if one := c.byName[name]; one != nil {
		return one, nil
	}
	dir, err := os.MkdirTemp("", "localtailnet-client-")
	if err != nil {
		return nil, fmt.Errorf("client %q: %w", name, err)
	}
	one := &client{name: name, tailnet: c.tailnet, dir: dir, server: &tsnet.Server{
		Dir:        dir,
		Hostname:   options.Hostname,
		AuthKey:    c.tailnet.nodes.addAuthKey(granted),
		ControlURL: c.tailnet.ready.ControlURL,
		Ephemeral:  options.Ephemeral,
		Logf:       c.tailnet.config.Logf,
		UserLogf:   logger.Discard,
	}}
	c.byName[name] = one
	return one, nil
}

// joined finds or makes a client with default options, and joins it.
func (c *clients) joined(ctx context.Context, name string) (*client, error) {
	one, err := c.obtain(name, clientOptions{})
	if err != nil {
		return nil, err
	}
	return one, one.join(ctx)
}

// join brings the client up, once.
func (c *client) join(ctx context.Context) error {
	c.joining.Lock()
	defer c.joining.Unlock()
	if c.up {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	if !c.started {
		if err := c.server.Start(); err != nil {
			return fmt.Errorf("client %q cannot start: %w", c.name, err)
		}
		c.started = true
	}
	status, err := c.server.Up(ctx)
	if err != nil {
		return fmt.Errorf("client %q cannot join: %w", c.name, err)
	}
	if len(status.TailscaleIPs) == 0 {
		return fmt.Errorf("client %q has no address", c.name)
	}
	c.address = status.TailscaleIPs[0]
	// Packets to a node without a home DERP are lost before a direct path is
	// found.
	if err := c.tailnet.awaitReachable(ctx, c.address); err != nil {
		return fmt.Errorf("client %q has no home DERP: %w", c.name, err)
	}
	c.up = true
	return nil
}

func (c *client) close() error {
	c.joining.Lock()
	defer c.joining.Unlock()
	var err error
	if c.started {
		closed := make(chan error, 1)
		go func() { closed <- c.server.Close() }()
		select {
		case err = <-closed:
		case <-time.After(closeTimeout):
			err = fmt.Errorf("client %q does not close", c.name)
		}
	}
	return errors.Join(err, os.RemoveAll(c.dir))
}

// dial connects over the tailnet to a node's name, full or short, or to a
// tailnet IP; to nothing else.
func (c *client) dial(ctx context.Context, address string) (net.Conn, error) {
	target, err := c.target(ctx, address)
	if err != nil {
		return nil, err
	}
	connection, err := c.server.Dial(ctx, "tcp", target.String())
	if err != nil {
		return nil, fmt.Errorf("dial %s (%s): %w", address, target, err)
	}
	return connection, nil
}

// target resolves host:port, and waits until the client can reach it.
func (c *client) target(ctx context.Context, address string) (netip.AddrPort, error) {
	host, portText, err := net.SplitHostPort(address)
	if err != nil {
		return netip.AddrPort{}, badRequest("address %q: want host:port", address)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || port == 0 {
		return netip.AddrPort{}, badRequest("address %q: want a port from 1 to 65535", address)
	}
	target, err := c.tailnet.resolve(host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	if err := c.awaitPeer(ctx, target); err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(target, uint16(port)), nil
}

// awaitPeer waits until the client's own network map has target.
func (c *client) awaitPeer(ctx context.Context, target netip.Addr) error {
	if target == c.address {
		return nil
	}
	local, err := c.server.LocalClient()
	if err != nil {
		return fmt.Errorf("client %q: %w", c.name, err)
	}
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		status, err := local.Status(ctx)
		if err != nil {
			return fmt.Errorf("client %q: %w", c.name, err)
		}
		for _, peer := range status.Peer {
			if slices.Contains(peer.TailscaleIPs, target) {
				return nil
			}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("client %q has not heard of %s", c.name, target)
		}
	}
}

// resolve finds the tailnet address of a name, or takes a tailnet IP.
func (t *Tailnet) resolve(host string) (netip.Addr, error) {
	if address, err := netip.ParseAddr(host); err == nil {
		if !tsaddr.IsTailscaleIP(address) {
			return netip.Addr{}, badRequest("%s is no tailnet address", host)
		}
		return address, nil
	}
	name := strings.TrimSuffix(strings.ToLower(host), ".")
	name = strings.TrimSuffix(name, "."+t.config.Domain)
	t.nodes.mu.Lock()
	defer t.nodes.mu.Unlock()
	n := t.nodes.byNameLocked(name)
	if n == nil {
		return netip.Addr{}, refuse(http.StatusNotFound, "no node is named %q", host)
	}
	return n.addresses[0].Addr(), nil
}

// nodeAt is the node that has an address.
func (t *Tailnet) nodeAt(address netip.Addr) (shownNode, error) {
	t.nodes.mu.Lock()
	defer t.nodes.mu.Unlock()
	if n := t.nodes.byAddressLocked(address); n != nil {
		return t.nodes.shownLocked(n), nil
	}
	return shownNode{}, refuse(http.StatusNotFound, "no node has address %s", address)
}

func (t *Tailnet) awaitReachable(ctx context.Context, address netip.Addr) error {
	return t.nodes.await(ctx, func() bool {
		n := t.nodes.byAddressLocked(address)
		return n != nil && n.homeDERP != 0 && len(n.endpoints) > 0
	})
}

func (r *registry) byAddressLocked(address netip.Addr) *node {
	for _, n := range r.liveLocked() {
		for _, prefix := range n.addresses {
			if prefix.Addr() == address {
				return n
			}
		}
	}
	return nil
}
