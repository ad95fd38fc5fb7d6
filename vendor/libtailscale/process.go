package main

// #include "callbacks.h"
import "C"

import (
	"errors"
	"fmt"
	"log"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/tailway/libtailscale/engine"
	"github.com/tailway/libtailscale/engine/relay"
	visor "gvisor.dev/gvisor/pkg/log"
	tailscaleroot "tailscale.com"
	"tailscale.com/envknob"
)

// sink is where log lines go.
type sink struct {
	fn   C.tailscale_log_fn
	user unsafe.Pointer
}

var currentSink atomic.Pointer[sink]

func emit(sd C.tailscale, level C.int, line string) {
	if s := currentSink.Load(); s != nil {
		C.tw_call_log(s.fn, s.user, sd, level, chars(line), C.size_t(len(line)))
	}
}

// lines passes on what is written to it, a line at a time as loggers do.
type lines struct{ level C.int }

func (l lines) Write(text []byte) (int, error) {
	if refusing.Load() && strings.HasPrefix(string(text), "invalid ") {
		// envknob is about to end the process: see setKnob.
		panic(errKnob)
	}
	level := l.level
	if strings.HasPrefix(string(text), "panic") {
		level = C.TAILSCALE_LOG_WARN
	}
	emit(0, level, strings.TrimRight(string(text), "\n"))
	return len(text), nil
}

func init() {
	// stderr is the process's, not ours: nothing is written there.
	log.SetFlags(0)
	log.SetOutput(lines{level: C.TAILSCALE_LOG_INFO})
	visor.SetTarget(visor.GoogleEmitter{Writer: &visor.Writer{Next: lines{level: C.TAILSCALE_LOG_DEBUG}}})
}

//export tailscale_set_log
func tailscale_set_log(fn C.tailscale_log_fn, user unsafe.Pointer) (code C.int) {
	defer guard(&code)
	if fn == nil {
		currentSink.Store(nil)
	} else {
		currentSink.Store(&sink{fn: fn, user: user})
	}
	return 0
}

var (
	settingKnob sync.Mutex
	refusing    atomic.Bool
	errKnob     = errors.New("the value cannot be parsed")
)

// setKnob sets a variable. A knob that cannot parse its value logs that and ends
// the process; the log's writer stops it before, and the old value comes back.
func setKnob(name, value string) (err error) {
	settingKnob.Lock()
	defer settingKnob.Unlock()
	before, existed := os.LookupEnv(name)
	refusing.Store(true)
	defer func() {
		refusing.Store(false)
		if reason := recover(); reason != nil {
			os.Unsetenv(name)
			if existed {
				os.Setenv(name, before)
			}
			err = fmt.Errorf("cannot set %s to %q: %v", name, value, reason)
		}
	}()
	envknob.Setenv(name, value)
	return nil
}

//export tailscale_setenv
func tailscale_setenv(name, value C.const_chars) (code C.int) {
	defer guard(&code)
	if name == nil || value == nil {
		return C.EINVAL
	}
	key := C.GoString(name)
	if key == "" || strings.Contains(key, "=") {
		return C.EINVAL
	}
	if err := setKnob(key, C.GoString(value)); err != nil {
		return fail(err)
	}
	return 0
}

//export tailscale_set_memory
func tailscale_set_memory(limitBytes C.int64_t, gcPercent C.int) (code C.int) {
	defer guard(&code)
	if limitBytes > 0 {
		debug.SetMemoryLimit(int64(limitBytes))
	}
	if gcPercent >= 0 {
		debug.SetGCPercent(int(min(int64(gcPercent), math.MaxInt32)))
	}
	return 0
}

// version is kept for ever: callers hold on to the pointer.
var version = sync.OnceValue(func() C.const_chars {
	return C.const_chars(C.CString(strings.TrimSpace(tailscaleroot.VersionDotTxt)))
})

//export tailscale_version
func tailscale_version() C.const_chars { return version() }

//export tailscale_count
func tailscale_count(out *C.tailscale_counts) (code C.int) {
	defer guard(&code)
	if out == nil {
		return C.EINVAL
	}
	// Unlike runtime.ReadMemStats this does not stop the world.
	heap := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(heap)
	*out = C.tailscale_counts{
		connections:  C.uint64_t(engine.Connections()),
		handles:      C.uint64_t(connections.size()),
		operations:   C.uint64_t(operations.size()),
		goroutines:   C.uint64_t(runtime.NumGoroutine()),
		heap_bytes:   C.uint64_t(heap[0].Value.Uint64()),
		pooled_bytes: C.uint64_t(relay.PooledBytes()),
	}
	return 0
}
