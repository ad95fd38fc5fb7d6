package stack

import (
	"io"
	"net"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/waiter"
)

func TestTheEndpointOfGonetIsFound(t *testing.T) {
	var queue waiter.Queue
	_, found, err := endpointOf(gonet.NewTCPConn(&queue, nil))
	if err != nil || found != &queue {
		t.Errorf("found %p and %v, want %p", found, err, &queue)
	}
}

func TestAnotherConnectionThanGonetsIsRefused(t *testing.T) {
	one, other := net.Pipe()
	defer one.Close()
	defer other.Close()
	if _, _, err := endpointOf(one); err == nil {
		t.Error("took a connection that is not gVisor's")
	}
}

func TestTheDiscarderTakesWhatItIsToldAndNoMore(t *testing.T) {
	d := discarder{left: 5}
	for _, step := range []struct {
		offered, taken int
		err            error
	}{{3, 3, nil}, {2, 2, nil}, {4, 0, io.ErrShortWrite}} {
		if n, err := d.Write(make([]byte, step.offered)); n != step.taken || err != step.err {
			t.Errorf("of %d it took %d with %v", step.offered, n, err)
		}
	}
	d = discarder{left: 2}
	if n, err := d.Write(make([]byte, 3)); n != 2 || err != io.ErrShortWrite {
		t.Errorf("took %d with %v, want 2 of 3", n, err)
	}
}
