package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"tailscale.com/ipn/ipnstate"
	"tailscale.com/net/netns"
	"tailscale.com/tsnet"
	"tailscale.com/types/logger"
)

// Ports of the measured listeners on the tailnet.
const (
	portL4   = 4000
	portTLS  = 443
	portHTTP = 8443
)

// roleFlags are given to this program when it starts itself as a child.
type roleFlags struct {
	role       string
	backend    string // host:port that a peer proxies to, of its job
	dir        string // state of the node
	host       string
	controlURL string
	authKey    string
}

func (r *roleFlags) register(flags *flag.FlagSet) {
	flags.StringVar(&r.role, "role", "", "")
	flags.StringVar(&r.backend, "backend", "", "")
	flags.StringVar(&r.dir, "dir", "", "")
	flags.StringVar(&r.host, "host", "", "")
	flags.StringVar(&r.controlURL, "control-url", "", "")
	flags.StringVar(&r.authKey, "auth-key", "", "")
}

// runRole is a child's life: it prints a line when it is ready and ends with
// its stdin.
func runRole(r roleFlags) error {
	switch r.role {
	case "backend":
		return runBackend()
	case "client":
		return runClient(r)
	case "bare", "raw", "go-l4", "go-tls", "go-tls-cached", "go-http":
		return runPeer(r)
	}
	return fmt.Errorf("unknown role %q", r.role)
}

// runBackend serves uploads, downloads and echoes on a port of its own, HTTP on
// another, and prints both addresses.
func runBackend() error {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go acceptAll(listener, func(conn net.Conn) { serveBackend(conn) })
	web, err := serveHTTPBackend()
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr(), web)
	return untilStdinEnds()
}

// runPeer is a server as simple as Go allows: what tailway is compared with.
func runPeer(r roleFlags) error {
	server, status, err := joinTailnet(r)
	if err != nil {
		return err
	}
	switch r.role {
	case "raw":
		err = listenOn(server, portL4, func(conn net.Conn) { serveBackend(conn) })
	case "go-l4":
		err = listenOn(server, portL4, func(conn net.Conn) { proxy(conn, r.backend) })
	case "go-tls", "go-tls-cached":
		var config *tls.Config
		if config, err = tlsConfig(server, status, r.role == "go-tls-cached"); err != nil {
			return err
		}
		err = listenOn(server, portTLS, func(conn net.Conn) {
			secured := tls.Server(conn, config)
			if err := secured.Handshake(); err != nil {
				conn.Close()
				return
			}
			proxy(secured, r.backend)
		})
	case "go-http":
		err = serveReverseProxy(server, status, r.backend)
	}
	if err != nil {
		return err
	}
	fmt.Println("ready")
	return untilStdinEnds()
}

func joinTailnet(r roleFlags) (*tsnet.Server, *ipnstate.Status, error) {
	// Marked or bound sockets do not reach loopback.
	netns.SetEnabled(false)
	server := &tsnet.Server{
		Dir:        r.dir,
		Hostname:   r.host,
		AuthKey:    r.authKey,
		ControlURL: r.controlURL,
		Logf:       logger.Discard,
		UserLogf:   logger.Discard,
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	status, err := server.Up(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("%s cannot join the tailnet: %w", r.host, err)
	}
	return server, status, nil
}

// tlsConfig serves the node's tailnet certificate as tsnet itself would, by a
// question to the LocalAPI for each handshake, or from memory.
func tlsConfig(server *tsnet.Server, status *ipnstate.Status, cached bool) (*tls.Config, error) {
	client, err := server.LocalClient()
	if err != nil {
		return nil, err
	}
	if len(status.CertDomains) == 0 {
		return nil, errors.New("the tailnet offers no certificate name")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	// Issued before the first handshake, so that no handshake waits for it.
	certificate, key, err := client.CertPair(ctx, status.CertDomains[0])
	if err != nil {
		return nil, fmt.Errorf("no certificate for %s: %w", status.CertDomains[0], err)
	}
	if !cached {
		return &tls.Config{GetCertificate: client.GetCertificate}, nil
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}}, nil
}

func listenOn(server *tsnet.Server, port int, serve func(net.Conn)) error {
	listener, err := server.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return err
	}
	go acceptAll(listener, serve)
	return nil
}

func acceptAll(listener net.Listener, serve func(net.Conn)) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, "accept:", err)
			return
		}
		go serve(conn)
	}
}

// halfCloser is a connection whose sending side can end alone.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// proxy copies both ways until both have ended, passing on the end of each.
func proxy(accepted net.Conn, backend string) {
	defer accepted.Close()
	front, ok := accepted.(halfCloser)
	if !ok {
		fmt.Fprintf(os.Stderr, "a %T cannot be half-closed\n", accepted)
		return
	}
	dialled, err := net.Dial("tcp", backend)
	if err != nil {
		fmt.Fprintln(os.Stderr, "backend:", err)
		return
	}
	defer dialled.Close()
	back := dialled.(*net.TCPConn)
	var both sync.WaitGroup
	both.Go(func() { forward(back, front) })
	both.Go(func() { forward(front, back) })
	both.Wait()
}

// forward copies one way. After an error nothing can be delivered any more, so
// both connections end.
func forward(to, from halfCloser) {
	_, err := io.Copy(to, from)
	if err == nil {
		err = to.CloseWrite()
	}
	if err != nil {
		to.Close()
		from.Close()
	}
}

func untilStdinEnds() error {
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}
