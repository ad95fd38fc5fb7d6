package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"

	"github.com/tailway/libtailscale/engine/stack"
)

// tunnelProtocol is what a request for a tunnel upgrades to.
const tunnelProtocol = "tailnet-tcp"

// serveTunnel upgrades the request to the bytes of a TCP connection over the
// tailnet. The connection is made first, so a failure is an HTTP error.
func (c *clients) serveTunnel(w http.ResponseWriter, r *http.Request) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), tunnelProtocol) {
		w.Header().Set("Upgrade", tunnelProtocol)
		writeError(w, refuse(http.StatusUpgradeRequired, "want the headers Connection: Upgrade and Upgrade: %s", tunnelProtocol))
		return
	}
	remote, err := c.openStream(r)
	if err != nil {
		var refusal *adminError
		if !errors.As(err, &refusal) {
			err = refuse(http.StatusBadGateway, "%v", err)
		}
		writeError(w, err)
		return
	}
	hijacked, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		remote.Abort()
		writeError(w, err)
		return
	}
	local, ok := hijacked.(*net.TCPConn)
	if !ok {
		remote.Abort()
		hijacked.Close()
		return
	}
	fmt.Fprintf(local, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\nX-Local-Addr: %s\r\nX-Remote-Addr: %s\r\n\r\n",
		tunnelProtocol, remote.Source(), remote.Destination())
	bridge(local, buffered.Reader, remote)
}

func (c *clients) openStream(r *http.Request) (*stream, error) {
	one, err := c.joined(r.Context(), r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), joinTimeout)
	defer cancel()
	address := r.URL.Query().Get("address")
	target, err := one.target(ctx, address)
	if err != nil {
		return nil, err
	}
	network, err := stack.NewNetstack(one.server)
	if err != nil {
		return nil, err
	}
	connection, err := network.Dial(ctx, target)
	if err != nil {
		return nil, fmt.Errorf("dial %s (%s): %w", address, target, err)
	}
	return &stream{Conn: connection, ended: make(chan struct{})}, nil
}

// bridge copies both ways until both have ended. The end of one direction is
// passed on as a FIN and leaves the other open; a reset is passed on as a
// reset and ends both.
func bridge(local *net.TCPConn, localReader *bufio.Reader, remote *stream) {
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, err := io.Copy(remote, localReader)
		if err == nil {
			err = remote.CloseWrite()
		}
		if err != nil {
			remote.Abort()
		}
	}()
	_, err := io.Copy(local, remote)
	if err == nil {
		err = local.CloseWrite()
	}
	if err != nil {
		local.SetLinger(0)
		local.Close()
	}
	<-sent
	remote.Close()
	local.Close()
}

// stream makes a connection of the stack block.
type stream struct {
	stack.Conn
	once  sync.Once
	ended chan struct{} // closed by Close and Abort
}

func (s *stream) Read(p []byte) (int, error) {
	for {
		n, err := s.Conn.Read(p)
		if !errors.Is(err, stack.ErrWouldBlock) {
			return n, err
		}
		select {
		case <-s.Readable():
		case <-s.ended:
			return 0, net.ErrClosed
		}
	}
}

func (s *stream) Write(p []byte) (int, error) {
	written := 0
	for written < len(p) {
		n, err := s.Conn.Write(p[written:])
		written += n
		if err == nil {
			continue
		}
		if !errors.Is(err, stack.ErrWouldBlock) {
			return written, err
		}
		select {
		case <-s.Writable():
		case <-s.ended:
			return written, net.ErrClosed
		}
	}
	return written, nil
}

func (s *stream) Close() {
	s.once.Do(func() {
		close(s.ended)
		s.Conn.Close()
	})
}

func (s *stream) Abort() {
	s.once.Do(func() {
		close(s.ended)
		s.Conn.Abort()
	})
}
