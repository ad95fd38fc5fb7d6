package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"strings"
	"unsafe"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
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
	remote, err := c.openTunnel(r)
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
		abort(remote)
		writeError(w, err)
		return
	}
	local, ok := hijacked.(*net.TCPConn)
	if !ok {
		abort(remote)
		hijacked.Close()
		return
	}
	fmt.Fprintf(local, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\nX-Local-Addr: %s\r\nX-Remote-Addr: %s\r\n\r\n",
		tunnelProtocol, remote.LocalAddr(), remote.RemoteAddr())
	bridge(local, buffered.Reader, remote)
}

func (c *clients) openTunnel(r *http.Request) (*gonet.TCPConn, error) {
	one, err := c.joined(r.Context(), r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), joinTimeout)
	defer cancel()
	connection, err := one.dial(ctx, r.URL.Query().Get("address"))
	if err != nil {
		return nil, err
	}
	remote, ok := connection.(*gonet.TCPConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("tsnet dialled a %T, not a connection of gVisor", connection), connection.Close())
	}
	return remote, nil
}

// bridge copies both ways until both have ended. The end of one direction is
// passed on as a FIN and leaves the other open; a reset is passed on as a
// reset and ends both.
func bridge(local *net.TCPConn, localReader *bufio.Reader, remote *gonet.TCPConn) {
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, err := io.Copy(remote, localReader)
		if err == nil {
			err = remote.CloseWrite()
		}
		if err != nil {
			abort(remote)
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

// abort ends a connection with RST, for which gonet has no method: the
// endpoint that can is in a private field. Should that field change, the
// connection ends with FIN, and a test fails.
func abort(connection *gonet.TCPConn) {
	field := reflect.ValueOf(connection).Elem().FieldByName("ep")
	if field.IsValid() && field.Type() == reflect.TypeFor[tcpip.Endpoint]() {
		// The field is addressable, since it was reached through a pointer,
		// and its type was checked.
		(*(*tcpip.Endpoint)(unsafe.Pointer(field.UnsafeAddr()))).Abort()
	}
	connection.Close()
}
