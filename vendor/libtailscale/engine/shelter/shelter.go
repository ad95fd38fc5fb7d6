// Package shelter keeps a panic from ending the process, which is not ours.
package shelter

import (
	"log"
	"runtime/debug"
)

// Recover logs a panic of the goroutine that defers it, and goes on with clean,
// which may be nil.
func Recover(what string, clean func()) {
	reason := recover()
	if reason == nil {
		return
	}
	log.Printf("panic in %s: %v\n%s", what, reason, debug.Stack())
	if clean != nil {
		clean()
	}
}
