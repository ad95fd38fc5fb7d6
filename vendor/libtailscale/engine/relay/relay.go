// Package relay copies between a tailnet connection and a socket of this host.
//
//	tailnet peer ──► stack ──► arriving ──► socket
//	tailnet peer ◄── stack ◄── leaving  ◄── socket
//
// The arriving direction runs only while there is something to move: the stack
// wakes it. The leaving one is a goroutine that the netpoller parks. Both take a
// buffer when they have bytes and give it back when they have none, so that an
// idle connection costs one parked goroutine. A direction ends with its FIN, the
// relay with the second end or the first failure.
package relay

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tailway/libtailscale/engine/shelter"
	"github.com/tailway/libtailscale/engine/stack"
)

const (
	// keepaliveIdle and keepaliveInterval are those of spliced TCP sockets.
	keepaliveIdle     = 60 * time.Second
	keepaliveInterval = 15 * time.Second
	// stallCheck is how often a connection whose peer takes nothing looks whether
	// there is still somebody on the local side.
	stallCheck = 5 * time.Minute
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

	arriving arriving
	leaving  leaving

	received, sent atomic.Uint64
	end            atomic.Int32
	halves         atomic.Int32 // directions that ended in order
	ended          chan struct{}

	idle *idleTimer // nil without a timeout
	done func(Stats)
}

// Options of a relay.
type Options struct {
	// Prefix is written to the local side first, and not counted.
	Prefix []byte
	// Idle ends the relay when nothing moved for so long; 0 never does.
	Idle time.Duration
	// Done is called once, at the end, on a goroutine of the relay. It may be nil.
	Done func(Stats)
}

// Start copies between peer and the socket fd until both ended. It owns fd, also
// when it fails; peer is the caller's again when it fails.
func Start(peer stack.Conn, fd int, options Options) (*Relay, error) {
	local, err := newLocal(fd)
	if err != nil {
		return nil, err
	}
	r := &Relay{peer: peer, local: local, ended: make(chan struct{}), done: options.Done}
	if options.Idle > 0 {
		r.idle = newIdleTimer(options.Idle, func() { r.endWith(Idle) })
	}
	r.arriving.init(r, options.Prefix)
	r.leaving.init(r)
	peer.Notify(r.arriving.wake, r.leaving.wake)
	r.arriving.wake() // for what arrived before
	go r.leaving.run()
	return r, nil
}

// Stats may be called at any time.
func (r *Relay) Stats() Stats {
	// The end is read first: an ended relay moves nothing more.
	end := End(r.end.Load())
	return Stats{Received: r.received.Load(), Sent: r.sent.Load(), End: end}
}

// Stop ends it at once, with a reset on both sides.
func (r *Relay) Stop(end End) { r.endWith(end) }

// endHalf notes that one direction ended in order.
func (r *Relay) endHalf() {
	if r.halves.Add(1) == 2 {
		r.endWith(EOF)
	}
}

// endWith ends the relay once. The reason is stored before either side can see
// the end. It must not run inside a callback of the socket's RawConn: closing the
// socket waits for those.
func (r *Relay) endWith(end End) {
	if !r.end.CompareAndSwap(int32(Open), int32(end)) {
		return
	}
	close(r.ended)
	if r.idle != nil {
		r.idle.stop()
	}
	if end == EOF {
		r.peer.Close()
		r.local.close()
	} else {
		r.peer.Abort()
		r.local.reset()
	}
	if r.done != nil {
		// The caller may hold locks that its callback wants.
		go func() {
			defer shelter.Recover("the end of a connection", nil)
			r.done(r.Stats())
		}()
	}
}

// fail ends the relay for what stopped a direction.
func (r *Relay) fail(err error) {
	switch {
	case errors.Is(err, stack.ErrReset):
		r.endWith(PeerReset)
	case errors.Is(err, errLocalReset):
		r.endWith(LocalReset)
	default:
		// The socket was closed, by an end that has its reason already.
		r.endWith(Aborted)
	}
}

func (r *Relay) moved() {
	if r.idle != nil {
		r.idle.touch()
	}
}

// idleTimer calls once nothing was touched for a time.
type idleTimer struct {
	after   time.Duration
	started time.Time
	last    atomic.Int64 // nanoseconds after started

	mu      sync.Mutex
	timer   *time.Timer
	stopped bool
}

func newIdleTimer(after time.Duration, call func()) *idleTimer {
	t := &idleTimer{after: after, started: time.Now()}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.timer = time.AfterFunc(after, func() {
		if t.expired() {
			call()
		}
	})
	return t
}

func (t *idleTimer) touch() { t.last.Store(int64(time.Since(t.started))) }

// expired says whether it was idle for long enough, and waits on when not.
func (t *idleTimer) expired() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stopped {
		return false
	}
	quiet := time.Since(t.started) - time.Duration(t.last.Load())
	if quiet < t.after {
		t.timer.Reset(t.after - quiet)
		return false
	}
	return true
}

func (t *idleTimer) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopped = true
	t.timer.Stop()
}
