package engine

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"tailscale.com/envknob"
)

// patience bounds every wait; it only ends a test that has failed.
const patience = 60 * time.Second

// tailnet is the local tailnet that all tests share.
var tailnet struct {
	ControlURL string            `json:"control_url"`
	AdminURL   string            `json:"admin_url"`
	AuthKey    string            `json:"auth_key"`
	APIURL     string            `json:"api_url"`
	Secret     string            `json:"oauth_client_secret"`
	Domain     string            `json:"domain"`
	Env        map[string]string `json:"env"`
}

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard)
	code, err := runWithTailnet(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "cannot start the local tailnet:", err)
		code = 1
	}
	os.Exit(code)
}

// runWithTailnet runs the tests beside the program localtailnet, which
// TAILWAY_LOCALTAILNET names when it is built already.
func runWithTailnet(m *testing.M) (int, error) {
	program := os.Getenv("TAILWAY_LOCALTAILNET")
	if program == "" {
		dir, err := os.MkdirTemp("", "localtailnet-")
		if err != nil {
			return 1, err
		}
		defer os.RemoveAll(dir)
		program = filepath.Join(dir, "localtailnet")
		build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-tags", "netgo,osusergo", "-o", program, "../cmd/localtailnet")
		if output, err := build.CombinedOutput(); err != nil {
			return 1, fmt.Errorf("%w: %s", err, output)
		}
	}
	command := exec.Command(program, "-exit-with-stdin")
	stdin, err := command.StdinPipe()
	if err != nil {
		return 1, err
	}
	stdout, err := command.StdoutPipe()
	if err != nil {
		return 1, err
	}
	if err := command.Start(); err != nil {
		return 1, err
	}
	defer command.Wait()
	defer stdin.Close()
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err != nil {
		return 1, err
	}
	if err := json.Unmarshal(line, &tailnet); err != nil {
		return 1, err
	}
	for name, value := range tailnet.Env {
		envknob.Setenv(name, value)
	}
	return m.Run(), nil
}

func ask(t *testing.T, method, path string, body any) {
	t.Helper()
	askFor(t, method, path, body, nil)
}

// askFor is ask with the answer; into may be nil.
func askFor(t *testing.T, method, path string, body, into any) {
	t.Helper()
	text, err := json.Marshal(body)
	check(t, err)
	request, err := http.NewRequest(method, tailnet.AdminURL+path, bytes.NewReader(text))
	check(t, err)
	response, err := http.DefaultClient.Do(request)
	check(t, err)
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	check(t, err)
	if response.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %s: %s", method, path, response.Status, answer)
	}
	if into != nil {
		check(t, json.Unmarshal(answer, into))
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func withPatience(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func startNode(t *testing.T, change func(*Options)) *Node {
	t.Helper()
	options := Options{
		Hostname:   "node",
		Memory:     true,
		AuthKey:    tailnet.AuthKey,
		ControlURL: tailnet.ControlURL,
	}
	if change != nil {
		change(&options)
	}
	node, err := Start(options)
	check(t, err)
	t.Cleanup(func() {
		if err := node.Close(patience); err != nil && err != ErrClosed {
			t.Error(err)
		}
	})
	return node
}

// up starts a node and waits until it is usable.
func up(t *testing.T, hostname string) *Node {
	t.Helper()
	node := startNode(t, func(o *Options) { o.Hostname = hostname })
	_, err := node.Up(withPatience(t))
	check(t, err)
	return node
}

func addressOf(t *testing.T, node *Node) netip.Addr {
	t.Helper()
	ips := node.status.current().IPs
	if len(ips) == 0 {
		t.Fatal("the node has no address")
	}
	return netip.MustParseAddr(ips[0])
}

// accepting listens on every port of a node.
func accepting(t *testing.T, node *Node) <-chan *Conn {
	t.Helper()
	conns := make(chan *Conn, 2000)
	check(t, node.Listen(
		func(_, _ netip.AddrPort) bool { return true },
		func(c *Conn) { conns <- c },
		func() { close(conns) }))
	return conns
}

// dialed connects two nodes: client's end and server's.
func dialed(t *testing.T, client, server *Node, conns <-chan *Conn) (*Conn, *Conn) {
	t.Helper()
	ours := dial(t, client, netip.AddrPortFrom(addressOf(t, server), 80).String())
	select {
	case theirs := <-conns:
		return ours, theirs
	case <-time.After(patience):
		t.Fatal("the connection was not accepted")
		return nil, nil
	}
}

// dial tries again while the client has not heard of the server.
func dial(t *testing.T, client *Node, address string) *Conn {
	t.Helper()
	ctx := withPatience(t)
	for {
		conn, err := client.Dial(ctx, address)
		if err == nil {
			t.Cleanup(conn.Release)
			return conn
		}
		if ctx.Err() != nil || client.knows(address) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (n *Node) knows(address string) bool {
	_, err := n.resolve(address)
	return err == nil
}

// opened gives the fd of a connection as a net.Conn.
func opened(t *testing.T, conn *Conn) *net.UnixConn {
	t.Helper()
	fd, err := conn.Open()
	check(t, err)
	file := os.NewFile(uintptr(fd), "opened")
	defer file.Close()
	stream, err := net.FileConn(file)
	check(t, err)
	t.Cleanup(func() { stream.Close() })
	check(t, stream.SetDeadline(time.Now().Add(patience)))
	return stream.(*net.UnixConn)
}

func await(t *testing.T, what string, reached func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !reached() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
