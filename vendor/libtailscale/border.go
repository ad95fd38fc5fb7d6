package main

// #include "callbacks.h"
import "C"

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/tailway/libtailscale/engine"
)

// table maps the handles that C holds to what they stand for. A handle is never
// used twice, so that a stale one cannot hit another's object.
type table[T any] struct {
	last    atomic.Uint64
	mu      sync.RWMutex
	entries map[uint64]T
}

func (t *table[T]) add(value T) uint64 {
	handle := t.last.Add(1)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.entries == nil {
		t.entries = make(map[uint64]T)
	}
	t.entries[handle] = value
	return handle
}

func (t *table[T]) find(handle uint64) (T, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	value, ok := t.entries[handle]
	return value, ok
}

func (t *table[T]) take(handle uint64) (T, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	value, ok := t.entries[handle]
	delete(t.entries, handle)
	return value, ok
}

func (t *table[T]) size() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.entries)
}

var (
	nodes       table[*node]
	connections table[*engine.Conn]
	operations  table[context.CancelCauseFunc]
)

// errCancelled is the cause of a context that tailscale_cancel or
// tailscale_close ended, as opposed to its timeout.
var errCancelled = errors.New("cancelled")

// guard turns a panic of an export into its return code.
func guard(code *C.int) {
	if reason := recover(); reason != nil {
		*code = fail(panicked(reason))
	}
}

func panicked(reason any) error {
	emit(0, C.TAILSCALE_LOG_WARN, fmt.Sprintf("panic: %v\n%s", reason, debug.Stack()))
	return fmt.Errorf("internal error, which is a bug: %v", reason)
}

// fail keeps the text of a failure for tailscale_errmsg. It must run on the
// goroutine of the export, which has the caller's thread.
func fail(err error) C.int {
	if errors.Is(err, engine.ErrClosed) {
		return C.EBADF
	}
	text := err.Error()
	C.tw_set_error(chars(text), C.size_t(len(text)))
	return -1
}

var noChars [1]C.char

// chars lends the bytes of a string to C for the duration of one call.
func chars(text string) *C.char {
	if text == "" {
		return &noChars[0]
	}
	return (*C.char)(unsafe.Pointer(unsafe.StringData(text)))
}

// handOut copies text to memory that the caller of an export frees.
func handOut(text string, out **C.char, length *C.size_t) C.int {
	memory := C.CString(text)
	*out = memory
	*length = C.size_t(len(text))
	return 0
}

// duration of a number of milliseconds; what does not fit is for ever, which
// counts as no limit.
func duration(milliseconds C.uint64_t) time.Duration {
	if uint64(milliseconds) > math.MaxInt64/uint64(time.Millisecond) {
		return math.MaxInt64
	}
	return time.Duration(milliseconds) * time.Millisecond
}

// answer is how an operation ends, in the words of tailscale_done_fn.
func answer(ctx context.Context, err error) (status C.int, text string) {
	switch {
	case err == nil:
		return 0, ""
	case errors.Is(context.Cause(ctx), errCancelled), errors.Is(err, engine.ErrClosed):
		return C.ECANCELED, "cancelled"
	default:
		return -1, err.Error()
	}
}

// operate starts an operation of a node. run gets a context that ends with the
// timeout (0: none), with tailscale_cancel, and when the node is closed; finish
// is called exactly once, on a goroutine of its own, also after a panic of run.
func operate[T any](
	n *node, timeout C.uint64_t, op *C.tailscale_op,
	run func(context.Context) (T, error),
	finish func(status C.int, result T, text string),
) C.int {
	ctx, cancel := context.WithCancelCause(context.Background())
	if !n.begin(&cancel) {
		cancel(nil)
		return C.EBADF
	}
	handle := operations.add(cancel)
	if op != nil {
		*op = C.tailscale_op(handle)
	}
	release := func() {}
	if timeout != 0 {
		ctx, release = context.WithTimeout(ctx, duration(timeout))
	}
	go func() {
		defer n.end(&cancel)
		defer cancel(nil)
		defer release()
		result, err := sheltered(func() (T, error) { return run(ctx) })
		status, text := answer(ctx, err)
		operations.take(handle)
		finish(status, result, text)
	}()
	return 0
}

// sheltered turns a panic of run into an error.
func sheltered[T any](run func() (T, error)) (result T, err error) {
	defer func() {
		if reason := recover(); reason != nil {
			err = panicked(reason)
		}
	}()
	return run()
}

// finishText reports the end of an operation whose result is a text.
func finishText(done C.tailscale_done_fn, user unsafe.Pointer) func(C.int, string, string) {
	return func(status C.int, result, text string) {
		if status == 0 {
			text = result
		}
		C.tw_call_done(done, user, status, chars(text), C.size_t(len(text)))
	}
}

//export tailscale_cancel
func tailscale_cancel(op C.tailscale_op) (code C.int) {
	defer guard(&code)
	if cancel, ok := operations.find(uint64(op)); ok {
		cancel(errCancelled)
	}
	return 0
}
