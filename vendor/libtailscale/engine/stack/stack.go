// Package stack is the border to the TCP/IP stack that a tailnet node runs.
//
// Everything above it works with these interfaces alone, so that the stack can
// be replaced. A connection never blocks: it says that it would, and calls back
// when it is worth trying again. So an idle one needs neither a goroutine nor a
// buffer.
package stack

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"
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
	// Settle readies the stack for its end, once nothing is accepted or dialled
	// any more and the open connections, so many, were aborted. Those that were
	// closed get the grace to deliver what was written, and are reset then.
	Settle(aborted int, grace time.Duration)
}

// Conn is a TCP connection. One goroutine may read while another writes; the
// other methods may be called from any.
type Conn interface {
	// Source and Destination are those of the side that connected.
	Source() netip.AddrPort
	Destination() netip.AddrPort

	// Notify says whom to call when reading or writing is worth a try, and when
	// the connection fails. It is called once, before anything is read, and the
	// callbacks must neither block nor use the connection: they may run while
	// the stack holds its locks, on several goroutines.
	Notify(readable, writable func())

	// Peek copies what has arrived and leaves it in the stack, so that its
	// window closes as long as nobody takes it. io.EOF after the peer's FIN,
	// ErrWouldBlock when there is nothing yet.
	Peek(p []byte) (int, error)
	// Discard takes n bytes that Peek gave.
	Discard(n int)
	// Write hands over what the send buffer has room for, at least one byte.
	Write(p []byte) (int, error)

	// Unread is how many bytes Peek would find.
	Unread() int
	// Failed says whether the connection was reset or timed out.
	Failed() bool
	// CloseWrite sends FIN after what was written.
	CloseWrite() error
	// Close ends it in order: what was written still arrives.
	Close()
	// Abort ends it with RST.
	Abort()
}
