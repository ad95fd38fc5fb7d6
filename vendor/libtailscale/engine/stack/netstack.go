package stack

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"reflect"
	"unsafe"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
	"tailscale.com/tsnet"
	"tailscale.com/wgengine/netstack"
)

// Netstack is tsnet's own gVisor stack.
type Netstack struct {
	server *tsnet.Server
	impl   *netstack.Impl
}

// NewNetstack wraps the stack of a server that was started.
func NewNetstack(server *tsnet.Server) (*Netstack, error) {
	impl, ok := server.Sys().Netstack.Get().(*netstack.Impl)
	if !ok {
		return nil, fmt.Errorf("tsnet runs %T, not its netstack", server.Sys().Netstack.Get())
	}
	return &Netstack{server: server, impl: impl}, nil
}

func (n *Netstack) Accept(decide func(src, dst netip.AddrPort) bool, accept func(Conn)) func() {
	return n.server.RegisterFallbackTCPHandler(func(src, dst netip.AddrPort) (func(net.Conn), bool) {
		if !decide(src, dst) {
			return nil, true // answered with RST
		}
		return func(c net.Conn) {
			conn, err := newNetstackConn(c, src, dst)
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
	local, _ := c.LocalAddr().(*net.TCPAddr)
	if local != nil {
		if ip, ok := netip.AddrFromSlice(local.IP); ok {
			return newNetstackConn(c, netip.AddrPortFrom(ip.Unmap(), uint16(local.Port)), dst)
		}
	}
	return newNetstackConn(c, netip.AddrPortFrom(src, 0), dst)
}

func (n *Netstack) ListenPacket(addr netip.AddrPort) (net.PacketConn, error) {
	return n.server.ListenPacket("udp", addr.String())
}

func (n *Netstack) SetBuffers(receiveMax, sendMax int) error {
	// Where a connection starts; it grows to the maximum as it needs to.
	const initial = 256 << 10
	if receiveMax > 0 {
		option := tcpip.TCPReceiveBufferSizeRangeOption{
			Min: tcp.MinBufferSize, Default: min(initial, receiveMax), Max: receiveMax,
		}
		if err := n.impl.SetTransportProtocolOption(tcp.ProtocolNumber, &option); err != nil {
			return fmt.Errorf("cannot bound the receive buffer to %d bytes: %v", receiveMax, err)
		}
	}
	if sendMax > 0 {
		option := tcpip.TCPSendBufferSizeRangeOption{
			Min: tcp.MinBufferSize, Default: min(initial, sendMax), Max: sendMax,
		}
		if err := n.impl.SetTransportProtocolOption(tcp.ProtocolNumber, &option); err != nil {
			return fmt.Errorf("cannot bound the send buffer to %d bytes: %v", sendMax, err)
		}
	}
	return nil
}

// netstackConn works on the endpoint itself: gonet's connection blocks, needs a
// buffer while it waits, and cannot reset.
type netstackConn struct {
	src, dst           netip.AddrPort
	endpoint           tcpip.Endpoint
	queue              *waiter.Queue
	readable, writable chan struct{}
	onRead, onWrite    waiter.Entry
}

func newNetstackConn(c net.Conn, src, dst netip.AddrPort) (*netstackConn, error) {
	endpoint, queue, err := endpointOf(c)
	if err != nil {
		return nil, err
	}
	conn := &netstackConn{src: src, dst: dst, endpoint: endpoint, queue: queue}
	conn.onRead, conn.readable = waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
	conn.onWrite, conn.writable = waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	queue.EventRegister(&conn.onRead)
	queue.EventRegister(&conn.onWrite)
	return conn, nil
}

// endpointOf takes the endpoint and its wait queue out of a gonet.TCPConn, which
// keeps both private. A change of the struct is an error here, and fails the
// tests, not a crash.
func endpointOf(c net.Conn) (tcpip.Endpoint, *waiter.Queue, error) {
	tcpConn, ok := c.(*gonet.TCPConn)
	if !ok {
		return nil, nil, fmt.Errorf("the connection is a %T, not one of gVisor", c)
	}
	value := reflect.ValueOf(tcpConn).Elem()
	endpoint, err := privateField[tcpip.Endpoint](value, "ep")
	if err != nil {
		return nil, nil, err
	}
	queue, err := privateField[*waiter.Queue](value, "wq")
	return endpoint, queue, err
}

func privateField[T any](value reflect.Value, name string) (T, error) {
	var zero T
	field := value.FieldByName(name)
	if !field.IsValid() || field.Type() != reflect.TypeFor[T]() {
		return zero, fmt.Errorf("gonet.TCPConn has no field %s of type %v", name, reflect.TypeFor[T]())
	}
	// The field is addressable, since value was reached through a pointer, and
	// its type was checked.
	return *(*T)(unsafe.Pointer(field.UnsafeAddr())), nil
}

func (c *netstackConn) Source() netip.AddrPort      { return c.src }
func (c *netstackConn) Destination() netip.AddrPort { return c.dst }
func (c *netstackConn) Readable() <-chan struct{}   { return c.readable }
func (c *netstackConn) Writable() <-chan struct{}   { return c.writable }

func (c *netstackConn) Read(p []byte) (int, error) {
	writer := tcpip.SliceWriter(p)
	result, err := c.endpoint.Read(&writer, tcpip.ReadOptions{})
	if result.Count > 0 {
		c.endpoint.ModerateRecvBuf(result.Count)
		return result.Count, nil
	}
	switch err.(type) {
	case nil:
		return 0, ErrWouldBlock
	case *tcpip.ErrWouldBlock:
		return 0, ErrWouldBlock
	case *tcpip.ErrClosedForReceive:
		return 0, io.EOF
	default:
		return 0, fmt.Errorf("%w: %v", ErrReset, err)
	}
}

func (c *netstackConn) Write(p []byte) (int, error) {
	var reader bytes.Reader
	reader.Reset(p)
	n, err := c.endpoint.Write(&reader, tcpip.WriteOptions{})
	if n > 0 {
		return int(n), nil
	}
	switch err.(type) {
	case nil, *tcpip.ErrWouldBlock:
		return 0, ErrWouldBlock
	default:
		return 0, fmt.Errorf("%w: %v", ErrReset, err)
	}
}

func (c *netstackConn) Failed() bool {
	return tcp.EndpointState(c.endpoint.State()) == tcp.StateError
}

func (c *netstackConn) CloseWrite() error {
	if err := c.endpoint.Shutdown(tcpip.ShutdownWrite); err != nil {
		return fmt.Errorf("%w: %v", ErrReset, err)
	}
	return nil
}

func (c *netstackConn) Close() {
	c.forget()
	c.endpoint.Close()
}

func (c *netstackConn) Abort() {
	c.forget()
	c.endpoint.Abort()
}

// forget stops the notifications, which would keep the connection in memory as
// long as the endpoint lingers.
func (c *netstackConn) forget() {
	c.queue.EventUnregister(&c.onRead)
	c.queue.EventUnregister(&c.onWrite)
}
