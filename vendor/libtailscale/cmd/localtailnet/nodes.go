package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"tailscale.com/tailcfg"
	"tailscale.com/tstest/integration/testcontrol"
	"tailscale.com/types/key"
	"tailscale.com/util/dnsname"
)

// taggedLogin is the login name that tagged nodes have in place of a user's.
const taggedLogin = "tagged-devices"

// node is one device of the tailnet. Its fields are guarded by registry.mu.
type node struct {
	id        tailcfg.NodeID
	stableID  tailcfg.StableNodeID
	key       key.NodePublic
	machine   key.MachinePublic
	addresses []netip.Prefix
	created   time.Time
	version   tailcfg.CapabilityVersion

	name      string // unique DNS label
	renamed   bool   // by the admin, so that the hostname no longer decides
	login     string
	tags      []string
	ephemeral bool
	keyExpiry time.Time // zero: never
	deleted   bool

	// unapproved nodes see no peers and are seen by none.
	unapproved bool

	// Testcontrol drops what a node sends when AltMapStream is set, so these
	// are kept here.
	hostinfo  *tailcfg.Hostinfo
	endpoints []netip.AddrPort
	disco     key.DiscoPublic
	homeDERP  int

	streams       int
	superseded    chan struct{} // closed when a newer stream takes over; nil: none open
	lastSeen      time.Time
	registrations int
	polls         int // streams opened
	updates       int // updates without a stream
}

func (n *node) expired() bool {
	return !n.keyExpiry.IsZero() && !n.keyExpiry.After(time.Now())
}

func (n *node) online() bool { return n.streams > 0 }

// user is the person, or the group of tagged nodes, that owns nodes.
type user struct {
	id         tailcfg.UserID
	display    string
	pictureURL string
}

// grant gives application capabilities to a source at a destination; "*"
// stands for every node.
type grant struct {
	Source       string                                  `json:"src"`
	Destination  string                                  `json:"dst"`
	Capabilities map[tailcfg.PeerCapability][]rawMessage `json:"capabilities"`
}

type rawMessage = tailcfg.RawMessage

// filterRule allows traffic; "*" stands for every node or every port.
type filterRule struct {
	Sources      []string `json:"src"`
	Destinations []string `json:"dst"`
	Ports        []string `json:"ports"`
}

// registry holds the nodes of the tailnet and tells each about the others.
//
// testcontrol assigns ids and addresses; all else about a node is decided here
// and laid over it by way of testcontrol's AltMapStream hook.
type registry struct {
	config  Config
	base    *testcontrol.Server
	derpMap *tailcfg.DERPMap
	ctx     context.Context
	stop    context.CancelFunc

	mu       sync.Mutex
	nodes    map[tailcfg.NodeID]*node
	byKey    map[key.NodePublic]*node // also keys that were rotated away
	users    map[string]*user         // by login name
	authKeys map[string]authKey
	logins   map[string]*pendingLogin // by token
	grants   []grant
	filter   []filterRule
	approval bool // new nodes wait for approval

	noHTTPS, noMagicDNS bool // what the tailnet does without

	changed chan struct{} // closed and replaced at each change
}

func newRegistry(config Config, base *testcontrol.Server, derpMap *tailcfg.DERPMap) *registry {
	ctx, stop := context.WithCancel(context.Background())
	return &registry{
		config:   config,
		base:     base,
		derpMap:  derpMap,
		ctx:      ctx,
		stop:     stop,
		nodes:    map[tailcfg.NodeID]*node{},
		byKey:    map[key.NodePublic]*node{},
		users:    map[string]*user{},
		authKeys: map[string]authKey{},
		logins:   map[string]*pendingLogin{},
		filter:   allowAll(),
		changed:  make(chan struct{}),
	}
}

func allowAll() []filterRule {
	return []filterRule{{Sources: []string{"*"}, Destinations: []string{"*"}, Ports: []string{"*"}}}
}

func (r *registry) close() { r.stop() }

// changedLocked wakes every stream and every waiter.
func (r *registry) changedLocked() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// await returns when condition holds, which is asked under the lock.
func (r *registry) await(ctx context.Context, condition func() bool) error {
	for {
		r.mu.Lock()
		done, changed := condition(), r.changed
		r.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// mayPoll refuses polls of keys that never registered and of keys that belong
// to another machine. A deleted node may poll: it is told that it has expired,
// since one that is refused would only ask again and again.
func (r *registry) mayPoll(machine key.MachinePublic, nodeKey key.NodePublic) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.byKey[nodeKey]
	if n == nil || n.machine != machine {
		return fmt.Errorf("node key %s is not registered by this machine", nodeKey.ShortString())
	}
	return nil
}

func (r *registry) maySetDNS(machine key.MachinePublic, nodeKey key.NodePublic) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.byKey[nodeKey]
	if n == nil || n.machine != machine || n.key != nodeKey || n.deleted || n.expired() {
		return fmt.Errorf("node key %s may not set DNS records: unknown, deleted or expired", nodeKey.ShortString())
	}
	return nil
}

// setHostinfoLocked takes what a node says about itself; its hostname decides
// its name unless the admin renamed it.
func (r *registry) setHostinfoLocked(n *node, hostinfo *tailcfg.Hostinfo) {
	oldHostname := ""
	if n.hostinfo != nil {
		oldHostname = n.hostinfo.Hostname
	}
	n.hostinfo = hostinfo
	if info := hostinfo.NetInfo; info != nil && info.PreferredDERP != 0 {
		n.homeDERP = info.PreferredDERP
	}
	if n.name == "" || (!n.renamed && hostinfo.Hostname != oldHostname) {
		r.setNameLocked(n, r.freeNameLocked(n, dnsname.SanitizeHostname(hostinfo.Hostname)))
	}
}

// freeNameLocked is the wanted label, or the first of label-1, label-2, … that
// no other node has.
func (r *registry) freeNameLocked(n *node, wanted string) string {
	if wanted == "" {
		wanted = "node"
	}
	for i, name := 0, wanted; ; {
		if other := r.byNameLocked(name); other == nil || other == n {
			return name
		}
		i++
		suffix := "-" + strconv.Itoa(i)
		name = wanted[:min(len(wanted), 63-len(suffix))] + suffix
	}
}

// setNameLocked also tells testcontrol, which allows set-dns by hostname.
func (r *registry) setNameLocked(n *node, name string) {
	n.name = name
	base := r.base.Node(n.key)
	if base == nil {
		return
	}
	base.Name = name + "." + r.config.Domain + "."
	base.Hostinfo = (&tailcfg.Hostinfo{Hostname: name}).View()
	r.base.UpdateNode(base)
}

// renameLocked gives a node another name, under which its grants go on.
func (r *registry) renameLocked(n *node, name string) {
	for i := range r.grants {
		granted := &r.grants[i]
		if granted.Destination == n.name {
			granted.Destination = name
		}
		if granted.Source == n.name {
			granted.Source = name
		}
	}
	r.setNameLocked(n, name)
	r.changedLocked()
}

func (r *registry) byNameLocked(name string) *node {
	for _, n := range r.nodes {
		if !n.deleted && n.name == name {
			return n
		}
	}
	return nil
}

func (r *registry) liveLocked() []*node {
	var live []*node
	for _, n := range r.nodes {
		if !n.deleted {
			live = append(live, n)
		}
	}
	sort.Slice(live, func(i, j int) bool { return live[i].id < live[j].id })
	return live
}

// profileLocked is the user profile under which a node shows.
func (r *registry) profileLocked(n *node) tailcfg.UserProfile {
	login := n.login
	if len(n.tags) > 0 {
		login = taggedLogin
	}
	u := r.userLocked(login)
	return tailcfg.UserProfile{ID: u.id, LoginName: login, DisplayName: u.display, ProfilePicURL: u.pictureURL}
}

func (r *registry) userLocked(login string) *user {
	u := r.users[login]
	if u == nil {
		u = &user{id: tailcfg.UserID(1000 + len(r.users)), display: displayName(login)}
		r.users[login] = u
	}
	return u
}

func displayName(login string) string {
	if login == taggedLogin {
		return "Tagged Devices"
	}
	name, _, _ := strings.Cut(login, "@")
	first, size := utf8.DecodeRuneInString(name)
	if size == 0 {
		return login
	}
	return string(unicode.ToUpper(first)) + name[size:]
}

// deleteLocked removes a node; its record stays, so that its own poll can be
// told that it has expired.
func (r *registry) deleteLocked(n *node) {
	n.deleted = true
	n.keyExpiry = time.Now().Add(-time.Second)
	r.changedLocked()
}

// update takes what a node sends apart from its stream.
func (r *registry) update(request *tailcfg.MapRequest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.byKey[request.NodeKey]
	if n == nil {
		return
	}
	n.updates++
	n.endpoints = slices.Clone(request.Endpoints)
	n.disco = request.DiscoKey
	n.version = request.Version
	if request.Hostinfo != nil {
		r.setHostinfoLocked(n, request.Hostinfo)
	}
	r.changedLocked()
}

// openStream counts a new stream of a node and ends its former one.
func (r *registry) openStream(n *node) (superseded chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n.superseded != nil {
		close(n.superseded)
	}
	n.superseded = make(chan struct{})
	n.streams++
	n.polls++
	r.changedLocked()
	return n.superseded
}

func (r *registry) closeStream(n *node, superseded chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n.superseded == superseded {
		n.superseded = nil
	}
	n.streams--
	n.lastSeen = time.Now()
	r.changedLocked()
	if n.ephemeral && !n.deleted && n.streams == 0 {
		go r.reapEphemeral(n)
	}
}

// reapEphemeral removes a node that stays away for the grace time.
func (r *registry) reapEphemeral(n *node) {
	ctx, cancel := context.WithTimeout(r.ctx, r.config.EphemeralGrace)
	defer cancel()
	if r.await(ctx, func() bool { return n.streams > 0 || n.deleted }) == nil || r.ctx.Err() != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if n.streams == 0 && !n.deleted {
		r.deleteLocked(n)
	}
}
