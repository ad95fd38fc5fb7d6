// Package stack is the border to the TCP/IP stack that a tailnet node runs.
//
// Everything above it works with these interfaces alone, so that the stack can
// be replaced. A connection never blocks: it says that it would, and tells
// through a channel when to try again, so that an idle one holds no buffer.
package stack

import (
	"context"
	"errors"
	"net"
	"net/netip"
)

// ErrWouldBlock says that nothing can be read or written now.
var ErrWouldBlock = errors.New("would block")

// ErrReset says that the peer reset the connection or is gone.
var ErrReset = errors.New("connection reset by the tailnet peer")

// Stack is what a node needs of its TCP/IP stack.
type Stack interface {
	// Accept takes over every TCP connection to the node. decide is asked
	// before the handshake is answered, false is answered with RST; accept gets
	// the connection once the handshake is complete. Both run on goroutines of
	// the stack and must return soon. The result ends it.
	Accept(decide func(src, dst netip.AddrPort) bool, accept func(Conn)) (stop func())
	// Dial connects to an address in the tailnet.
	Dial(ctx context.Context, dst netip.AddrPort) (Conn, error)
	// ListenPacket binds a UDP port on an address of the node.
	ListenPacket(addr netip.AddrPort) (net.PacketConn, error)
	// SetBuffers bounds the TCP buffers of connections made from now on; 0
	// leaves one as it is.
	SetBuffers(receiveMax, sendMax int) error
}

// Conn is a TCP connection. Its methods may be called from several goroutines.
type Conn interface {
	// Source and Destination are those of the side that connected.
	Source() netip.AddrPort
	Destination() netip.AddrPort
	// Read takes what has arrived: io.EOF after the peer's FIN, ErrWouldBlock
	// when there is nothing yet.
	Read(p []byte) (int, error)
	// Write hands over what the send buffer has room for, at least one byte.
	Write(p []byte) (int, error)
	// Readable and Writable are sent to when it is worth trying again, and when
	// the connection fails. Both have a buffer of one.
	Readable() <-chan struct{}
	Writable() <-chan struct{}
	// Failed says whether the connection was reset or timed out.
	Failed() bool
	// CloseWrite sends FIN after what was written.
	CloseWrite() error
	// Close ends it in order: what was written still arrives.
	Close()
	// Abort ends it with RST.
	Abort()
}
