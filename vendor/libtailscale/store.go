package main

// #include "callbacks.h"
import "C"

import (
	"fmt"
	"syscall"
	"unsafe"

	"github.com/tailway/libtailscale/engine"
	"tailscale.com/ipn"
)

// callbackStore is a state store of the caller.
type callbackStore struct {
	read  C.tailscale_store_read_fn
	write C.tailscale_store_write_fn
	user  unsafe.Pointer
}

func (s *callbackStore) String() string { return "callbackStore" }

func (s *callbackStore) ReadState(key ipn.StateKey) ([]byte, error) {
	name := C.CString(string(key))
	defer C.free(unsafe.Pointer(name))
	// In C's memory: the callback stores a pointer of C's through it.
	answer := (*struct {
		value *C.char
		len   C.size_t
	})(C.calloc(1, 2*C.sizeof_size_t))
	if answer == nil {
		return nil, syscall.ENOMEM
	}
	defer C.free(unsafe.Pointer(answer))
	code := C.tw_call_store_read(s.read, s.user, name, &answer.value, &answer.len)
	if code == C.ENOENT {
		return nil, ipn.ErrStateNotExist
	}
	if code != 0 {
		return nil, fmt.Errorf("the store cannot read %q: %w", key, storeError(code))
	}
	defer C.free(unsafe.Pointer(answer.value))
	if answer.value == nil || answer.len == 0 {
		return []byte{}, nil
	}
	return append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(answer.value)), int(answer.len))...), nil
}

func (s *callbackStore) WriteState(key ipn.StateKey, value []byte) error {
	name := C.CString(string(key))
	defer C.free(unsafe.Pointer(name))
	if code := C.tw_call_store_write(s.write, s.user, name, chars(string(value)), C.size_t(len(value))); code != 0 {
		return fmt.Errorf("the store cannot write %q: %w", key, storeError(code))
	}
	return nil
}

// storeError reads what a store callback returned, an errno by custom.
func storeError(code C.int) error {
	if code > 0 {
		return syscall.Errno(code)
	}
	return fmt.Errorf("code %d", code)
}

//export tailscale_set_store
func tailscale_set_store(sd C.tailscale, read C.tailscale_store_read_fn, write C.tailscale_store_write_fn, user unsafe.Pointer) (code C.int) {
	defer guard(&code)
	if _, ok := nodeOf(sd); !ok {
		return C.EBADF
	}
	if read == nil || write == nil {
		return C.EINVAL
	}
	return option(sd, func(o *engine.Options) error {
		o.Store = &callbackStore{read: read, write: write, user: user}
		return nil
	})
}
