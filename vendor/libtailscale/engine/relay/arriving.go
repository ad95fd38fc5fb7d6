package relay

import (
	"errors"
	"io"
	"sync/atomic"

	"github.com/tailway/libtailscale/engine/shelter"
	"github.com/tailway/libtailscale/engine/stack"
	"golang.org/x/sys/unix"
)

// States of the arriving direction.
const (
	asleep int32 = iota // nothing to do until the stack wakes it
	awake               // a goroutine moves bytes
	again               // and was woken meanwhile
)

// arriving moves what the peer sent to the socket. Bytes stay in the stack until
// the socket took them: a slow reader closes the peer's window and holds no
// buffer of ours.
type arriving struct {
	relay  *Relay
	state  atomic.Int32
	step   func(fd uintptr) bool // moves, bound once so that it is not allocated each time
	prefix []byte
	ended  bool // the peer's FIN was carried over

	err error // why step stopped: what the stack or the socket said
}

func (a *arriving) init(r *Relay, prefix []byte) {
	a.relay = r
	a.prefix = prefix
	a.step = a.move
}

// wake may be called from anywhere, also under locks of the stack.
func (a *arriving) wake() {
	for {
		switch state := a.state.Load(); state {
		case asleep:
			if a.state.CompareAndSwap(asleep, awake) {
				launch(a)
				return
			}
		case awake:
			if a.state.CompareAndSwap(awake, again) {
				return
			}
		default:
			return
		}
	}
}

func (a *arriving) run() {
	defer shelter.Recover("a connection from the peer", func() { a.relay.endWith(Aborted) })
	for {
		if !a.round() {
			return // stays awake for ever: no goroutine is to follow
		}
		if a.state.CompareAndSwap(awake, asleep) {
			return
		}
		a.state.Store(awake)
	}
}

// round moves what there is; false says that the relay has ended.
func (a *arriving) round() bool {
	r := a.relay
	if End(r.end.Load()) != Open {
		return false
	}
	if a.ended {
		// Only a failure can follow the peer's FIN.
		if r.peer.Failed() {
			r.endWith(PeerReset)
			return false
		}
		return true
	}
	a.err = nil
	if err := r.local.raw.Write(a.step); err != nil {
		r.fail(err)
		return false
	}
	switch {
	case errors.Is(a.err, stack.ErrWouldBlock):
		return true
	case errors.Is(a.err, io.EOF):
		a.ended = true
		if r.local.closeWrite() != nil {
			r.endWith(LocalReset)
			return false
		}
		r.endHalf()
		return true
	default:
		r.fail(a.err)
		return false
	}
}

// move runs until there is nothing more or the socket is full; false waits for
// room in it.
func (a *arriving) move(fd uintptr) bool {
	for len(a.prefix) > 0 {
		n, err := send(fd, a.prefix)
		a.prefix = a.prefix[n:]
		if err != nil {
			a.err = err
			return err != unix.EAGAIN
		}
	}
	a.prefix = nil
	buf := take()
	defer buf.free()
	for {
		available, err := a.relay.peer.Peek(buf[:])
		if err != nil {
			a.err = err
			return true
		}
		sent, err := 0, error(nil)
		for sent < available && err == nil {
			var n int
			n, err = send(fd, buf[sent:available])
			sent += n
		}
		if sent > 0 {
			a.relay.peer.Discard(sent)
			a.relay.received.Add(uint64(sent))
			a.relay.moved()
		}
		if err != nil {
			a.err = err
			return err != unix.EAGAIN
		}
	}
}
