package stack

import (
	"bytes"
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
)

// endpointOf takes the endpoint and its wait queue out of a gonet.TCPConn, which
// keeps both private. gonet's own methods block, want a buffer while they wait,
// and cannot reset. A change of the struct is an error here, and fails the tests,
// not a crash.
func endpointOf(c net.Conn) (tcpip.Endpoint, *waiter.Queue, error) {
	conn, ok := c.(*gonet.TCPConn)
	if !ok {
		return nil, nil, fmt.Errorf("the connection is a %T, not one of gVisor", c)
	}
	value := reflect.ValueOf(conn).Elem()
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

// endpoint is a Conn on an endpoint of gVisor.
type endpoint struct {
	tcpip.Endpoint
	stack    *Netstack
	queue    *waiter.Queue
	src, dst netip.AddrPort

	entry              waiter.Entry
	readable, writable func()

	// What Read and Write of gVisor are handed as interfaces, kept here so that
	// they do not allocate: one of each is in use at a time.
	peeked    tcpip.SliceWriter
	discarded discarder
	written   bytes.Reader
}

const (
	readEvents  = waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr
	writeEvents = waiter.WritableEvents | waiter.EventHUp | waiter.EventErr
)

func (e *endpoint) Source() netip.AddrPort      { return e.src }
func (e *endpoint) Destination() netip.AddrPort { return e.dst }

func (e *endpoint) Notify(readable, writable func()) {
	e.readable, e.writable = readable, writable
	e.entry.Init(e, readEvents|writeEvents)
	e.queue.EventRegister(&e.entry)
}

// NotifyEvent implements waiter.EventListener.
func (e *endpoint) NotifyEvent(events waiter.EventMask) {
	if events&readEvents != 0 {
		e.readable()
	}
	if events&writeEvents != 0 {
		e.writable()
	}
}

func (e *endpoint) Peek(p []byte) (int, error) {
	e.peeked = p
	result, err := e.Endpoint.Read(&e.peeked, tcpip.ReadOptions{Peek: true})
	e.peeked = nil
	if result.Count > 0 {
		return result.Count, nil
	}
	return 0, readError(err)
}

func (e *endpoint) Discard(n int) {
	e.discarded.left = n
	// Bytes that a reset took meanwhile are gone either way.
	e.Endpoint.Read(&e.discarded, tcpip.ReadOptions{})
	e.Endpoint.ModerateRecvBuf(n)
}

// discarder takes a number of bytes and refuses the next.
type discarder struct{ left int }

func (d *discarder) Write(p []byte) (int, error) {
	if len(p) > d.left {
		n := d.left
		d.left = 0
		return n, io.ErrShortWrite
	}
	d.left -= len(p)
	return len(p), nil
}

func (e *endpoint) Write(p []byte) (int, error) {
	e.written.Reset(p)
	n, err := e.Endpoint.Write(&e.written, tcpip.WriteOptions{})
	e.written.Reset(nil)
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

func readError(err tcpip.Error) error {
	switch err.(type) {
	case nil, *tcpip.ErrWouldBlock:
		return ErrWouldBlock
	case *tcpip.ErrClosedForReceive:
		return io.EOF
	default:
		return fmt.Errorf("%w: %v", ErrReset, err)
	}
}

func (e *endpoint) Unread() int {
	n, err := e.Endpoint.GetSockOptInt(tcpip.ReceiveQueueSizeOption)
	if err != nil {
		return 0
	}
	return n
}

func (e *endpoint) state() tcp.EndpointState { return tcp.EndpointState(e.Endpoint.State()) }

// Failed also holds for an endpoint that is closed before we closed it, which is
// how gVisor shows a reset that follows the peer's FIN.
func (e *endpoint) Failed() bool { return e.over() }

// over says whether the stack is done with it.
func (e *endpoint) over() bool {
	state := e.state()
	return state == tcp.StateClose || state == tcp.StateError
}

func (e *endpoint) CloseWrite() error {
	if err := e.Endpoint.Shutdown(tcpip.ShutdownWrite); err != nil {
		return fmt.Errorf("%w: %v", ErrReset, err)
	}
	return nil
}

func (e *endpoint) Close() {
	e.forget()
	e.Endpoint.Close()
	e.stack.linger(e)
}

func (e *endpoint) Abort() {
	e.forget()
	e.Endpoint.Abort()
}

// forget stops the notifications, which would keep what they call in memory as
// long as the endpoint lingers.
func (e *endpoint) forget() {
	if e.readable != nil {
		e.queue.EventUnregister(&e.entry)
	}
}
