package relay

import (
	"sync"
	"sync/atomic"
)

// BufferSize is what one read moves at most. Larger ones gained nothing, smaller
// ones cost system calls.
const BufferSize = 128 << 10

type buffer [BufferSize]byte

var (
	pool   = sync.Pool{New: func() any { return new(buffer) }}
	pooled atomic.Int64
)

func take() *buffer {
	pooled.Add(BufferSize)
	return pool.Get().(*buffer)
}

func (b *buffer) free() {
	pooled.Add(-BufferSize)
	pool.Put(b)
}

// PooledBytes is the size of the buffers that are in use right now.
func PooledBytes() int64 { return pooled.Load() }
