package engine

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tailway/libtailscale/engine/shelter"
	"tailscale.com/health"
	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnstate"
	"tailscale.com/tsconst"
)

// status is tailscale_status's document.
type status struct {
	State        string   `json:"state"`
	AuthURL      string   `json:"auth_url"`
	Hostname     string   `json:"hostname"`
	DNSName      string   `json:"dns_name"`
	IPs          []string `json:"ips"`
	Domain       string   `json:"domain"`
	MagicDNSOff  bool     `json:"magic_dns_off"`
	CertDomains  []string `json:"cert_domains"`
	NodeID       string   `json:"node_id"`
	User         string   `json:"user"`
	Tags         []string `json:"tags"`
	KeyExpiry    string   `json:"key_expiry"`
	KeyExpired   bool     `json:"key_expired"`
	LoginRefused bool     `json:"login_refused"`
	ControlError string   `json:"control_error"`
	Health       []string `json:"health"`
	Peers        peers    `json:"peers"`

	// refused is why the control server does not let the node in.
	refused string
}

type peers struct {
	Total   int `json:"total"`
	Direct  int `json:"direct"`
	Relayed int `json:"relayed"`
}

func (s *status) usable() bool { return s.State == ipn.Running.String() && len(s.IPs) > 0 }

// reason says why it is not usable.
func (s *status) reason() string {
	switch {
	case s.AuthURL != "":
		return "it needs a login at " + s.AuthURL
	case s.ControlError != "":
		return s.ControlError
	case len(s.Health) > 0:
		return strings.Join(s.Health, "; ")
	default:
		return "its state is " + s.State
	}
}

func (s *status) json() string {
	text, err := json.Marshal(s)
	if err != nil {
		return "{}" // strings, numbers and lists of them always marshal
	}
	return string(text)
}

const (
	// statusDebounce gathers the many notifications of one change.
	statusDebounce = 100 * time.Millisecond
	// statusPeriod is how soon it shows what nobody notifies of: how peers are
	// reached, a key that expires, capabilities.
	statusPeriod = 10 * time.Second
)

// statusWatcher keeps the status and tells of its changes.
type statusWatcher struct {
	node  *Node
	dirty chan struct{}

	mu          sync.Mutex
	last        *status
	lastText    string
	refused     string
	subscribers map[chan struct{}]struct{}
}

func watchStatus(n *Node) *statusWatcher {
	w := &statusWatcher{
		node:        n,
		dirty:       make(chan struct{}, 1),
		subscribers: make(map[chan struct{}]struct{}),
	}
	w.refresh()
	go w.listen()
	go w.run()
	return w
}

// listen passes on that something changed. The backend drops a watcher that falls
// behind, so it watches anew until the node is closed.
func (w *statusWatcher) listen() {
	defer shelter.Recover("the watch of the backend", nil)
	const mask = ipn.NotifyInitialState | ipn.NotifyPeerChanges | ipn.NotifyInitialHealthState
	for w.node.closing.Err() == nil {
		w.node.backend.WatchNotifications(w.node.closing, mask, nil, func(notify *ipn.Notify) bool {
			w.note(notify)
			return true
		})
		w.node.epoch.Add(1) // changes may have been missed
	}
}

func (w *statusWatcher) note(notify *ipn.Notify) {
	if notify.ErrMessage != nil || notify.State != nil {
		w.mu.Lock()
		switch {
		case notify.ErrMessage != nil:
			w.refused = *notify.ErrMessage
		case *notify.State == ipn.Running || *notify.State == ipn.Starting:
			w.refused = ""
		}
		w.mu.Unlock()
	}
	if notify.NetMap != nil || notify.SelfChange != nil || len(notify.PeersChanged) > 0 ||
		len(notify.PeersRemoved) > 0 || len(notify.UserProfiles) > 0 {
		w.node.epoch.Add(1)
	}
	select {
	case w.dirty <- struct{}{}:
	default:
	}
}

func (w *statusWatcher) run() {
	defer shelter.Recover("the status of a node", nil)
	tick := time.NewTicker(statusPeriod)
	defer tick.Stop()
	for {
		select {
		case <-w.dirty:
			w.refresh()
			select {
			case <-time.After(statusDebounce):
			case <-w.node.closing.Done():
				return
			}
		case <-tick.C:
			w.node.epoch.Add(1)
			w.refresh()
		case <-w.node.closing.Done():
			return
		}
	}
}

// refresh asks the backend, and tells the subscribers when something changed.
func (w *statusWatcher) refresh() *status {
	fresh := w.build()
	text := fresh.json()
	w.mu.Lock()
	defer w.mu.Unlock()
	if text == w.lastText && fresh.refused == w.last.refused {
		return w.last
	}
	w.last, w.lastText = fresh, text
	for subscriber := range w.subscribers {
		select {
		case subscriber <- struct{}{}:
		default:
		}
	}
	return fresh
}

func (w *statusWatcher) current() *status {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last
}

func (w *statusWatcher) subscribe() (changes <-chan struct{}, stop func()) {
	ch := make(chan struct{}, 1)
	w.mu.Lock()
	w.subscribers[ch] = struct{}{}
	w.mu.Unlock()
	return ch, func() {
		w.mu.Lock()
		delete(w.subscribers, ch)
		w.mu.Unlock()
	}
}

func (w *statusWatcher) build() *status {
	st := w.node.backend.Status()
	s := &status{
		State:       st.BackendState,
		AuthURL:     st.AuthURL,
		Hostname:    w.node.options.Hostname,
		IPs:         addresses(st.TailscaleIPs),
		CertDomains: nonNil(st.CertDomains),
		Tags:        []string{},
		Health:      nonNil(slices.Sorted(slices.Values(st.Health))),
	}
	if st.CurrentTailnet != nil {
		s.Domain = st.CurrentTailnet.MagicDNSSuffix
		s.MagicDNSOff = !st.CurrentTailnet.MagicDNSEnabled
	}
	if self := st.Self; self != nil {
		s.DNSName = strings.TrimSuffix(self.DNSName, ".")
		s.NodeID = string(self.ID)
		if self.Tags != nil {
			s.Tags = nonNil(self.Tags.AsSlice())
		}
		if user, ok := st.User[self.UserID]; ok && len(s.Tags) == 0 {
			s.User = user.LoginName
		}
		if self.KeyExpiry != nil && !self.KeyExpiry.IsZero() {
			s.KeyExpiry = self.KeyExpiry.UTC().Format(time.RFC3339)
			s.KeyExpired = self.Expired || time.Now().After(*self.KeyExpiry)
		}
		s.KeyExpired = s.KeyExpired || self.Expired
	}
	for _, peer := range st.Peer {
		s.Peers.add(peer)
	}
	w.mu.Lock()
	s.refused = w.refused
	w.mu.Unlock()
	s.ControlError, s.LoginRefused = s.refused, s.refused != ""
	if !s.LoginRefused {
		s.ControlError = controlError(w.node.backend.HealthTracker().CurrentState())
	}
	return s
}

// controlError finds what is wrong between the node and the control server.
func controlError(state *health.State) string {
	for _, code := range []health.WarnableCode{
		tsconst.HealthWarnableLoginState,
		tsconst.HealthWarnableTLSConnectionFailed,
		tsconst.HealthWarnableNotInMapPoll,
		tsconst.HealthWarnableMapResponseTimeout,
	} {
		warning, ok := state.Warnings[code]
		switch {
		case !ok:
		case code != tsconst.HealthWarnableLoginState:
			return warning.Text
		case warning.Args[health.ArgError] != "":
			return warning.Args[health.ArgError] // without it, a login is all that lacks
		}
	}
	return ""
}

func (p *peers) add(peer *ipnstate.PeerStatus) {
	if !peer.Active {
		return
	}
	p.Total++
	switch {
	case peer.CurAddr != "":
		p.Direct++
	case peer.Relay != "" || peer.PeerRelay != "":
		p.Relayed++
	}
}

func addresses(ips []netip.Addr) []string {
	sorted := slices.Clone(ips)
	slices.SortFunc(sorted, netip.Addr.Compare) // IPv4 before IPv6
	texts := make([]string, 0, len(sorted))
	for _, ip := range sorted {
		texts = append(texts, ip.String())
	}
	return texts
}

func nonNil(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}
