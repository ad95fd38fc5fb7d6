package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/tailway/libtailscale/engine/shelter"
	"golang.org/x/sys/unix"
)

// packetHeader is the size of tailscale_packet_header.
const packetHeader = 20

// PacketMax is TAILSCALE_PACKET_MAX.
const PacketMax = 65507

// ListenPacket binds a UDP port on an address of the node and gives a
// SOCK_SEQPACKET socket whose messages are datagrams behind a header.
func (n *Node) ListenPacket(address string) (fd int, port uint16, err error) {
	addr, err := netip.ParseAddrPort(address)
	if err != nil {
		return -1, 0, fmt.Errorf("%q is no ip:port", address)
	}
	if n.closing.Err() != nil {
		return -1, 0, ErrClosed
	}
	if !slices.Contains(n.status.current().IPs, addr.Addr().String()) {
		return -1, 0, fmt.Errorf("cannot bind UDP %s: the node's addresses are %s", address, strings.Join(n.status.current().IPs, " and "))
	}
	udp, err := n.stack.ListenPacket(addr)
	if err != nil {
		return -1, 0, fmt.Errorf("cannot bind UDP %s: %w", address, err)
	}
	if bound, ok := udp.LocalAddr().(*net.UDPAddr); ok {
		port = uint16(bound.Port)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		udp.Close()
		return -1, 0, err
	}
	file := os.NewFile(uintptr(pair[1]), "packets")
	local, err := net.FileConn(file)
	file.Close()
	if err != nil {
		unix.Close(pair[0])
		udp.Close()
		return -1, 0, err
	}
	n.relayPackets(udp, local)
	return pair[0], port, nil
}

// relayPackets copies until either side is closed.
func (n *Node) relayPackets(udp net.PacketConn, local net.Conn) {
	var once sync.Once
	var id uint64
	end := func() {
		once.Do(func() {
			udp.Close()
			local.Close()
			n.mu.Lock()
			delete(n.closers, id)
			n.mu.Unlock()
		})
	}
	n.mu.Lock()
	closed := n.closing.Err() != nil
	if !closed {
		n.nextClose++
		id = n.nextClose
		n.closers[id] = end
	}
	n.mu.Unlock()
	if closed {
		end()
		return
	}
	go func() {
		defer end()
		defer shelter.Recover("datagrams from the tailnet", nil)
		packetsToLocal(udp, local)
	}()
	go func() {
		defer end()
		defer shelter.Recover("datagrams to the tailnet", nil)
		packetsFromLocal(udp, local)
	}()
}

func packetsToLocal(udp net.PacketConn, local net.Conn) {
	raw, err := local.(*net.UnixConn).SyscallConn()
	if err != nil {
		return
	}
	message := make([]byte, packetHeader+PacketMax)
	for {
		size, from, err := udp.ReadFrom(message[packetHeader:])
		if err != nil {
			return
		}
		source, ok := from.(*net.UDPAddr)
		if !ok {
			continue
		}
		putHeader(message, source.AddrPort())
		var sendErr error
		err = raw.Write(func(fd uintptr) bool {
			sendErr = unix.Sendto(int(fd), message[:packetHeader+size], unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
			return true // a full socket drops the datagram, as UDP does
		})
		if err != nil || (sendErr != nil && sendErr != unix.EAGAIN && sendErr != unix.EMSGSIZE && sendErr != unix.ENOBUFS) {
			return
		}
	}
}

func packetsFromLocal(udp net.PacketConn, local net.Conn) {
	message := make([]byte, packetHeader+PacketMax)
	for {
		size, err := local.Read(message)
		if err != nil || size == 0 {
			return // a message has a header: nothing is the end
		}
		to, ok := header(message[:size])
		if !ok {
			continue
		}
		// A datagram that cannot be sent is lost, as UDP loses them.
		if _, err := udp.WriteTo(message[packetHeader:size], net.UDPAddrFromAddrPort(to)); errors.Is(err, net.ErrClosed) {
			return
		}
	}
}

func putHeader(message []byte, addr netip.AddrPort) {
	clear(message[:packetHeader])
	ip := addr.Addr().Unmap()
	binary.NativeEndian.PutUint16(message[2:], addr.Port())
	if ip.Is4() {
		message[0] = 4
	} else {
		message[0] = 6
	}
	copy(message[4:packetHeader], ip.AsSlice())
}

func header(message []byte) (netip.AddrPort, bool) {
	if len(message) < packetHeader {
		return netip.AddrPort{}, false
	}
	size := 16
	switch message[0] {
	case 4:
		size = 4
	case 6:
	default:
		return netip.AddrPort{}, false
	}
	ip, ok := netip.AddrFromSlice(message[4 : 4+size])
	return netip.AddrPortFrom(ip, binary.NativeEndian.Uint16(message[2:])), ok
}
