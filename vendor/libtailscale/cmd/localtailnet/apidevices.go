package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"tailscale.com/util/dnsname"
)

// apiDevice is a node as the API shows it: the default fields.
type apiDevice struct {
	Addresses                 []string   `json:"addresses"`
	ID                        string     `json:"id"`
	NodeID                    string     `json:"nodeId"`
	User                      string     `json:"user"`
	Name                      string     `json:"name"`
	Hostname                  string     `json:"hostname"`
	ClientVersion             string     `json:"clientVersion"`
	UpdateAvailable           bool       `json:"updateAvailable"`
	OS                        string     `json:"os"`
	Created                   time.Time  `json:"created"`
	ConnectedToControl        bool       `json:"connectedToControl"`
	LastSeen                  *time.Time `json:"lastSeen,omitempty"`
	KeyExpiryDisabled         bool       `json:"keyExpiryDisabled"`
	Expires                   *time.Time `json:"expires,omitempty"`
	Authorized                bool       `json:"authorized"`
	IsExternal                bool       `json:"isExternal"`
	MachineKey                string     `json:"machineKey"`
	NodeKey                   string     `json:"nodeKey"`
	BlocksIncomingConnections bool       `json:"blocksIncomingConnections"`
	Tags                      []string   `json:"tags,omitempty"`
	IsEphemeral               bool       `json:"isEphemeral"`
}

func (r *registry) apiDeviceLocked(n *node) apiDevice {
	shown := apiDevice{
		Addresses: addressStrings(n.addresses), ID: strconv.FormatInt(int64(n.id), 10), NodeID: string(n.stableID),
		User: r.profileLocked(n).LoginName, Name: n.name + "." + r.config.Domain, Hostname: n.name,
		Created: n.created.UTC().Truncate(time.Second), ConnectedToControl: n.online(),
		KeyExpiryDisabled: n.keyExpiry.IsZero(), Authorized: !n.unapproved,
		MachineKey: n.machine.String(), NodeKey: n.key.String(),
		Tags: slices.Clone(n.tags), IsEphemeral: n.ephemeral,
	}
	if info := n.hostinfo; info != nil {
		shown.Hostname, shown.OS, shown.ClientVersion = info.Hostname, info.OS, info.IPNVersion
		shown.BlocksIncomingConnections = info.ShieldsUp
	}
	if !n.online() && !n.lastSeen.IsZero() {
		seen := n.lastSeen.UTC().Truncate(time.Second)
		shown.LastSeen = &seen
	}
	if !n.keyExpiry.IsZero() {
		expires := n.keyExpiry.UTC().Truncate(time.Second)
		shown.Expires = &expires
	}
	return shown
}

// byDeviceIDLocked finds a node by its nodeId or its numeric id.
func (r *registry) byDeviceIDLocked(id string) *node {
	for _, n := range r.liveLocked() {
		if string(n.stableID) == id || strconv.FormatInt(int64(n.id), 10) == id {
			return n
		}
	}
	return nil
}

// listDevices takes filters of the form field=value, each to be met exactly,
// or by one element of a list.
func (a *api) listDevices(r *http.Request, _ *apiToken) (any, error) {
	filters := r.URL.Query()
	if fields := filters.Get("fields"); fields != "" && fields != "default" && fields != "all" {
		return nil, apiRefuse(http.StatusBadRequest, "fields must be all or default")
	}
	filters.Del("fields")
	a.registry.mu.Lock()
	defer a.registry.mu.Unlock()
	shown := []apiDevice{}
	for _, n := range a.registry.liveLocked() {
		device := a.registry.apiDeviceLocked(n)
		matched, err := device.matches(filters)
		if err != nil {
			return nil, err
		}
		if matched {
			shown = append(shown, device)
		}
	}
	return map[string]any{"devices": shown}, nil
}

func (d *apiDevice) matches(filters url.Values) (bool, error) {
	encoded, err := json.Marshal(d)
	if err != nil {
		return false, err
	}
	var fields map[string]any
	if err := json.Unmarshal(encoded, &fields); err != nil {
		return false, err
	}
	for name, values := range filters {
		for _, value := range values {
			found := false
			switch field := fields[name].(type) {
			case []any:
				found = slices.ContainsFunc(field, func(element any) bool { return fmt.Sprint(element) == value })
			case nil:
			default:
				found = fmt.Sprint(field) == value
			}
			if !found {
				return false, nil
			}
		}
	}
	return true, nil
}

// onDevice runs act on the device that the path names.
func (a *api) onDevice(r *http.Request, act func(*node) (any, error)) (any, error) {
	a.registry.mu.Lock()
	defer a.registry.mu.Unlock()
	n := a.registry.byDeviceIDLocked(r.PathValue("id"))
	if n == nil {
		return nil, apiRefuse(http.StatusNotFound, "no manageable device matching this ID found")
	}
	return act(n)
}

func (a *api) readDevice(r *http.Request, _ *apiToken) (any, error) {
	return a.onDevice(r, func(n *node) (any, error) { return a.registry.apiDeviceLocked(n), nil })
}

func (a *api) deleteDevice(r *http.Request, _ *apiToken) (any, error) {
	return a.onDevice(r, func(n *node) (any, error) {
		a.registry.deleteLocked(n)
		return nil, nil
	})
}

func (a *api) authorizeDevice(r *http.Request, _ *apiToken) (any, error) {
	var body struct {
		Authorized bool `json:"authorized"`
	}
	if err := readAPIBody(r, &body); err != nil {
		return nil, err
	}
	return a.onDevice(r, func(n *node) (any, error) {
		n.unapproved = !body.Authorized
		a.registry.changedLocked()
		return nil, nil
	})
}

// renameDevice takes a label or a full name; an empty one lets the hostname
// decide again.
func (a *api) renameDevice(r *http.Request, _ *apiToken) (any, error) {
	var body struct {
		Name string `json:"name"`
	}
	if err := readAPIBody(r, &body); err != nil {
		return nil, err
	}
	name := strings.ToLower(strings.TrimSuffix(strings.TrimSuffix(body.Name, "."), "."+a.registry.config.Domain))
	if name != "" && dnsname.ValidLabel(name) != nil {
		return nil, apiRefuse(http.StatusBadRequest, "invalid name %q", body.Name)
	}
	return a.onDevice(r, func(n *node) (any, error) {
		if name == "" {
			n.renamed = false
			a.registry.renameLocked(n, a.registry.freeNameLocked(n, dnsname.SanitizeHostname(n.hostinfo.Hostname)))
			return nil, nil
		}
		if other := a.registry.byNameLocked(name); other != nil && other != n {
			return nil, apiRefuse(http.StatusConflict, "name %q is already in use by another device", name)
		}
		n.renamed = true
		a.registry.renameLocked(n, name)
		return nil, nil
	})
}
