package main

// #include "callbacks.h"
import "C"

import (
	"context"
	"math"
	"time"
	"unsafe"
)

//export tailscale_listen_packet
func tailscale_listen_packet(sd C.tailscale, address C.const_chars, fd *C.int, port *C.uint16_t) (code C.int) {
	defer guard(&code)
	_, running, code := engineOf(sd)
	if code != 0 {
		return code
	}
	if address == nil || fd == nil {
		return C.EINVAL
	}
	opened, bound, err := running.ListenPacket(C.GoString(address))
	if err != nil {
		return fail(err)
	}
	*fd = C.int(opened)
	if port != nil {
		*port = C.uint16_t(bound)
	}
	return 0
}

//export tailscale_whois
func tailscale_whois(sd C.tailscale, address C.const_chars, out **C.char, length *C.size_t) (code C.int) {
	defer guard(&code)
	_, running, code := engineOf(sd)
	if code != 0 {
		return code
	}
	if address == nil || out == nil || length == nil {
		return C.EINVAL
	}
	text, err := running.WhoIs(C.GoString(address))
	if err != nil {
		return fail(err)
	}
	return handOut(text, out, length)
}

//export tailscale_look_up
func tailscale_look_up(sd C.tailscale, host C.const_chars, out **C.char, length *C.size_t) (code C.int) {
	defer guard(&code)
	_, running, code := engineOf(sd)
	if code != 0 {
		return code
	}
	if host == nil || out == nil || length == nil {
		return C.EINVAL
	}
	ip, err := running.LookUp(C.GoString(host))
	if err != nil {
		return fail(err)
	}
	return handOut(ip.String(), out, length)
}

//export tailscale_cert_pair
func tailscale_cert_pair(sd C.tailscale, domain C.const_chars, minValidityS, timeoutMS C.uint64_t, done C.tailscale_done_fn, user unsafe.Pointer, op *C.tailscale_op) (code C.int) {
	defer guard(&code)
	n, running, code := engineOf(sd)
	if code != 0 {
		return code
	}
	if domain == nil || done == nil || timeoutMS == 0 {
		return C.EINVAL
	}
	name := C.GoString(domain)
	validity := time.Duration(min(uint64(minValidityS), math.MaxInt64/uint64(time.Second))) * time.Second
	return operate(n, timeoutMS, op,
		func(ctx context.Context) (string, error) { return running.CertPair(ctx, name, validity) },
		finishText(done, user))
}

//export tailscale_metrics
func tailscale_metrics(sd C.tailscale, out **C.char, length *C.size_t) (code C.int) {
	defer guard(&code)
	_, running, code := engineOf(sd)
	if code != 0 {
		return code
	}
	if out == nil || length == nil {
		return C.EINVAL
	}
	return handOut(running.Metrics(), out, length)
}
