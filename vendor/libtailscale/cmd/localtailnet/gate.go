package main

import (
	"net"
	"sync"
)

// gate is a listener that can be shut and opened again on its port. While it
// is shut it keeps the port, so that no other process can take it, and resets
// every connection.
type gate struct {
	net.Listener

	mu          sync.Mutex
	shut        bool
	connections map[*gatedConnection]struct{}
}

func newGate(listener net.Listener) *gate {
	return &gate{Listener: listener, connections: map[*gatedConnection]struct{}{}}
}

func (g *gate) Accept() (net.Conn, error) {
	for {
		accepted, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		connection := &gatedConnection{Conn: accepted, gate: g}
		g.mu.Lock()
		shut := g.shut
		if !shut {
			g.connections[connection] = struct{}{}
		}
		g.mu.Unlock()
		if !shut {
			return connection, nil
		}
		connection.reset()
	}
}

// setShut shuts or opens the gate; shutting resets the open connections.
func (g *gate) setShut(shut bool) {
	g.mu.Lock()
	g.shut = shut
	var open []*gatedConnection
	if shut {
		for connection := range g.connections {
			open = append(open, connection)
		}
	}
	g.mu.Unlock()
	for _, connection := range open {
		connection.reset()
	}
}

func (g *gate) isShut() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.shut
}

type gatedConnection struct {
	net.Conn
	gate *gate
}

func (c *gatedConnection) Close() error {
	c.gate.mu.Lock()
	delete(c.gate.connections, c)
	c.gate.mu.Unlock()
	return c.Conn.Close()
}

func (c *gatedConnection) reset() {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	c.Close()
}
