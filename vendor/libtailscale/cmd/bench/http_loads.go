package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// timed collects how long exchanges took.
type timed struct {
	mu    sync.Mutex
	times []time.Duration
}

func (t *timed) add(own []time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.times = append(t.times, own...)
}

func (t *timed) outcome() outcome {
	slices.Sort(t.times)
	return outcome{Count: len(t.times), P50: milliseconds(quantile(t.times, 0.5)), P99: milliseconds(quantile(t.times, 0.99))}
}

// asker is a connection of HTTP/1.1 that one request after the other goes over.
type asker struct {
	conn    net.Conn
	reader  *bufio.Reader
	request []byte
}

func newAsker(conn net.Conn, o order, path string) *asker {
	request := fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s.%s:%d\r\n\r\n", path, o.Host, o.Domain, o.Port)
	return &asker{conn: conn, reader: bufio.NewReaderSize(conn, 64<<10), request: request}
}

// ask sends the request and reads the whole answer.
func (a *asker) ask() (int64, error) {
	if _, err := a.conn.Write(a.request); err != nil {
		return 0, err
	}
	response, err := http.ReadResponse(a.reader, nil)
	if err != nil {
		return 0, fmt.Errorf("no answer: %w", err)
	}
	defer response.Body.Close()
	bytes, err := io.Copy(io.Discard, response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("the answer is %s", response.Status)
	}
	return bytes, err
}

// greet sees a connection work: one exchange of what the order speaks.
func (c *client) greet(conn net.Conn, o order) error {
	if !o.HTTP {
		return startEcho(conn)
	}
	_, err := newAsker(conn, o, pathSmall).ask()
	return err
}

// onConnections has a worker on each of the order's connections, all of which
// are open before the first works.
func (c *client) onConnections(ctx context.Context, o order, work func(net.Conn, time.Time) error) error {
	conns := make([]net.Conn, o.Streams)
	defer func() {
		for _, conn := range conns {
			if conn != nil {
				conn.Close()
			}
		}
	}()
	err := atOnce(o.Streams, func(i int) (err error) {
		if conns[i], err = c.dial(ctx, o, nil); err != nil {
			return err
		}
		return c.greet(conns[i], o)
	})
	if err != nil {
		return err
	}
	end := time.Now().Add(seconds(o.Seconds))
	return atOnce(o.Streams, func(i int) error { return work(conns[i], end) })
}

// requests asks over kept connections of HTTP/1.1, as fast as answers come.
func (c *client) requests(ctx context.Context, o order) (outcome, error) {
	var all timed
	err := c.onConnections(ctx, o, func(conn net.Conn, end time.Time) error {
		own := newAsker(conn, o, pathSmall)
		times, err := timeUntil(end, func() error { _, err := own.ask(); return err })
		all.add(times)
		return err
	})
	return all.outcome(), err
}

// bodies fetches large bodies over kept connections.
func (c *client) bodies(ctx context.Context, o order) (outcome, error) {
	var mu sync.Mutex
	var total outcome
	err := c.onConnections(ctx, o, func(conn net.Conn, end time.Time) error {
		own := newAsker(conn, o, pathLarge)
		var bytes int64
		times, err := timeUntil(end, func() error { n, err := own.ask(); bytes += n; return err })
		mu.Lock()
		defer mu.Unlock()
		total.Bytes += bytes
		total.Count += len(times)
		return err
	})
	return total, err
}

// paced asks at a fixed rate, whatever the answers do: the time of a request
// runs from when it was due.
func (c *client) paced(ctx context.Context, o order) (outcome, error) {
	interval := time.Duration(float64(o.Streams) / o.Rate * float64(time.Second))
	var all timed
	err := c.onConnections(ctx, o, func(conn net.Conn, end time.Time) error {
		own := newAsker(conn, o, pathSmall)
		var times []time.Duration
		for due := time.Now().Add(interval); due.Before(end); due = due.Add(interval) {
			time.Sleep(time.Until(due))
			if _, err := own.ask(); err != nil {
				return err
			}
			times = append(times, time.Since(due))
		}
		all.add(times)
		return nil
	})
	return all.outcome(), err
}

// sockets exchanges single bytes on connections that became WebSockets.
func (c *client) sockets(ctx context.Context, o order) (outcome, error) {
	var all timed
	err := c.onConnections(ctx, o, func(conn net.Conn, end time.Time) error {
		request := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s.%s:%d\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
			"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", pathSocket, o.Host, o.Domain, o.Port)
		if _, err := io.WriteString(conn, request); err != nil {
			return err
		}
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return err
		}
		if response.StatusCode != http.StatusSwitchingProtocols {
			return fmt.Errorf("the answer to an upgrade is %s", response.Status)
		}
		times, err := timeEchoes(conn, end)
		all.add(times)
		return err
	})
	return all.outcome(), err
}

// http2Streams are those of each connection of HTTP/2.
const http2Streams = 8

// onStreams has http2Streams workers on each of the order's connections.
func (c *client) onStreams(ctx context.Context, o order, work func(*http.Client, time.Time) ([]time.Duration, error)) (outcome, error) {
	clients := make([]*http.Client, o.Streams)
	defer func() {
		for _, one := range clients {
			if one != nil {
				one.CloseIdleConnections()
			}
		}
	}()
	err := atOnce(o.Streams, func(i int) (err error) {
		if clients[i], err = c.http2Client(ctx, o); err != nil {
			return err
		}
		return fetch(ctx, clients[i], o)
	})
	if err != nil {
		return outcome{}, err
	}
	var all timed
	end := time.Now().Add(seconds(o.Seconds))
	err = atOnce(o.Streams*http2Streams, func(i int) error {
		times, err := work(clients[i%o.Streams], end)
		all.add(times)
		return err
	})
	return all.outcome(), err
}

// requests2 asks over HTTP/2.
func (c *client) requests2(ctx context.Context, o order) (outcome, error) {
	return c.onStreams(ctx, o, func(one *http.Client, end time.Time) ([]time.Duration, error) {
		return timeUntil(end, func() error { return fetch(ctx, one, o) })
	})
}

// calls makes one gRPC call after the other.
func (c *client) calls(ctx context.Context, o order) (outcome, error) {
	message := grpcMessage(100)
	return c.onStreams(ctx, o, func(one *http.Client, end time.Time) ([]time.Duration, error) {
		return timeUntil(end, func() error {
			response, err := call(ctx, one, o, pathUnary, bytes.NewReader(message))
			if err != nil {
				return err
			}
			defer response.Body.Close()
			answer, err := io.ReadAll(response.Body)
			if err == nil && !bytes.Equal(answer, message) {
				err = fmt.Errorf("the answer to %d bytes has %d", len(message), len(answer))
			}
			return errors.Join(err, grpcStatus(response))
		})
	})
}

// messages exchanges messages on gRPC calls that stay open.
func (c *client) messages(ctx context.Context, o order) (outcome, error) {
	message := grpcMessage(100)
	return c.onStreams(ctx, o, func(one *http.Client, end time.Time) ([]time.Duration, error) {
		questions, body := io.Pipe()
		response, err := call(ctx, one, o, pathStream, questions)
		if err != nil {
			return nil, err
		}
		defer response.Body.Close()
		answer := make([]byte, len(message))
		times, err := timeUntil(end, func() error {
			if _, err := body.Write(message); err != nil {
				return err
			}
			_, err := io.ReadFull(response.Body, answer)
			return err
		})
		if err != nil {
			return times, err
		}
		body.Close()
		_, err = io.Copy(io.Discard, response.Body)
		return times, errors.Join(err, grpcStatus(response))
	})
}

// timeUntil does something again and again, and times each.
func timeUntil(end time.Time, work func() error) ([]time.Duration, error) {
	var times []time.Duration
	for {
		start := time.Now()
		if start.After(end) {
			return times, nil
		}
		if err := work(); err != nil {
			return times, err
		}
		times = append(times, time.Since(start))
	}
}

func (o order) url(path string) string {
	return fmt.Sprintf("https://%s.%s:%d%s", o.Host, o.Domain, o.Port, path)
}

func fetch(ctx context.Context, one *http.Client, o order) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, o.url(pathSmall), nil)
	if err != nil {
		return err
	}
	response, err := one.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	n, err := io.Copy(io.Discard, response.Body)
	if err == nil && (response.StatusCode != http.StatusOK || n != smallSize) {
		err = fmt.Errorf("the answer is %s with %d bytes", response.Status, n)
	}
	return err
}

func call(ctx context.Context, one *http.Client, o order, path string, body io.Reader) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, o.url(path), body)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", grpcType)
	request.Header.Set("Te", "trailers")
	response, err := one.Do(request)
	if err == nil && response.StatusCode != http.StatusOK {
		response.Body.Close()
		err = fmt.Errorf("the answer to a call is %s", response.Status)
	}
	return response, err
}

// grpcMessage is a message of gRPC with its prefix.
func grpcMessage(size int) []byte {
	message := binary.BigEndian.AppendUint32([]byte{0}, uint32(size))
	return append(message, bytes.Repeat([]byte{'m'}, size)...)
}

// grpcStatus is known once the body has been read.
func grpcStatus(response *http.Response) error {
	status := response.Trailer.Get("Grpc-Status")
	if status == "" {
		status = response.Header.Get("Grpc-Status")
	}
	if status != "0" {
		return fmt.Errorf("the call ended with grpc-status %q", status)
	}
	return nil
}
