package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/tstest/integration/testcontrol"
)

// keepAlive is below the two minutes after which a node gives up on a silent
// stream.
const keepAlive = 45 * time.Second

// serveMap answers a node's map request in testcontrol's place.
func (r *registry) serveMap(ctx context.Context, w testcontrol.MapStreamWriter, request *tailcfg.MapRequest) {
	if !request.Stream {
		// An update that its node has given up may be older than one that
		// has already been taken.
		if !request.ReadOnly && ctx.Err() == nil {
			r.update(request)
		}
		w.SendMapMessage(&tailcfg.MapResponse{})
		return
	}
	r.mu.Lock()
	n := r.byKey[request.NodeKey]
	r.mu.Unlock()
	if n == nil {
		return
	}
	superseded := r.openStream(n)
	defer r.closeStream(n, superseded)
	r.streamMaps(ctx, w, n, superseded)
}

// streamMaps sends the node's network map, and again whenever it has changed.
func (r *registry) streamMaps(ctx context.Context, w testcontrol.MapStreamWriter, n *node, superseded <-chan struct{}) {
	ticker := time.NewTicker(keepAlive)
	defer ticker.Stop()
	var last []byte
	var peers []tailcfg.NodeID
	for {
		r.mu.Lock()
		changed := r.changed
		response := r.mapLocked(n, peers)
		r.mu.Unlock()
		encoded, err := json.Marshal(response)
		if err != nil {
			r.config.Logf("control: map of %s: %v", n.name, err)
			return
		}
		if !bytes.Equal(encoded, last) {
			last = encoded
			peers = peers[:0]
			for _, peer := range response.Peers {
				peers = append(peers, peer.ID)
			}
			// The node judges key expiry by this clock.
			now := time.Now()
			response.ControlTime = &now
			if err := w.SendMapMessage(response); err != nil {
				return
			}
		}
		select {
		case <-changed:
		case <-superseded:
			return
		case <-ctx.Done():
			return
		case <-r.ctx.Done():
			return
		case <-ticker.C:
			if err := w.SendMapMessage(&tailcfg.MapResponse{KeepAlive: true}); err != nil {
				return
			}
		}
	}
}

// mapLocked is the whole network map of one node. formerPeers are those it was
// sent last.
func (r *registry) mapLocked(n *node, formerPeers []tailcfg.NodeID) *tailcfg.MapResponse {
	self := r.nodeLocked(n)
	self.Online = nil
	self.CapMap = tailcfg.NodeCapMap{
		tailcfg.NodeAttrDisableUPnP: {},
		tailcfg.NodeAttrFunnel:      {},
	}
	response := &tailcfg.MapResponse{
		Node:          self,
		DERPMap:       r.derpMap,
		Domain:        r.config.Domain,
		PacketFilters: map[string][]tailcfg.FilterRule{"*": nil, "base": r.packetFilterLocked(n)},
		DNSConfig: &tailcfg.DNSConfig{
			Proxied: !r.noMagicDNS,
			Domains: []string{r.config.Domain},
		},
	}
	if !r.noHTTPS && !r.noMagicDNS {
		self.CapMap[tailcfg.CapabilityHTTPS] = []tailcfg.RawMessage{}
		response.DNSConfig.CertDomains = []string{n.name + "." + r.config.Domain}
	}
	profiles := []tailcfg.UserProfile{r.profileLocked(n)}
	if !n.deleted && !n.unapproved {
		for _, peer := range r.liveLocked() {
			if peer == n || peer.unapproved {
				continue
			}
			response.Peers = append(response.Peers, r.nodeLocked(peer))
			profile := r.profileLocked(peer)
			if !slices.ContainsFunc(profiles, func(p tailcfg.UserProfile) bool { return p.ID == profile.ID }) {
				profiles = append(profiles, profile)
			}
		}
	}
	response.UserProfiles = profiles
	if len(response.Peers) == 0 {
		// An empty list of peers means that nothing changed.
		response.PeersRemoved = slices.Clone(formerPeers)
	}
	return response
}

// nodeLocked is how a node shows in the maps of others.
func (r *registry) nodeLocked(n *node) *tailcfg.Node {
	online := n.online()
	shown := &tailcfg.Node{
		ID:                n.id,
		StableID:          n.stableID,
		Name:              n.name + "." + r.config.Domain + ".",
		User:              r.profileLocked(n).ID,
		Key:               n.key,
		KeyExpiry:         n.keyExpiry,
		Machine:           n.machine,
		DiscoKey:          n.disco,
		Addresses:         n.addresses,
		AllowedIPs:        n.addresses,
		Endpoints:         n.endpoints,
		HomeDERP:          n.homeDERP,
		Cap:               n.version,
		Created:           n.created,
		Tags:              n.tags,
		Online:            &online,
		MachineAuthorized: !n.unapproved,
		Expired:           n.expired(),
	}
	if n.hostinfo != nil {
		shown.Hostinfo = n.hostinfo.View()
	}
	if !online && !n.lastSeen.IsZero() {
		seen := n.lastSeen.Truncate(time.Second)
		shown.LastSeen = &seen
	}
	return shown
}

// packetFilterLocked is what may reach one node, and the capabilities that its
// peers have there.
func (r *registry) packetFilterLocked(n *node) []tailcfg.FilterRule {
	filter := []tailcfg.FilterRule{}
	for _, rule := range r.filter {
		if len(r.matchLocked(rule.Destinations, n)) == 0 {
			continue
		}
		sources := r.matchLocked(rule.Sources, nil)
		if len(sources) == 0 {
			continue
		}
		compiled := tailcfg.FilterRule{SrcIPs: sources}
		for _, ports := range rule.Ports {
			portRange, err := parsePorts(ports)
			if err != nil {
				continue // refused when the rule was set
			}
			for _, prefix := range n.addresses {
				compiled.DstPorts = append(compiled.DstPorts, tailcfg.NetPortRange{IP: prefix.Addr().String(), Ports: portRange})
			}
		}
		filter = append(filter, compiled)
	}
	for _, granted := range r.grants {
		if len(r.matchLocked([]string{granted.Destination}, n)) == 0 {
			continue
		}
		sources := r.matchLocked([]string{granted.Source}, nil)
		if len(sources) == 0 {
			continue
		}
		filter = append(filter, tailcfg.FilterRule{
			SrcIPs:   sources,
			CapGrant: []tailcfg.CapGrant{{Dsts: slices.Clone(n.addresses), CapMap: tailcfg.PeerCapMap(granted.Capabilities)}},
		})
	}
	return filter
}

// matchLocked lists the addresses of the nodes that the selectors name: "*", a
// node's name, a login or a tag. With only set, no other node counts.
func (r *registry) matchLocked(selectors []string, only *node) []string {
	var addresses []string
	for _, selector := range selectors {
		if selector == "*" && only == nil {
			return []string{"*"}
		}
		for _, n := range r.liveLocked() {
			if only != nil && n != only {
				continue
			}
			if selector == "*" || selector == n.name || slices.Contains(n.tags, selector) || (len(n.tags) == 0 && selector == n.login) {
				addresses = append(addresses, addressStrings(n.addresses)...)
			}
		}
	}
	return addresses
}

func addressStrings(prefixes []netip.Prefix) []string {
	var addresses []string
	for _, prefix := range prefixes {
		addresses = append(addresses, prefix.Addr().String())
	}
	return addresses
}

// parsePorts reads "*", "443" or "8000-8010".
func parsePorts(text string) (tailcfg.PortRange, error) {
	if text == "*" {
		return tailcfg.PortRangeAny, nil
	}
	first, last, ranged := strings.Cut(text, "-")
	if !ranged {
		last = first
	}
	low, err := strconv.ParseUint(first, 10, 16)
	if err != nil {
		return tailcfg.PortRange{}, fmt.Errorf("port %q: want *, a port or first-last", text)
	}
	high, err := strconv.ParseUint(last, 10, 16)
	if err != nil || high < low {
		return tailcfg.PortRange{}, fmt.Errorf("port %q: want *, a port or first-last", text)
	}
	return tailcfg.PortRange{First: uint16(low), Last: uint16(high)}, nil
}
