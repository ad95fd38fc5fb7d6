package relay

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

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
	syscallConn, ok := conn.(syscall.Conn)
	if !ok {
		conn.Close()
		return nil, fmt.Errorf("the file descriptor is a %T, not a stream socket", conn)
	}
	raw, err := syscallConn.SyscallConn()
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &local{conn: conn, raw: raw}, nil
}

// read waits for bytes and takes a buffer only then; the caller frees it.
func (l *local) read() (buf *buffer, n int, err error) {
	waitErr := l.raw.Read(func(fd uintptr) bool {
		buf = take()
		for {
			n, err = unix.Read(int(fd), buf[:])
			if err != unix.EINTR {
				break
			}
		}
		if err == unix.EAGAIN {
			buf.free()
			buf = nil
			return false
		}
		return true
	})
	if waitErr != nil {
		return nil, 0, waitErr
	}
	switch {
	case err != nil:
		buf.free()
		return nil, 0, fmt.Errorf("%w: %w", errLocalReset, err)
	case n == 0:
		buf.free()
		return nil, 0, io.EOF
	}
	return buf, n, nil
}

// write writes all of p.
func (l *local) write(p []byte) error {
	_, err := l.conn.Write(p)
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("%w: %w", errLocalReset, err)
	}
	return err
}

func (l *local) closeWrite() error {
	half, ok := l.conn.(interface{ CloseWrite() error })
	if !ok {
		return nil
	}
	return half.CloseWrite()
}

// awaitHangUp waits, after the end of the bytes was read, until the other end is
// closed for writing too, and says whether that was a reset.
func (l *local) awaitHangUp() (reset bool, err error) {
	waitErr := l.raw.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd)}} // hang-up and errors are always reported
		if _, err = unix.Poll(fds, 0); err == unix.EINTR {
			err = nil
			return false
		}
		reset = fds[0].Revents&unix.POLLERR != 0
		return err != nil || fds[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
	})
	if waitErr != nil {
		return false, waitErr
	}
	return reset, err
}

func (l *local) close() { l.conn.Close() }

// reset closes with RST where the socket has one.
func (l *local) reset() {
	if tcp, ok := l.conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	l.conn.Close()
}
