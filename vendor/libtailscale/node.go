package main

// #include "callbacks.h"
import "C"

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/tailway/libtailscale/engine"
)

// node is what a `tailscale` handle stands for: options until it is started, then
// the engine's node.
type node struct {
	sd C.tailscale

	// starting is held while the engine starts, which takes its time, so that mu
	// never is.
	starting sync.Mutex

	mu         sync.Mutex
	options    engine.Options
	running    *engine.Node
	closed     bool
	operations map[*context.CancelCauseFunc]struct{}
	pending    sync.WaitGroup // operations whose callback has not returned
}

var (
	errStarted    = errors.New("options are set before tailscale_start")
	errNotStarted = errors.New("the node is not started: call tailscale_start or tailscale_up first")
)

func nodeOf(sd C.tailscale) (*node, bool) {
	if sd <= 0 {
		return nil, false
	}
	return nodes.find(uint64(sd))
}

// option changes an option of a node that is not started.
func option(sd C.tailscale, set func(*engine.Options) error) C.int {
	n, ok := nodeOf(sd)
	if !ok {
		return C.EBADF
	}
	n.starting.Lock()
	defer n.starting.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.running != nil {
		return fail(errStarted)
	}
	if err := set(&n.options); err != nil {
		return fail(err)
	}
	return 0
}

func textOption(sd C.tailscale, value C.const_chars, set func(*engine.Options, string) error) C.int {
	if _, ok := nodeOf(sd); !ok {
		return C.EBADF
	}
	if value == nil {
		return C.EINVAL
	}
	text := C.GoString(value)
	return option(sd, func(o *engine.Options) error { return set(o, text) })
}

// start starts the engine unless it runs already.
func (n *node) start() (*engine.Node, error) {
	n.starting.Lock()
	defer n.starting.Unlock()
	n.mu.Lock()
	running, closed, options := n.running, n.closed, n.options
	n.mu.Unlock()
	switch {
	case closed:
		return nil, engine.ErrClosed
	case running != nil:
		return running, nil
	}
	running, err := engine.Start(options)
	if err != nil {
		return nil, fmt.Errorf("cannot start the node: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.running = running
	return running, nil
}

// engineOf finds the running engine of a handle; code is not 0 when there is none.
func engineOf(sd C.tailscale) (n *node, running *engine.Node, code C.int) {
	n, ok := nodeOf(sd)
	if !ok {
		return nil, nil, C.EBADF
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.running == nil {
		return nil, nil, fail(errNotStarted)
	}
	return n, n.running, 0
}

// begin enters an operation, which close cancels and waits for.
func (n *node) begin(cancel *context.CancelCauseFunc) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return false
	}
	if n.operations == nil {
		n.operations = make(map[*context.CancelCauseFunc]struct{})
	}
	n.operations[cancel] = struct{}{}
	n.pending.Add(1)
	return true
}

func (n *node) end(cancel *context.CancelCauseFunc) {
	n.mu.Lock()
	delete(n.operations, cancel)
	n.mu.Unlock()
	n.pending.Done()
}

// close ends the operations and then the engine.
func (n *node) close(timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	n.mu.Lock()
	n.closed = true
	for cancel := range n.operations {
		(*cancel)(errCancelled)
	}
	n.mu.Unlock()

	// A start under way ends first: the engine cannot be closed beside it.
	n.starting.Lock()
	defer n.starting.Unlock()
	n.mu.Lock()
	running := n.running
	n.mu.Unlock()
	if running != nil {
		if err := running.Close(max(time.Until(deadline), time.Millisecond)); err != nil {
			return err
		}
	}
	n.pending.Wait()
	return nil
}

//export tailscale_new
func tailscale_new() C.tailscale {
	n := &node{}
	n.options.Logf = func(user bool, line string) {
		level := C.int(C.TAILSCALE_LOG_DEBUG)
		switch {
		case user:
			level = C.TAILSCALE_LOG_INFO
		case strings.HasPrefix(line, "health(warnable=") && strings.Contains(line, "): error: "):
			level = C.TAILSCALE_LOG_WARN
		}
		emit(n.sd, level, line)
	}
	// Nobody has the handle before this returns.
	n.sd = C.tailscale(nodes.add(n))
	return n.sd
}

//export tailscale_set_dir
func tailscale_set_dir(sd C.tailscale, dir C.const_chars) (code C.int) {
	defer guard(&code)
	return textOption(sd, dir, func(o *engine.Options, text string) error {
		o.Dir = text
		return nil
	})
}

//export tailscale_set_memory_store
func tailscale_set_memory_store(sd C.tailscale) (code C.int) {
	defer guard(&code)
	return option(sd, func(o *engine.Options) error {
		o.Memory = true
		return nil
	})
}

//export tailscale_set_hostname
func tailscale_set_hostname(sd C.tailscale, hostname C.const_chars) (code C.int) {
	defer guard(&code)
	return textOption(sd, hostname, func(o *engine.Options, text string) error {
		o.Hostname = text
		return nil
	})
}

//export tailscale_set_authkey
func tailscale_set_authkey(sd C.tailscale, key C.const_chars) (code C.int) {
	defer guard(&code)
	return textOption(sd, key, func(o *engine.Options, text string) error {
		o.AuthKey = text
		return nil
	})
}

//export tailscale_set_client_secret
func tailscale_set_client_secret(sd C.tailscale, secret C.const_chars) (code C.int) {
	defer guard(&code)
	return textOption(sd, secret, func(o *engine.Options, text string) error {
		o.ClientSecret = text
		return nil
	})
}

//export tailscale_set_tags
func tailscale_set_tags(sd C.tailscale, tags C.const_chars) (code C.int) {
	defer guard(&code)
	return textOption(sd, tags, func(o *engine.Options, text string) (err error) {
		o.Tags, err = engine.ParseTags(text)
		return err
	})
}

//export tailscale_set_ephemeral
func tailscale_set_ephemeral(sd C.tailscale, ephemeral C.int) (code C.int) {
	defer guard(&code)
	return option(sd, func(o *engine.Options) error {
		o.Ephemeral = ephemeral != 0
		return nil
	})
}

//export tailscale_set_control_url
func tailscale_set_control_url(sd C.tailscale, url C.const_chars) (code C.int) {
	defer guard(&code)
	return textOption(sd, url, func(o *engine.Options, text string) error {
		o.ControlURL = text
		return nil
	})
}

//export tailscale_set_port
func tailscale_set_port(sd C.tailscale, port C.uint16_t) (code C.int) {
	defer guard(&code)
	return option(sd, func(o *engine.Options) error {
		o.Port = uint16(port)
		return nil
	})
}

//export tailscale_set_tcp_buffers
func tailscale_set_tcp_buffers(sd C.tailscale, receiveMax, sendMax C.uint32_t) (code C.int) {
	defer guard(&code)
	return option(sd, func(o *engine.Options) error {
		o.ReceiveMax, o.SendMax = int(receiveMax), int(sendMax)
		return nil
	})
}

//export tailscale_start
func tailscale_start(sd C.tailscale) (code C.int) {
	defer guard(&code)
	n, ok := nodeOf(sd)
	if !ok {
		return C.EBADF
	}
	if _, err := n.start(); err != nil {
		return fail(err)
	}
	return 0
}

//export tailscale_up
func tailscale_up(sd C.tailscale, timeoutMS C.uint64_t, done C.tailscale_done_fn, user unsafe.Pointer, op *C.tailscale_op) (code C.int) {
	defer guard(&code)
	n, ok := nodeOf(sd)
	if !ok {
		return C.EBADF
	}
	if done == nil {
		return C.EINVAL
	}
	return operate(n, timeoutMS, op, n.up, finishText(done, user))
}

func (n *node) up(ctx context.Context) (string, error) {
	// Starting cannot be interrupted, and may ask an OAuth server for a key: the
	// operation does not wait for it longer than it may.
	type outcome struct {
		running *engine.Node
		err     error
	}
	started := make(chan outcome, 1)
	go func() {
		running, err := sheltered(n.start)
		started <- outcome{running, err}
	}()
	select {
	case result := <-started:
		if result.err != nil {
			return "", result.err
		}
		return result.running.Up(ctx)
	case <-ctx.Done():
		return "", fmt.Errorf("the node has not started: %w", ctx.Err())
	}
}

//export tailscale_close
func tailscale_close(sd C.tailscale, timeoutMS C.uint64_t, done C.tailscale_done_fn, user unsafe.Pointer) (code C.int) {
	defer guard(&code)
	if _, ok := nodeOf(sd); !ok {
		return C.EBADF
	}
	n, ok := nodes.take(uint64(sd))
	if !ok {
		return C.EBADF
	}
	handle := operations.add(func(error) {}) // counted; closing cannot be cancelled
	go func() {
		timeout := duration(timeoutMS)
		if timeout == 0 {
			timeout = defaultCloseTimeout
		}
		_, err := sheltered(func() (struct{}, error) { return struct{}{}, n.closeWithin(timeout) })
		operations.take(handle)
		if done == nil {
			return
		}
		if err != nil {
			text := err.Error()
			C.tw_call_done(done, user, -1, chars(text), C.size_t(len(text)))
			return
		}
		C.tw_call_done(done, user, 0, chars(""), 0)
	}()
	return 0
}

// defaultCloseTimeout is that of a close without one.
const defaultCloseTimeout = 10 * time.Second

// closeWithin gives up at the timeout, also when a start under way or a callback
// of the caller does not return.
func (n *node) closeWithin(timeout time.Duration) error {
	ended := make(chan error, 1)
	go func() {
		_, err := sheltered(func() (struct{}, error) { return struct{}{}, n.close(timeout) })
		ended <- err
	}()
	// The engine keeps the timeout itself; this is for what is around it.
	timer := time.NewTimer(timeout + time.Second)
	defer timer.Stop()
	select {
	case err := <-ended:
		return err
	case <-timer.C:
		return fmt.Errorf("the node did not end within %v", timeout)
	}
}

//export tailscale_status
func tailscale_status(sd C.tailscale, out **C.char, length *C.size_t) (code C.int) {
	defer guard(&code)
	_, running, code := engineOf(sd)
	if code != 0 {
		return code
	}
	if out == nil || length == nil {
		return C.EINVAL
	}
	return handOut(running.Status(), out, length)
}

//export tailscale_watch
func tailscale_watch(sd C.tailscale, fn C.tailscale_done_fn, user unsafe.Pointer, op *C.tailscale_op) (code C.int) {
	defer guard(&code)
	n, running, code := engineOf(sd)
	if code != 0 {
		return code
	}
	if fn == nil {
		return C.EINVAL
	}
	return operate(n, 0, op,
		func(ctx context.Context) (string, error) {
			err := running.Watch(ctx, func(status string) {
				C.tw_call_done(fn, user, 0, chars(status), C.size_t(len(status)))
			})
			if err == nil { // its end is never a success
				err = engine.ErrClosed
			}
			return "", err
		},
		finishText(fn, user))
}
