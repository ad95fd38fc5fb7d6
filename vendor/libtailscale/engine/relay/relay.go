// Package relay copies between a tailnet connection and a socket of this host.
//
// Each direction is one goroutine. It waits for bytes first and takes a buffer
// from the pool only while it has some, so an idle connection costs two parked
// goroutines and nothing else. A direction ends with its FIN, and the relay with
// the second end or the first failure.
package relay

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tailway/libtailscale/engine/stack"
)

// End says why a connection ended; the values are TAILSCALE_END_* of tailscale.h.
type End int32

const (
	Open       End = 0
	EOF        End = 1
	PeerReset  End = 2
	LocalReset End = 3
	Aborted    End = 4
	Idle       End = 5
	Closed     End = 6
)

// Stats is what a connection moved so far.
type Stats struct {
	Received uint64 // from the tailnet, delivered to the local side
	Sent     uint64 // from the local side, accepted by the tailnet's TCP
	End      End
}

// Relay is a connection being copied.
type Relay struct {
	peer  stack.Conn
	local *local

	received, sent atomic.Uint64
	end            atomic.Int32
	halves         atomic.Int32 // directions that ended in order
	ended          chan struct{}
	finish         sync.Once

	idle      time.Duration
	timer     *time.Timer
	started   time.Time
	lastMoved atomic.Int64 // nanoseconds after started

	done func(Stats)
}

// Options of a relay.
type Options struct {
	// Prefix is written to the local side first.
	Prefix []byte
	// Idle ends the relay when nothing moved for so long; 0 never does.
	Idle time.Duration
	// Done is called once, at the end. It may be nil.
	Done func(Stats)
}

// Start copies between peer and the socket fd until both ended. It owns fd, also
// when it fails; peer is the caller's again when it fails.
func Start(peer stack.Conn, fd int, options Options) (*Relay, error) {
	local, err := newLocal(fd)
	if err != nil {
		return nil, err
	}
	r := &Relay{
		peer: peer, local: local,
		ended:   make(chan struct{}),
		idle:    options.Idle,
		started: time.Now(),
		done:    options.Done,
	}
	if r.idle > 0 {
		// Armed only once r.timer is set, which checkIdle reads.
		r.timer = time.AfterFunc(time.Hour, r.checkIdle)
		r.timer.Reset(r.idle)
	}
	go r.copyFromPeer(options.Prefix)
	go r.copyToPeer()
	return r, nil
}

// Stats may be called at any time.
func (r *Relay) Stats() Stats {
	return Stats{Received: r.received.Load(), Sent: r.sent.Load(), End: End(r.end.Load())}
}

// Stop ends it at once, with a reset on both sides.
func (r *Relay) Stop(end End) { r.endWith(end) }

func (r *Relay) copyFromPeer(prefix []byte) {
	if len(prefix) > 0 {
		if err := r.local.write(prefix); err != nil {
			r.endWith(endOf(err))
			return
		}
	}
	for {
		err := r.moveFromPeer()
		switch {
		case err == nil:
		case errors.Is(err, stack.ErrWouldBlock):
			if !r.await(r.peer.Readable()) {
				return
			}
		case errors.Is(err, io.EOF):
			if r.local.closeWrite() != nil {
				r.endWith(LocalReset)
				return
			}
			r.endHalf()
			r.watchPeer()
			return
		default:
			r.endWith(endOf(err))
			return
		}
	}
}

// moveFromPeer moves what has arrived, one buffer of it at most.
func (r *Relay) moveFromPeer() error {
	buf := take()
	defer buf.free()
	for {
		n, err := r.peer.Read(buf[:])
		if err != nil {
			return err
		}
		if err := r.local.write(buf[:n]); err != nil {
			return err
		}
		r.received.Add(uint64(n))
		r.touch()
	}
}

// watchPeer waits, after the peer's FIN, for a reset that ends the other
// direction too.
func (r *Relay) watchPeer() {
	for r.await(r.peer.Readable()) {
		if r.peer.Failed() {
			r.endWith(PeerReset)
			return
		}
	}
}

func (r *Relay) copyToPeer() {
	for {
		err := r.moveToPeer()
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			if r.peer.CloseWrite() != nil {
				r.endWith(PeerReset)
				return
			}
			r.endHalf()
			r.watchLocal()
			return
		default:
			r.endWith(endOf(err))
			return
		}
	}
}

func (r *Relay) moveToPeer() error {
	buf, n, err := r.local.read()
	if err != nil {
		return err
	}
	defer buf.free()
	for rest := buf[:n]; len(rest) > 0; {
		n, err := r.peer.Write(rest)
		switch {
		case err == nil:
			rest = rest[n:]
			r.sent.Add(uint64(n))
			r.touch()
		case !errors.Is(err, stack.ErrWouldBlock):
			return err
		case !r.await(r.peer.Writable()):
			return errEnded
		}
	}
	return nil
}

// watchLocal waits, after the local side's FIN, until it is gone altogether. A
// socket nobody reads from any more ends the connection: the peer learns it from
// the stack when it sends more, and is not kept for ever when it does not.
func (r *Relay) watchLocal() {
	reset, err := r.local.awaitHangUp()
	switch {
	case err != nil: // closed by endWith
	case reset:
		r.endWith(LocalReset)
	default:
		r.endWith(EOF)
	}
}

var errEnded = errors.New("the relay has ended")

// await waits for a notification; false when the relay has ended.
func (r *Relay) await(ready <-chan struct{}) bool {
	select {
	case <-ready:
		return true
	case <-r.ended:
		return false
	}
}

func endOf(err error) End {
	switch {
	case errors.Is(err, stack.ErrReset):
		return PeerReset
	case errors.Is(err, errLocalReset):
		return LocalReset
	default:
		return Aborted // ended by another: endWith has its reason already
	}
}

// endHalf notes that one direction ended in order.
func (r *Relay) endHalf() {
	if r.halves.Add(1) == 2 {
		r.endWith(EOF)
	}
}

// endWith ends the relay once. The reason is stored before either side can see
// the end.
func (r *Relay) endWith(end End) {
	r.finish.Do(func() {
		r.end.Store(int32(end))
		if r.timer != nil {
			r.timer.Stop()
		}
		if end == EOF {
			r.peer.Close()
			r.local.close()
		} else {
			r.peer.Abort()
			r.local.reset()
		}
		close(r.ended)
		if r.done != nil {
			r.done(r.Stats())
		}
	})
}

func (r *Relay) touch() {
	if r.idle > 0 {
		r.lastMoved.Store(int64(time.Since(r.started)))
	}
}

func (r *Relay) checkIdle() {
	quiet := time.Since(r.started) - time.Duration(r.lastMoved.Load())
	if quiet < r.idle {
		r.timer.Reset(r.idle - quiet)
		return
	}
	r.endWith(Idle)
}
