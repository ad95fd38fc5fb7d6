package stack

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"tailscale.com/net/tsaddr"
	"tailscale.com/tsnet"
	"tailscale.com/wgengine/netstack"
)

const (
	// sweepPeriod is how often closed connections are looked at.
	sweepPeriod = 10 * time.Second
	// lingerLimit is how long a closed connection may take to deliver what was
	// written. A peer that answers and takes nothing would keep it for ever.
	lingerLimit = 5 * time.Minute
	// flushBase, flushEach and flushMax are how long resets may take to leave.
	flushBase = 50 * time.Millisecond
	flushEach = 100 * time.Microsecond
	flushMax  = 2 * time.Second
	// timeWait is how long a port pair rests after a connection: gVisor's minute
	// keeps 60 times a second's connections in memory.
	timeWait = 10 * time.Second
	// initialBuffer is the TCP buffer a connection starts with; it grows to the
	// maximum as it needs to.
	initialBuffer = 256 << 10
)

// Netstack is tsnet's own gVisor stack.
type Netstack struct {
	server    *tsnet.Server
	impl      *netstack.Impl
	keepalive Keepalive

	mu        sync.Mutex
	lingering map[*endpoint]time.Time // when to give up
	sweeping  bool
}

// Keepalive says when a silent peer is asked whether it is there.
type Keepalive struct{ Idle, Interval time.Duration }

// NewNetstack wraps the stack of a server that was started.
func NewNetstack(server *tsnet.Server, keepalive Keepalive) (*Netstack, error) {
	impl, ok := server.Sys().Netstack.Get().(*netstack.Impl)
	if !ok {
		return nil, fmt.Errorf("tsnet runs %T, not its netstack", server.Sys().Netstack.Get())
	}
	rest := tcpip.TCPTimeWaitTimeoutOption(timeWait)
	if err := impl.SetTransportProtocolOption(tcp.ProtocolNumber, &rest); err != nil {
		return nil, fmt.Errorf("cannot set the time that closed connections rest: %v", err)
	}
	return &Netstack{
		server: server, impl: impl, keepalive: keepalive,
		lingering: make(map[*endpoint]time.Time),
	}, nil
}

func (n *Netstack) Accept(decide func(src, dst netip.AddrPort) bool, accept func(Conn)) func() {
	return n.server.RegisterFallbackTCPHandler(func(src, dst netip.AddrPort) (func(net.Conn), bool) {
		// Other addresses are those of subnets routed to this node. netstack takes
		// them back once the handler returns, which ours does at once.
		if !tsaddr.IsTailscaleIP(dst.Addr()) || !decide(src, dst) {
			return nil, true // answered with RST
		}
		return func(c net.Conn) {
			conn, err := n.conn(c, src, dst)
			if err != nil {
				c.Close()
				return
			}
			accept(conn)
		}, true
	})
}

func (n *Netstack) Dial(ctx context.Context, dst netip.AddrPort) (Conn, error) {
	v4, v6 := n.server.TailscaleIPs()
	src := v4
	if dst.Addr().Is6() {
		src = v6
	}
	if !src.IsValid() {
		return nil, fmt.Errorf("the node has no address of the family of %v", dst.Addr())
	}
	c, err := n.impl.DialContextTCPWithBind(ctx, src, dst)
	if err != nil {
		return nil, err
	}
	source := netip.AddrPortFrom(src, 0)
	if local, ok := c.LocalAddr().(*net.TCPAddr); ok {
		source = netip.AddrPortFrom(src, uint16(local.Port))
	}
	conn, err := n.conn(c, source, dst)
	if err != nil {
		c.Close()
		return nil, err
	}
	return conn, nil
}

func (n *Netstack) ListenPacket(addr netip.AddrPort) (net.PacketConn, error) {
	return n.server.ListenPacket("udp", addr.String())
}

func (n *Netstack) SetBuffers(receiveMax, sendMax int) error {
	if receiveMax > 0 {
		receiveMax = max(receiveMax, tcp.MinBufferSize)
		option := tcpip.TCPReceiveBufferSizeRangeOption{
			Min: tcp.MinBufferSize, Default: min(initialBuffer, receiveMax), Max: receiveMax,
		}
		if err := n.impl.SetTransportProtocolOption(tcp.ProtocolNumber, &option); err != nil {
			return fmt.Errorf("cannot bound the receive buffer to %d bytes: %v", receiveMax, err)
		}
	}
	if sendMax > 0 {
		sendMax = max(sendMax, tcp.MinBufferSize)
		option := tcpip.TCPSendBufferSizeRangeOption{
			Min: tcp.MinBufferSize, Default: min(initialBuffer, sendMax), Max: sendMax,
		}
		if err := n.impl.SetTransportProtocolOption(tcp.ProtocolNumber, &option); err != nil {
			return fmt.Errorf("cannot bound the send buffer to %d bytes: %v", sendMax, err)
		}
	}
	return nil
}

// conn takes over a connection of gonet.
func (n *Netstack) conn(c net.Conn, src, dst netip.AddrPort) (*endpoint, error) {
	tcpEndpoint, queue, err := endpointOf(c)
	if err != nil {
		return nil, err
	}
	// netstack sets it for accepted connections only, and to two hours.
	idle := tcpip.KeepaliveIdleOption(n.keepalive.Idle)
	interval := tcpip.KeepaliveIntervalOption(n.keepalive.Interval)
	tcpEndpoint.SetSockOpt(&idle)
	tcpEndpoint.SetSockOpt(&interval)
	tcpEndpoint.SocketOptions().SetKeepAlive(true)
	return &endpoint{Endpoint: tcpEndpoint, stack: n, queue: queue, src: src, dst: dst}, nil
}

// linger keeps an eye on a connection that was closed in order.
func (n *Netstack) linger(e *endpoint) {
	if e.over() {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lingering[e] = time.Now().Add(lingerLimit)
	if !n.sweeping {
		n.sweeping = true
		time.AfterFunc(sweepPeriod, n.sweep)
	}
}

// sweep forgets the lingering connections that are over, and resets those whose
// time is up.
func (n *Netstack) sweep() {
	now := time.Now()
	var late []*endpoint
	n.mu.Lock()
	for e, deadline := range n.lingering {
		switch {
		case e.over():
			delete(n.lingering, e)
		case now.After(deadline):
			delete(n.lingering, e)
			late = append(late, e)
		}
	}
	n.sweeping = len(n.lingering) > 0
	if n.sweeping {
		time.AfterFunc(sweepPeriod, n.sweep)
	}
	n.mu.Unlock()
	for _, e := range late {
		e.Endpoint.Abort()
	}
}

// Settle must come before the server's Close: that resets connections when nobody
// reads the queue of outgoing packets any more, and blocks for ever once 512 of
// them fill it.
func (n *Netstack) Settle(aborted int, grace time.Duration) {
	for deadline := time.Now().Add(grace); n.delivering() && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
	n.mu.Lock()
	lingering := n.lingering
	n.lingering = make(map[*endpoint]time.Time)
	n.mu.Unlock()
	for e := range lingering {
		if !e.over() {
			e.Endpoint.Abort()
			aborted++
		}
	}
	// Resets wait in queues of the stack and of WireGuard, which nothing tells the
	// length of and which Close drops.
	if aborted > 0 {
		time.Sleep(min(flushBase+time.Duration(aborted)*flushEach, flushMax))
	}
}

// delivering says whether a closed connection waits for its last bytes to be
// acknowledged.
func (n *Netstack) delivering() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for e := range n.lingering {
		switch e.state() {
		case tcp.StateFinWait1, tcp.StateClosing, tcp.StateLastAck:
			return true
		}
	}
	return false
}
