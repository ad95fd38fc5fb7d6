package relay

import (
	"runtime"
	"sync/atomic"
)

// A goroutine for each wake of a connection would grow its stack anew each time,
// which shows in small messages. Some wait for the next connection instead.
var (
	waking  = make(chan *arriving)
	waiting atomic.Int32
)

// launch runs a on a goroutine that waits, or on a new one. It never blocks.
func launch(a *arriving) {
	select {
	case waking <- a:
	default:
		go work(a)
	}
}

func work(a *arriving) {
	for {
		a.run()
		if waiting.Add(1) > int32(4*runtime.GOMAXPROCS(0)) {
			waiting.Add(-1)
			return
		}
		a = <-waking
		waiting.Add(-1)
	}
}
