package main

// #include "callbacks.h"
import "C"

import (
	"context"
	"math"
	"net/netip"
	"syscall"
	"unsafe"

	"github.com/tailway/libtailscale/engine"
	"github.com/tailway/libtailscale/engine/relay"
)

func flowOf(src, dst netip.AddrPort, peer, epoch uint64) *C.tailscale_flow {
	flow := &C.tailscale_flow{
		family:   4,
		src_port: C.uint16_t(src.Port()),
		dst_port: C.uint16_t(dst.Port()),
		node:     C.uint64_t(peer),
		epoch:    C.uint64_t(epoch),
	}
	if !src.Addr().Unmap().Is4() {
		flow.family = 6
	}
	copyAddress(&flow.src_ip, src.Addr())
	copyAddress(&flow.dst_ip, dst.Addr())
	return flow
}

func copyAddress(to *[16]C.uint8_t, ip netip.Addr) {
	for i, b := range ip.Unmap().AsSlice() {
		to[i] = C.uint8_t(b)
	}
}

func flowOfConn(conn *engine.Conn) *C.tailscale_flow {
	peer, epoch := conn.Peer()
	return flowOf(conn.Source(), conn.Destination(), peer, epoch)
}

func statsOf(stats relay.Stats) *C.tailscale_conn_stats {
	return &C.tailscale_conn_stats{
		received: C.uint64_t(stats.Received),
		sent:     C.uint64_t(stats.Sent),
		end:      C.int(stats.End),
	}
}

//export tailscale_listen
func tailscale_listen(sd C.tailscale, decide C.tailscale_decide_fn, accept C.tailscale_accept_fn, user unsafe.Pointer) (code C.int) {
	defer guard(&code)
	_, running, code := engineOf(sd)
	if code != 0 {
		return code
	}
	if decide == nil || accept == nil {
		return C.EINVAL
	}
	err := running.Listen(
		func(src, dst netip.AddrPort) bool {
			return C.tw_call_decide(decide, user, flowOf(src, dst, 0, 0)) != 0
		},
		func(conn *engine.Conn) {
			flow := flowOfConn(conn)
			C.tw_call_accept(accept, user, C.tailscale_conn(connections.add(conn)), flow)
		},
		func() { C.tw_call_accept(accept, user, 0, nil) })
	if err != nil {
		return fail(err)
	}
	return 0
}

//export tailscale_unlisten
func tailscale_unlisten(sd C.tailscale) (code C.int) {
	defer guard(&code)
	_, running, code := engineOf(sd)
	if code != 0 {
		return code
	}
	// It waits for callbacks that run, one of which may be calling this.
	go func() {
		if _, err := sheltered(func() (struct{}, error) { running.Unlisten(); return struct{}{}, nil }); err != nil {
			emit(sd, C.TAILSCALE_LOG_WARN, err.Error())
		}
	}()
	return 0
}

//export tailscale_dial
func tailscale_dial(sd C.tailscale, address C.const_chars, timeoutMS C.uint64_t, done C.tailscale_dialed_fn, user unsafe.Pointer, op *C.tailscale_op) (code C.int) {
	defer guard(&code)
	n, running, code := engineOf(sd)
	if code != 0 {
		return code
	}
	if address == nil || done == nil {
		return C.EINVAL
	}
	to := C.GoString(address)
	return operate(n, timeoutMS, op,
		func(ctx context.Context) (*engine.Conn, error) { return running.Dial(ctx, to) },
		func(status C.int, conn *engine.Conn, text string) {
			if status != 0 {
				C.tw_call_dialed(done, user, status, 0, nil, chars(text), C.size_t(len(text)))
				return
			}
			flow := flowOfConn(conn)
			C.tw_call_dialed(done, user, 0, C.tailscale_conn(connections.add(conn)), flow, chars(""), 0)
		})
}

//export tailscale_conn_fd
func tailscale_conn_fd(handle C.tailscale_conn, fd *C.int) (code C.int) {
	defer guard(&code)
	conn, ok := connections.find(uint64(handle))
	if !ok {
		return C.EBADF
	}
	if fd == nil {
		return C.EINVAL
	}
	opened, err := conn.Open()
	if err != nil {
		return fail(err)
	}
	*fd = C.int(opened)
	return 0
}

//export tailscale_conn_splice
func tailscale_conn_splice(handle C.tailscale_conn, fd C.int, prefix C.const_bytes, prefixLen C.size_t, idleTimeoutMS C.uint64_t, done C.tailscale_spliced_fn, user unsafe.Pointer) (code C.int) {
	defer guard(&code)
	if fd < 0 {
		return C.EINVAL
	}
	conn, ok := connections.find(uint64(handle))
	if !ok {
		syscall.Close(int(fd))
		return C.EBADF
	}
	if done == nil || (prefix == nil && prefixLen > 0) || uint64(prefixLen) > math.MaxInt32 {
		syscall.Close(int(fd))
		return C.EINVAL
	}
	first := C.GoBytes(unsafe.Pointer(prefix), C.int(prefixLen))
	err := conn.Splice(int(fd), first, duration(idleTimeoutMS), func(stats relay.Stats) {
		C.tw_call_spliced(done, user, statsOf(stats))
	})
	if err != nil {
		return fail(err)
	}
	return 0
}

//export tailscale_conn_abort
func tailscale_conn_abort(handle C.tailscale_conn) (code C.int) {
	defer guard(&code)
	conn, ok := connections.find(uint64(handle))
	if !ok {
		return C.EBADF
	}
	conn.Abort()
	return 0
}

//export tailscale_conn_stat
func tailscale_conn_stat(handle C.tailscale_conn, out *C.tailscale_conn_stats) (code C.int) {
	defer guard(&code)
	conn, ok := connections.find(uint64(handle))
	if !ok {
		return C.EBADF
	}
	if out == nil {
		return C.EINVAL
	}
	*out = *statsOf(conn.Stats())
	return 0
}

//export tailscale_conn_release
func tailscale_conn_release(handle C.tailscale_conn) (code C.int) {
	defer guard(&code)
	conn, ok := connections.take(uint64(handle))
	if !ok {
		return C.EBADF
	}
	conn.Release()
	return 0
}
