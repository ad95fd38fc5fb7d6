package engine

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tailway/libtailscale/engine/relay"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
)

const megabyte = 1 << 20

// send writes random bytes, closes that direction and gives their checksum.
func sendSum(t *testing.T, to *net.UnixConn, size int64) <-chan [32]byte {
	sum := make(chan [32]byte, 1)
	go func() {
		defer close(sum)
		hash := sha256.New()
		if _, err := io.CopyN(io.MultiWriter(to, hash), rand.Reader, size); err != nil {
			t.Error(err)
			return
		}
		if err := to.CloseWrite(); err != nil {
			t.Error(err)
		}
		sum <- [32]byte(hash.Sum(nil))
	}()
	return sum
}

func receiveSum(t *testing.T, from *net.UnixConn) (sum [32]byte, size int64) {
	t.Helper()
	hash := sha256.New()
	size, err := io.Copy(hash, from)
	check(t, err)
	return [32]byte(hash.Sum(nil)), size
}

func TestBytesArriveExactlyInBothDirectionsOneAfterTheOther(t *testing.T) {
	client, server := up(t, "client"), up(t, "server")
	conns := accepting(t, server)
	ours, theirs := dialed(t, client, server, conns)
	near, far := opened(t, ours), opened(t, theirs)

	// The client ends its direction before the server sends a byte, and the other
	// way round: each direction lives on without the other.
	const size = 32 * megabyte
	sent := sendSum(t, near, size)
	got, n := receiveSum(t, far)
	if want := <-sent; got != want || n != size {
		t.Fatalf("the server got %d bytes, want the %d sent", n, size)
	}
	sent = sendSum(t, far, size)
	got, n = receiveSum(t, near)
	if want := <-sent; got != want || n != size {
		t.Fatalf("the client got %d bytes, want the %d sent", n, size)
	}

	await(t, "both ends ended in order", func() bool {
		return ours.Stats().End == relay.EOF && theirs.Stats().End == relay.EOF
	})
	want := relay.Stats{Received: size, Sent: size, End: relay.EOF}
	if ours.Stats() != want || theirs.Stats() != want {
		t.Errorf("stats are %+v and %+v, want %+v", ours.Stats(), theirs.Stats(), want)
	}
}

func TestBytesArriveExactlyInBothDirectionsAtOnce(t *testing.T) {
	client, server := up(t, "client"), up(t, "server")
	conns := accepting(t, server)
	ours, theirs := dialed(t, client, server, conns)
	near, far := opened(t, ours), opened(t, theirs)

	const size = 16 * megabyte
	fromNear, fromFar := sendSum(t, near, size), sendSum(t, far, size)
	atNear := make(chan [32]byte, 1)
	go func() {
		hash := sha256.New()
		if _, err := io.Copy(hash, near); err != nil {
			t.Error(err)
		}
		atNear <- [32]byte(hash.Sum(nil))
	}()
	atFar, _ := receiveSum(t, far)
	if atFar != <-fromNear || <-atNear != <-fromFar {
		t.Error("bytes changed on the way")
	}
}

func TestASlowReaderGetsEverythingAndHoldsNoBuffer(t *testing.T) {
	client, server := up(t, "client"), up(t, "server")
	conns := accepting(t, server)
	ours, theirs := dialed(t, client, server, conns)
	near, far := opened(t, ours), opened(t, theirs)

	// More than all the buffers on the way, so that the sender stops.
	const size = 8 * megabyte
	sent := sendSum(t, near, size)
	last := uint64(0)
	await(t, "the sender stopped", func() bool {
		now := theirs.Stats().Received
		defer func() { last = now }()
		time.Sleep(50 * time.Millisecond)
		return now > 0 && now == last
	})
	if held := relay.PooledBytes(); held > relay.BufferSize {
		// The sender's side may hold the one whose rest the stack did not take.
		t.Errorf("%d bytes of buffers are taken", held)
	}
	got, n := receiveSum(t, far)
	if got != <-sent || n != size {
		t.Errorf("the slow reader got %d bytes, want the %d sent", n, size)
	}
}

func TestAResetByThePeerIsSeenBeforeTheEnd(t *testing.T) {
	client, server := up(t, "client"), up(t, "server")
	conns := accepting(t, server)
	ours, theirs := dialed(t, client, server, conns)
	near := opened(t, ours)
	exchange(t, near, opened(t, theirs))

	theirs.Abort()
	if _, err := near.Read(make([]byte, 1)); err != io.EOF && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a read says %v, want the end", err)
	}
	if end := ours.Stats().End; end != relay.PeerReset {
		t.Errorf("the end is %d once the socket shows it, want %d", end, relay.PeerReset)
	}
	if end := theirs.Stats().End; end != relay.Aborted {
		t.Errorf("the end of the aborted side is %d, want %d", end, relay.Aborted)
	}
}

func TestClosingWithUnreadBytesResetsThePeer(t *testing.T) {
	client, server := up(t, "client"), up(t, "server")
	conns := accepting(t, server)
	ours, theirs := dialed(t, client, server, conns)
	near, far := opened(t, ours), opened(t, theirs)
	exchange(t, near, far)

	_, err := near.Write([]byte("not read"))
	check(t, err)
	await(t, "the bytes arrived", func() bool { return theirs.Stats().Received > 1 })
	far.Close()
	await(t, "the reset arrived", func() bool { return ours.Stats().End == relay.PeerReset })
	if end := theirs.Stats().End; end != relay.LocalReset {
		t.Errorf("the end of the closing side is %d, want %d", end, relay.LocalReset)
	}
}

func TestAResetAfterThePeersEndIsSeen(t *testing.T) {
	client, server := up(t, "client"), up(t, "server")
	conns := accepting(t, server)
	ours, theirs := dialed(t, client, server, conns)
	near, far := opened(t, ours), opened(t, theirs)
	exchange(t, near, far)

	check(t, far.CloseWrite())
	if _, err := near.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("a read says %v, want the end", err)
	}
	theirs.Abort()
	await(t, "the reset arrived", func() bool { return ours.Stats().End == relay.PeerReset })
}

func TestClosingTheSocketEndsThePeerInOrder(t *testing.T) {
	client, server := up(t, "client"), up(t, "server")
	conns := accepting(t, server)
	ours, theirs := dialed(t, client, server, conns)
	near, far := opened(t, ours), opened(t, theirs)
	exchange(t, near, far)

	_, err := far.Write([]byte("last words"))
	check(t, err)
	check(t, far.Close())
	text, err := io.ReadAll(near)
	check(t, err)
	if string(text) != "last words" {
		t.Errorf("the peer read %q", text)
	}
	// The peer keeps its side open, which must not keep ours.
	await(t, "the closed side ended", func() bool { return theirs.Stats().End == relay.EOF })
}

// exchange moves a byte each way, so that both ends are known to work.
func exchange(t *testing.T, a, b net.Conn) {
	t.Helper()
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		_, err := way[0].Write([]byte{1})
		check(t, err)
		_, err = io.ReadFull(way[1], make([]byte, 1))
		check(t, err)
	}
}

func TestARefusedConnectionIsReset(t *testing.T) {
	client, server := up(t, "client"), up(t, "server")
	type asked struct{ src, dst netip.AddrPort }
	decisions := make(chan asked, 10)
	check(t, server.Listen(
		func(src, dst netip.AddrPort) bool {
			decisions <- asked{src, dst}
			return false
		},
		func(*Conn) { t.Error("a refused connection was accepted") },
		func() {}))
	to := netip.AddrPortFrom(addressOf(t, server), 4711)
	await(t, "the client knows the server", func() bool { return client.knows(to.String()) })
	_, err := client.Dial(withPatience(t), to.String())
	if err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("the dial says %v, want a refusal", err)
	}
	decision := <-decisions
	if decision.dst != to || decision.src.Addr() != addressOf(t, client) || decision.src.Port() == 0 {
		t.Errorf("asked about %v, want %v from the client", decision, to)
	}
}

func TestOnlyTheTailnetIsDialed(t *testing.T) {
	client := up(t, "client")
	host, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer host.Close()
	for _, address := range []string{
		host.Addr().String(), "localhost:80", "1.1.1.1:443", "[2606:4700:4700::1111]:443",
		"tailway.invalid:80", "100.100.100.100:53", "100.127.255.254:80", "no-port", ":80", "a:b:c", "client:70000", "",
	} {
		if conn, err := client.Dial(withPatience(t), address); err == nil {
			conn.Release()
			t.Errorf("dialled %q", address)
		}
	}
}

func TestNamesOfTheNetworkMapAreDialed(t *testing.T) {
	client, server := up(t, "dialer"), up(t, "dialed")
	conns := accepting(t, server)
	name := server.status.current().DNSName
	for _, host := range []string{name, name + ".", strings.ToUpper(name), strings.Split(name, ".")[0]} {
		conn := dial(t, client, host+":80")
		if got, want := conn.Destination(), netip.AddrPortFrom(addressOf(t, server), 80); got != want {
			t.Errorf("%q leads to %v, want %v", host, got, want)
		}
		if accepted := <-conns; accepted.Source() != conn.Source() {
			t.Errorf("the sources are %v and %v", accepted.Source(), conn.Source())
		}
	}
}

func TestADialEndsWithItsContext(t *testing.T) {
	client, server := up(t, "client"), up(t, "server")
	// Packets to a node that is gone are lost, nothing answers.
	to := netip.AddrPortFrom(addressOf(t, server), 80).String()
	await(t, "the client knows the server", func() bool { return client.knows(to) })
	check(t, server.Close(patience))
	ctx, cancel := contextWithTimeout(50 * time.Millisecond)
	defer cancel()
	if conn, err := client.Dial(ctx, to); err == nil {
		conn.Release()
		t.Error("dialled a node that is gone")
	}
}

func TestASpliceCarriesPrefixBytesAndHalfClose(t *testing.T) {
	client, server := up(t, "client"), up(t, "server")
	conns := accepting(t, server)
	ours, theirs := dialed(t, client, server, conns)
	near := opened(t, ours)
	backend, given := tcpPair(t)

	ended := make(chan relay.Stats, 1)
	check(t, theirs.Splice(given, []byte("prefix "), 0, func(stats relay.Stats) { ended <- stats }))
	_, err := near.Write([]byte("question"))
	check(t, err)
	check(t, near.CloseWrite())
	question, err := io.ReadAll(backend)
	check(t, err)
	if string(question) != "prefix question" {
		t.Errorf("the backend read %q", question)
	}
	_, err = backend.Write([]byte("answer"))
	check(t, err)
	check(t, backend.CloseWrite())
	answer, err := io.ReadAll(near)
	check(t, err)
	if string(answer) != "answer" {
		t.Errorf("the client read %q", answer)
	}
	want := relay.Stats{Received: 8, Sent: 6, End: relay.EOF}
	if got := <-ended; got != want {
		t.Errorf("the splice ended with %+v, want %+v", got, want)
	}
	if err := theirs.Splice(-1, nil, 0, nil); err == nil {
		t.Error("a connection was spliced twice")
	}
}

func TestAResetOfTheBackendReachesThePeer(t *testing.T) {
	client, server := up(t, "client"), up(t, "server")
	conns := accepting(t, server)
	ours, theirs := dialed(t, client, server, conns)
	near := opened(t, ours)
	backend, given := tcpPair(t)
	ended := make(chan relay.Stats, 1)
	check(t, theirs.Splice(given, nil, 0, func(stats relay.Stats) { ended <- stats }))
	exchange(t, near, backend)

	check(t, backend.SetLinger(0))
	check(t, backend.Close())
	if stats := <-ended; stats.End != relay.LocalReset {
		t.Errorf("the splice ended with %d, want %d", stats.End, relay.LocalReset)
	}
	await(t, "the reset arrived", func() bool { return ours.Stats().End == relay.PeerReset })
}

func TestAResetOfThePeerReachesTheBackend(t *testing.T) {
	client, server := up(t, "client"), up(t, "server")
	conns := accepting(t, server)
	ours, theirs := dialed(t, client, server, conns)
	near := opened(t, ours)
	backend, given := tcpPair(t)
	ended := make(chan relay.Stats, 1)
	check(t, theirs.Splice(given, nil, 0, func(stats relay.Stats) { ended <- stats }))
	exchange(t, near, backend)

	ours.Abort()
	if _, err := backend.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the backend's read says %v, want a reset", err)
	}
	if stats := <-ended; stats.End != relay.PeerReset {
		t.Errorf("the splice ended with %d, want %d", stats.End, relay.PeerReset)
	}
}

func TestAnIdleSpliceEnds(t *testing.T) {
	client, server := up(t, "client"), up(t, "server")
	conns := accepting(t, server)
	ours, theirs := dialed(t, client, server, conns)
	near := opened(t, ours)
	backend, given := tcpPair(t)
	ended := make(chan relay.Stats, 1)
	check(t, theirs.Splice(given, nil, 100*time.Millisecond, func(stats relay.Stats) { ended <- stats }))
	exchange(t, near, backend)
	if stats := <-ended; stats.End != relay.Idle {
		t.Errorf("the splice ended with %d, want %d", stats.End, relay.Idle)
	}
}

// tcpPair makes a TCP connection on loopback: one end, and the fd of the other.
func tcpPair(t *testing.T) (*net.TCPConn, int) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer listener.Close()
	there, err := net.Dial("tcp", listener.Addr().String())
	check(t, err)
	defer there.Close()
	here, err := listener.Accept()
	check(t, err)
	t.Cleanup(func() { here.Close() })
	check(t, here.SetDeadline(time.Now().Add(patience)))
	file, err := there.(*net.TCPConn).File()
	check(t, err)
	defer file.Close()
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	check(t, err)
	return here.(*net.TCPConn), fd
}

func TestConnectionsAskWhetherTheirPeerIsThere(t *testing.T) {
	client, server := up(t, "client"), up(t, "server")
	conns := accepting(t, server)
	ours, theirs := dialed(t, client, server, conns)
	for _, conn := range []*Conn{ours, theirs} {
		endpoint := conn.peer.(interface {
			GetSockOpt(tcpip.GettableSocketOption) tcpip.Error
			SocketOptions() *tcpip.SocketOptions
		})
		var idle tcpip.KeepaliveIdleOption
		var interval tcpip.KeepaliveIntervalOption
		if endpoint.GetSockOpt(&idle) != nil || endpoint.GetSockOpt(&interval) != nil {
			t.Fatal("the endpoint does not tell its keepalive")
		}
		if !endpoint.SocketOptions().GetKeepAlive() || time.Duration(idle) != time.Minute || time.Duration(interval) != 15*time.Second {
			t.Errorf("keepalive is %v after %v every %v", endpoint.SocketOptions().GetKeepAlive(), time.Duration(idle), time.Duration(interval))
		}
	}
}

func TestAResetIsToldOfAConnectionThatIsNotOpened(t *testing.T) {
	client, server := up(t, "client"), up(t, "server")
	conns := accepting(t, server)
	ours, theirs := dialed(t, client, server, conns)
	ours.Abort()
	await(t, "the reset arrived", func() bool { return theirs.Stats().End == relay.PeerReset })
	near := opened(t, theirs)
	if _, err := near.Read(make([]byte, 1)); err == nil {
		t.Error("a reset connection gave a byte")
	}
}

func TestAReleasedConnectionThatWasNotUsedIsReset(t *testing.T) {
	client, server := up(t, "client"), up(t, "server")
	conns := accepting(t, server)
	ours, theirs := dialed(t, client, server, conns)
	near := opened(t, ours)
	theirs.Release()
	if _, err := near.Read(make([]byte, 1)); err == nil {
		t.Error("a released connection gave a byte")
	}
	if end := ours.Stats().End; end != relay.PeerReset {
		t.Errorf("the end is %d, want %d", end, relay.PeerReset)
	}
	if _, err := theirs.Open(); !errors.Is(err, ErrUsed) {
		t.Errorf("opening it says %v", err)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	return len(entries)
}
