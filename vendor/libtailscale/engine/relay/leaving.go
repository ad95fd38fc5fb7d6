package relay

import (
	"errors"
	"io"
	"time"

	"github.com/tailway/libtailscale/engine/shelter"
	"github.com/tailway/libtailscale/engine/stack"
	"golang.org/x/sys/unix"
)

// leaving moves what the local side sent to the peer.
type leaving struct {
	relay    *Relay
	writable chan struct{} // sent to when the peer takes bytes again
	err      error         // why move stopped
}

var errEnded = errors.New("the relay has ended")

func (l *leaving) init(r *Relay) {
	l.relay = r
	l.writable = make(chan struct{}, 1)
}

// wake may be called from anywhere, also under locks of the stack.
func (l *leaving) wake() {
	select {
	case l.writable <- struct{}{}:
	default:
	}
}

func (l *leaving) run() {
	r := l.relay
	defer shelter.Recover("a connection to the peer", func() { r.endWith(Aborted) })
	err := r.local.raw.Read(l.move)
	if err == nil {
		err = l.err
	}
	if !errors.Is(err, io.EOF) {
		r.fail(err)
		return
	}
	if r.peer.CloseWrite() != nil {
		r.endWith(PeerReset)
		return
	}
	r.endHalf()
	l.awaitHangUp()
}

// move runs until there is nothing more; false waits for
// bytes.
func (l *leaving) move(fd uintptr) bool {
	buf := take()
	defer buf.free()
	for {
		n, err := receive(fd, buf[:])
		switch {
		case err == unix.EAGAIN:
			return false
		case err != nil:
			l.err = err
			return true
		case n == 0:
			l.err = io.EOF
			return true
		}
		if l.err = l.deliver(buf[:n]); l.err != nil {
			return true
		}
	}
}

// deliver writes all of p. It waits while the peer takes only a part.
func (l *leaving) deliver(p []byte) error {
	r := l.relay
	for len(p) > 0 {
		n, err := r.peer.Write(p)
		if err == nil {
			p = p[n:]
			r.sent.Add(uint64(n))
			r.moved()
			continue
		}
		if !errors.Is(err, stack.ErrWouldBlock) {
			return err
		}
		if err := l.awaitRoom(); err != nil {
			return err
		}
	}
	return nil
}

// awaitRoom waits until it is worth trying again. A peer that takes nothing while
// nobody is left on the local side is given up.
func (l *leaving) awaitRoom() error {
	r := l.relay
	stall := time.NewTimer(stallCheck)
	defer stall.Stop()
	for {
		select {
		case <-l.writable:
			return nil
		case <-r.ended:
			return errEnded
		case <-stall.C:
			if r.local.gone() {
				return errLocalReset
			}
			stall.Reset(stallCheck)
		}
	}
}

// awaitHangUp waits, after the local side's FIN, until it is gone altogether. The
// peer of a socket that nobody reads any more is told so by the stack when it
// sends more, and is not kept for ever when it does not.
func (l *leaving) awaitHangUp() {
	r := l.relay
	reset, err := r.local.awaitHangUp()
	switch {
	case err != nil: // closed by endWith
	case reset || r.peer.Unread() > 0:
		r.endWith(LocalReset)
	default:
		r.endWith(EOF)
	}
}
