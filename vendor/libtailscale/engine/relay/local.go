package relay

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// errLocalReset says that the local side reset the connection or is gone.
var errLocalReset = errors.New("connection reset by the local side")

// local is the socket of this host that a tailnet connection is copied to and
// from, registered with the netpoller: no thread waits for it.
type local struct {
	conn net.Conn
	raw  syscall.RawConn
}

// newLocal takes ownership of fd, a connected stream socket.
func newLocal(fd int) (*local, error) {
	file := os.NewFile(uintptr(fd), "local")
	if file == nil {
		return nil, fmt.Errorf("%d is not a file descriptor", fd)
	}
	// FileConn works on a duplicate; the one passed in is closed.
	conn, err := net.FileConn(file)
	file.Close()
	if err != nil {
		return nil, fmt.Errorf("the file descriptor is no connected stream socket: %w", err)
	}
	stream, ok := conn.(interface {
		syscall.Conn
		CloseWrite() error
	})
	if !ok {
		conn.Close()
		return nil, fmt.Errorf("the file descriptor is a %T, not a stream socket", conn)
	}
	raw, err := stream.SyscallConn()
	if err != nil {
		conn.Close()
		return nil, err
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		// A host that vanished must not keep the connection for ever.
		tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: keepaliveIdle, Interval: keepaliveInterval})
		tcp.SetNoDelay(true)
	}
	return &local{conn: conn, raw: raw}, nil
}

// receive reads what there is: 0 bytes and no error is the end. EAGAIN comes as
// it is.
func receive(fd uintptr, p []byte) (int, error) {
	for {
		n, err := unix.Read(int(fd), p)
		switch err {
		case nil:
			return n, nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, err
		default:
			return 0, fmt.Errorf("%w: %w", errLocalReset, err)
		}
	}
}

// send writes what the socket has room for. EAGAIN comes as it is.
func send(fd uintptr, p []byte) (int, error) {
	for {
		// Not write(2), which raises SIGPIPE; the wrappers of sendmsg allocate.
		n, _, errno := unix.Syscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), unix.MSG_NOSIGNAL, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, unix.EAGAIN
		default:
			return 0, fmt.Errorf("%w: %w", errLocalReset, errno)
		}
	}
}

func (l *local) closeWrite() error {
	return l.conn.(interface{ CloseWrite() error }).CloseWrite()
}

// hungUp says whether the other end is closed for reading and writing, and
// whether that was a reset.
func hungUp(fd uintptr) (gone, reset bool) {
	fds := []unix.PollFd{{Fd: int32(fd)}} // hang-up and errors are always reported
	if n, err := unix.Poll(fds, 0); n <= 0 || err != nil {
		return false, false
	}
	reset = fds[0].Revents&unix.POLLERR != 0
	return reset || fds[0].Revents&unix.POLLHUP != 0, reset
}

// awaitHangUp waits, after the end of the bytes was read, until the other end is
// closed for writing too, and says whether that was a reset.
func (l *local) awaitHangUp() (reset bool, err error) {
	err = l.raw.Read(func(fd uintptr) (gone bool) {
		gone, reset = hungUp(fd)
		return gone
	})
	return reset, err
}

// gone says whether the other end is closed altogether.
func (l *local) gone() (gone bool) {
	l.raw.Control(func(fd uintptr) { gone, _ = hungUp(fd) })
	return gone
}

func (l *local) close() { l.conn.Close() }

// reset closes with RST where the socket has one.
func (l *local) reset() {
	if tcp, ok := l.conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	l.conn.Close()
}
