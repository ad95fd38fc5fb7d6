package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"tailscale.com/client/local"
	"tailscale.com/ipn/ipnstate"
	"tailscale.com/tsnet"
)

// order is a line on the client's stdin: one load to put on one server.
type order struct {
	Load    string // a key of loads
	Host    string // node name of the server
	Domain  string // of the tailnet
	Port    int
	TLS     bool
	HTTP    bool // the server speaks HTTP in TLS
	PID     int  // of the server, whose CPU time is read around the load
	Streams int  // connections at a time
	Seconds float64
	Count   int
	Rate    float64 // requests a second, of all connections together
}

// outcome is the line on stdout that answers an order.
type outcome struct {
	Error     string
	Bytes     int64
	Count     int     // exchanges or connections done
	Failed    int     // and not done
	Resumed   int     // TLS connections that resumed a session
	Elapsed   float64 // seconds
	ServerCPU float64 // seconds, of the process with the order's PID
	ClientCPU float64
	P50, P99  float64 // milliseconds
}

// client puts load on servers from a tailnet node of its own.
type client struct {
	server    *tsnet.Server
	local     *local.Client
	roots     *x509.CertPool
	addresses map[string]netip.Addr
	held      []net.Conn
	open      func(context.Context, order) (net.Conn, error) // a plain connection to a server
}

// rootsVariable holds the root of the tailnet's certificates, in PEM.
const rootsVariable = "BENCH_ROOT_CA_PEM"

func runClient(r roleFlags) error {
	server, _, err := joinTailnet(r)
	if err != nil {
		return err
	}
	localClient, err := server.LocalClient()
	if err != nil {
		return err
	}
	c := &client{server: server, local: localClient, roots: x509.NewCertPool(), addresses: map[string]netip.Addr{}}
	c.open = c.openOnTailnet
	if !c.roots.AppendCertsFromPEM([]byte(os.Getenv(rootsVariable))) {
		return fmt.Errorf("%s holds no certificate", rootsVariable)
	}
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var o order
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			return fmt.Errorf("order %q: %w", lines.Text(), err)
		}
		answer, err := json.Marshal(c.carryOut(o))
		if err != nil {
			return err
		}
		fmt.Printf("%s\n", answer)
	}
	return lines.Err()
}

// loads are what a client can be ordered to do.
var loads = map[string]func(*client, context.Context, order) (outcome, error){
	"reach":     (*client).reach,
	"upload":    func(c *client, ctx context.Context, o order) (outcome, error) { return c.transfer(ctx, o, upload) },
	"download":  func(c *client, ctx context.Context, o order) (outcome, error) { return c.transfer(ctx, o, download) },
	"echo":      (*client).pingPong,
	"connect":   func(c *client, ctx context.Context, o order) (outcome, error) { return c.churn(ctx, o, false) },
	"resume":    func(c *client, ctx context.Context, o order) (outcome, error) { return c.churn(ctx, o, true) },
	"hold":      (*client).hold,
	"requests":  (*client).requests,
	"requests2": (*client).requests2,
	"paced":     (*client).paced,
	"bodies":    (*client).bodies,
	"sockets":   (*client).sockets,
	"calls":     (*client).calls,
	"messages":  (*client).messages,
	"release":   (*client).release,
}

// graceSeconds is how much longer than its own time a load may take: a slow
// server still has a full send buffer to drain.
const graceSeconds = 30

func (c *client) carryOut(o order) outcome {
	load, ok := loads[o.Load]
	if !ok {
		return outcome{Error: "unknown load " + o.Load}
	}
	limit := time.Duration((o.Seconds + graceSeconds) * float64(time.Second))
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	serverBefore, err := cpuSeconds(o.PID)
	if err != nil {
		return outcome{Error: err.Error()}
	}
	clientBefore, err := cpuSeconds(os.Getpid())
	if err != nil {
		return outcome{Error: err.Error()}
	}
	start := time.Now()
	result, err := load(c, ctx, o)
	result.Elapsed = time.Since(start).Seconds()
	if err != nil {
		return outcome{Error: err.Error()}
	}
	serverAfter, serverErr := cpuSeconds(o.PID)
	clientAfter, clientErr := cpuSeconds(os.Getpid())
	if err := errors.Join(serverErr, clientErr); err != nil {
		return outcome{Error: err.Error()}
	}
	result.ServerCPU = serverAfter - serverBefore
	result.ClientCPU = clientAfter - clientBefore
	return result
}

// reach waits until the server answers over a direct path: bytes that a relay
// carries would measure the relay.
func (c *client) reach(ctx context.Context, o order) (outcome, error) {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	var last error
	for {
		last = c.tryReach(ctx, o)
		if last == nil {
			return outcome{}, nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return outcome{}, fmt.Errorf("%s cannot be reached: %w", o.Host, last)
		}
	}
}

func (c *client) tryReach(ctx context.Context, o order) error {
	peer, err := c.peer(ctx, o)
	if err != nil {
		return err
	}
	c.addresses[o.Host] = peer.TailscaleIPs[0]
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := c.dial(ctx, o, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := c.greet(conn, o); err != nil {
		return err
	}
	if peer, err = c.peer(ctx, o); err != nil {
		return err
	}
	if peer.CurAddr == "" {
		return errors.New("there is no direct path yet")
	}
	return nil
}

func (c *client) peer(ctx context.Context, o order) (*ipnstate.PeerStatus, error) {
	status, err := c.local.Status(ctx)
	if err != nil {
		return nil, err
	}
	for _, peer := range status.Peer {
		label, _, _ := strings.Cut(peer.DNSName, ".")
		if label == o.Host && len(peer.TailscaleIPs) > 0 {
			return peer, nil
		}
	}
	return nil, errors.New("it is not in the network map")
}

// dial connects, with a TLS handshake when the order says so. The connection's
// deadline is the context's.
func (c *client) dial(ctx context.Context, o order, sessions tls.ClientSessionCache) (net.Conn, error) {
	return c.dialWith(ctx, o, &tls.Config{ClientSessionCache: sessions})
}

// dialProtocol connects with TLS and a protocol that both sides agree on.
func (c *client) dialProtocol(ctx context.Context, o order, protocol string) (net.Conn, error) {
	conn, err := c.dialWith(ctx, o, &tls.Config{NextProtos: []string{protocol}})
	if err != nil {
		return nil, err
	}
	if secured, ok := conn.(*tls.Conn); !ok || secured.ConnectionState().NegotiatedProtocol != protocol {
		conn.Close()
		return nil, fmt.Errorf("%s does not speak %s", o.Host, protocol)
	}
	return conn, nil
}

func (c *client) dialWith(ctx context.Context, o order, config *tls.Config) (net.Conn, error) {
	conn, err := c.open(ctx, o)
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			conn.Close()
			return nil, err
		}
	}
	if !o.TLS {
		return conn, nil
	}
	config.ServerName, config.RootCAs = o.Host+"."+o.Domain, c.roots
	secured := tls.Client(conn, config)
	if err := secured.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return secured, nil
}

func (c *client) openOnTailnet(ctx context.Context, o order) (net.Conn, error) {
	address, ok := c.addresses[o.Host]
	if !ok {
		return nil, fmt.Errorf("%s was not reached before", o.Host)
	}
	return c.server.Dial(ctx, "tcp", netip.AddrPortFrom(address, uint16(o.Port)).String())
}

// transfer moves bulk data on some streams at a time.
func (c *client) transfer(ctx context.Context, o order, move func(net.Conn, time.Duration) (int64, error)) (outcome, error) {
	var total outcome
	var mu sync.Mutex
	err := atOnce(o.Streams, func(int) error {
		conn, err := c.dial(ctx, o, nil)
		if err != nil {
			return err
		}
		defer conn.Close()
		bytes, err := move(conn, seconds(o.Seconds))
		mu.Lock()
		defer mu.Unlock()
		total.Bytes += bytes
		return err
	})
	return total, err
}

// hold opens idle connections; each has exchanged one byte.
func (c *client) hold(ctx context.Context, o order) (outcome, error) {
	const openers = 16
	var mu sync.Mutex
	err := atOnce(openers, func(opener int) error {
		for range share(o.Count, openers, opener) {
			conn, err := c.dial(ctx, o, nil)
			if err != nil {
				return err
			}
			mu.Lock()
			c.held = append(c.held, conn)
			mu.Unlock()
			if err := c.greet(conn, o); err != nil {
				return err
			}
			if err := conn.SetDeadline(time.Time{}); err != nil {
				return err
			}
		}
		return nil
	})
	return outcome{Count: len(c.held)}, err
}

// release ends the held connections and waits for the server's end of each.
func (c *client) release(ctx context.Context, _ order) (outcome, error) {
	deadline, _ := ctx.Deadline()
	count := len(c.held)
	err := atOnce(count, func(i int) error {
		conn := c.held[i]
		defer conn.Close()
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
		if half, ok := conn.(halfCloser); ok {
			if err := half.CloseWrite(); err != nil {
				return err
			}
		}
		_, err := io.Copy(io.Discard, conn)
		return err
	})
	c.held = nil
	return outcome{Count: count}, err
}

// atOnce runs workers and returns the first error of any.
func atOnce(workers int, work func(worker int) error) error {
	errs := make(chan error, workers)
	for worker := range workers {
		go func() { errs <- work(worker) }()
	}
	var first error
	for range workers {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// share is the part of count that one of several workers does.
func share(count, workers, worker int) int {
	part := count / workers
	if worker < count%workers {
		part++
	}
	return part
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
