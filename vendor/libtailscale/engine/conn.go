package engine

import (
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tailway/libtailscale/engine/relay"
	"github.com/tailway/libtailscale/engine/stack"
	"golang.org/x/sys/unix"
)

var connections atomic.Int64

// Connections counts those of all nodes that have not ended.
func Connections() int64 { return connections.Load() }

// Conn is a connection of a node, accepted or dialled.
type Conn struct {
	node     *Node
	peer     stack.Conn
	peerNode uint64
	epoch    uint64

	mu    sync.Mutex
	relay *relay.Relay // once it is opened or spliced
	ended relay.End    // when it ended before that
}

// ErrUsed says that a connection was opened, spliced or aborted before.
var ErrUsed = errors.New("the connection was opened, spliced or aborted already")

// Source and Destination are those of the side that connected.
func (c *Conn) Source() netip.AddrPort      { return c.peer.Source() }
func (c *Conn) Destination() netip.AddrPort { return c.peer.Destination() }

// Peer is the key of the peer's identity; node is 0 when it is unknown.
func (c *Conn) Peer() (node, epoch uint64) { return c.peerNode, c.epoch }

// Open gives the connection as a nonblocking stream socket.
func (c *Conn) Open() (int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := c.Splice(pair[1], nil, 0, nil); err != nil {
		unix.Close(pair[0])
		return -1, err
	}
	return pair[0], nil
}

// Splice copies between the connection and the socket fd, which it owns also when
// it fails. done is called at the end, and not when it fails.
func (c *Conn) Splice(fd int, prefix []byte, idle time.Duration, done func(relay.Stats)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.relay != nil || c.ended != relay.Open {
		unix.Close(fd)
		return ErrUsed
	}
	r, err := relay.Start(c.peer, fd, relay.Options{
		Prefix: prefix,
		Idle:   idle,
		Done: func(stats relay.Stats) {
			c.node.forget(c)
			if done != nil {
				done(stats)
			}
		},
	})
	c.relay = r
	return err
}

// Stats says what it moved and whether it ended.
func (c *Conn) Stats() relay.Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.relay == nil {
		if c.ended == relay.Open && c.peer.Failed() {
			return relay.Stats{End: relay.PeerReset}
		}
		return relay.Stats{End: c.ended}
	}
	return c.relay.Stats()
}

// Abort resets it, whatever its state.
func (c *Conn) Abort() { c.stop(relay.Aborted) }

// Release resets it if it was neither opened nor spliced.
func (c *Conn) Release() {
	c.mu.Lock()
	unused := c.relay == nil
	c.mu.Unlock()
	if unused {
		c.stop(relay.Aborted)
	}
}

func (c *Conn) stop(end relay.End) {
	c.mu.Lock()
	r, ended := c.relay, c.ended
	if r == nil && ended == relay.Open {
		c.ended = end
	}
	c.mu.Unlock()
	switch {
	case r != nil:
		r.Stop(end)
	case ended == relay.Open:
		c.peer.Abort()
		c.node.forget(c)
	}
}
