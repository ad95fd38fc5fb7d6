// Package engine is a tailnet node as tailscale.h describes it, in plain Go.
//
// The exports in the module's root turn C into calls of this package; nothing
// here knows of C.
package engine

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tailway/libtailscale/engine/stack"
	"tailscale.com/envknob"
	"tailscale.com/ipn"
	"tailscale.com/net/netns"
	"tailscale.com/tailcfg"
)

// Options say how a node is to be.
type Options struct {
	Hostname     string
	Dir          string         // state directory, or
	Store        ipn.StateStore // a store of the caller, or
	Memory       bool           // nothing is kept
	AuthKey      string
	ClientSecret string
	Tags         []string
	Ephemeral    bool
	ControlURL   string
	Port         uint16
	ReceiveMax   int // bytes of TCP buffer per connection, 0 for the default
	SendMax      int
	// Logf gets every line; user says that it is meant for the operator.
	Logf func(user bool, line string)
}

// DefaultBuffer bounds TCP buffers unless the options say otherwise: the stack's
// own 8 and 6 MiB let a few fast streams take gigabytes.
const DefaultBuffer = 1 << 20

// ParseTags reads a comma-separated list of "tag:name".
func ParseTags(list string) ([]string, error) {
	var tags []string
	for tag := range strings.SplitSeq(list, ",") {
		tag = strings.TrimSpace(tag)
		if tag == "" {
			continue
		}
		if err := tailcfg.CheckTag(tag); err != nil {
			return nil, fmt.Errorf("%q is no tag: %w", tag, err)
		}
		tags = append(tags, tag)
	}
	return tags, nil
}

func (o *Options) check() error {
	states := 0
	for _, set := range []bool{o.Dir != "", o.Store != nil, o.Memory} {
		if set {
			states++
		}
	}
	switch {
	case states == 0:
		return errors.New("the node has nowhere to keep its state: set a directory, a store or the memory store")
	case states > 1:
		return errors.New("the node has more than one place for its state: set one of directory, store and memory store")
	case o.ClientSecret != "" && len(o.Tags) == 0:
		return errors.New("an OAuth client secret needs tags")
	case o.ClientSecret != "" && !strings.HasPrefix(o.ClientSecret, "tskey-client-"):
		return errors.New("the OAuth client secret does not start with tskey-client-")
	}
	if o.ControlURL != "" {
		u, err := url.Parse(o.ControlURL)
		if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
			return fmt.Errorf("the control URL %q is no http or https URL", o.ControlURL)
		}
	}
	return nil
}

// clientSecret is the OAuth client secret with what the key that is minted with
// it is to be: without a word the engine makes the node ephemeral, whatever the
// options say, and lets it wait for approval.
func (o *Options) clientSecret() string {
	if o.ClientSecret == "" {
		return ""
	}
	secret, text, _ := strings.Cut(o.ClientSecret, "?")
	attributes, err := url.ParseQuery(text)
	if err != nil {
		return o.ClientSecret // for the engine to refuse
	}
	for name, value := range map[string]bool{"ephemeral": o.Ephemeral, "preauthorized": true} {
		if !attributes.Has(name) {
			attributes.Set(name, strconv.FormatBool(value))
		}
	}
	return secret + "?" + attributes.Encode()
}

// forgetVariable keeps the engine from reading what the options decide.
func forgetVariable(name string) {
	if os.Getenv(name) != "" {
		os.Unsetenv(name)
	}
}

// hasIdentity says whether a node has joined with this state.
func hasIdentity(state ipn.StateStore) bool {
	profile, err := state.ReadState(ipn.CurrentProfileStateKey)
	return err == nil && len(profile) > 0
}

// stateDir is a directory that this process alone uses.
type stateDir struct {
	path string
	lock *os.File // nil for a temporary one
}

// openStateDir makes and locks the directory, or a temporary one where the state
// is kept elsewhere: the engine wants a place for its files in any case.
func openStateDir(path string) (*stateDir, error) {
	if path == "" {
		temporary, err := os.MkdirTemp("", "tailscale-")
		if err != nil {
			return nil, fmt.Errorf("cannot make a temporary directory: %w", err)
		}
		return &stateDir{path: temporary}, nil
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the state directory: %w", err)
	}
	name := filepath.Join(path, "lock")
	lock, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the state directory cannot be written: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("the state directory %s is in use by another process or node", path)
		}
		return nil, fmt.Errorf("cannot lock %s: %w", name, err)
	}
	return &stateDir{path: path, lock: lock}, nil
}

func (d *stateDir) close() {
	if d.lock != nil {
		d.lock.Close()
		return
	}
	os.RemoveAll(d.path)
}

// keepalive ends connections of peers that vanished. The engine's two hours are
// for machines that run on batteries; its knobs hold here too.
func keepalive() stack.Keepalive {
	read := func(name string, otherwise time.Duration) time.Duration {
		if d, err := time.ParseDuration(os.Getenv(name)); err == nil && d > 0 {
			return d
		}
		return otherwise
	}
	return stack.Keepalive{
		Idle:     read("TS_NETSTACK_KEEPALIVE_IDLE", 60*time.Second),
		Interval: read("TS_NETSTACK_KEEPALIVE_INTERVAL", 15*time.Second),
	}
}

// adaptToLoopback turns off what hinders a tailnet that lives on this host.
func adaptToLoopback(controlURL string) {
	u, err := url.Parse(controlURL)
	if err != nil {
		return
	}
	ip, err := netip.ParseAddr(u.Hostname())
	if u.Hostname() != "localhost" && (err != nil || !ip.IsLoopback()) {
		return
	}
	// Marked or bound sockets do not reach loopback.
	netns.SetEnabled(false)
	for _, name := range []string{
		"TS_ASSUME_NETWORK_UP_FOR_TEST", // lo may be all there is
		"TS_NO_LOGS_NO_SUPPORT",
		"TS_DISABLE_PORTMAPPER",
	} {
		// Others may be reading the knob, which is not guarded: never set it twice.
		if os.Getenv(name) == "" {
			envknob.Setenv(name, "true")
		}
	}
}
