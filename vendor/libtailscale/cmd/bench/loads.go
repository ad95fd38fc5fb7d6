package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"
)

// pingPong exchanges single bytes on open connections and times each.
func (c *client) pingPong(ctx context.Context, o order) (outcome, error) {
	conns := make([]net.Conn, o.Streams)
	defer func() {
		for _, conn := range conns {
			if conn != nil {
				conn.Close()
			}
		}
	}()
	// Every connection is open before the first is timed.
	err := atOnce(o.Streams, func(i int) (err error) {
		if conns[i], err = c.dial(ctx, o, nil); err != nil {
			return err
		}
		return startEcho(conns[i])
	})
	if err != nil {
		return outcome{}, err
	}
	var mu sync.Mutex
	var times []time.Duration
	end := time.Now().Add(seconds(o.Seconds))
	err = atOnce(o.Streams, func(i int) error {
		own, err := timeEchoes(conns[i], end)
		mu.Lock()
		defer mu.Unlock()
		times = append(times, own...)
		return err
	})
	if err != nil {
		return outcome{}, err
	}
	slices.Sort(times)
	return outcome{Count: len(times), P50: milliseconds(quantile(times, 0.5)), P99: milliseconds(quantile(times, 0.99))}, nil
}

func timeEchoes(conn net.Conn, end time.Time) ([]time.Duration, error) {
	var times []time.Duration
	for {
		start := time.Now()
		if start.After(end) {
			return times, nil
		}
		if _, err := conn.Write([]byte{'x'}); err != nil {
			return times, err
		}
		if err := awaitEcho(conn); err != nil {
			return times, err
		}
		times = append(times, time.Since(start))
	}
}

// churn opens, uses for one byte and closes connections as fast as it can.
func (c *client) churn(ctx context.Context, o order, resume bool) (outcome, error) {
	var total outcome
	var failure error
	var mu sync.Mutex
	end := time.Now().Add(seconds(o.Seconds))
	atOnce(o.Streams, func(int) error {
		own, err := c.churnAlone(ctx, o, resume, end)
		mu.Lock()
		defer mu.Unlock()
		total.Count += own.Count
		total.Failed += own.Failed
		total.Resumed += own.Resumed
		if err != nil {
			failure = err
		}
		return nil
	})
	const tolerated = 0.01
	if float64(total.Failed) > tolerated*float64(total.Count) {
		return total, fmt.Errorf("%d connections failed, %d did not: %w", total.Failed, total.Count, failure)
	}
	return total, nil
}

// churnAlone is one worker of churn. It has a session cache of its own, since a
// server may accept each ticket only once.
func (c *client) churnAlone(ctx context.Context, o order, resume bool, end time.Time) (outcome, error) {
	var done outcome
	var failure error
	var sessions tls.ClientSessionCache
	if resume {
		sessions = tls.NewLRUClientSessionCache(1)
	}
	for time.Now().Before(end) {
		resumed, err := c.useOnce(ctx, o, sessions)
		if err != nil {
			done.Failed++
			failure = err
			continue
		}
		done.Count++
		if resumed {
			done.Resumed++
		}
	}
	return done, failure
}

func (c *client) useOnce(ctx context.Context, o order, sessions tls.ClientSessionCache) (resumed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := c.dial(ctx, o, sessions)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	if err := c.greet(conn, o); err != nil {
		return false, err
	}
	if secured, ok := conn.(*tls.Conn); ok {
		resumed = secured.ConnectionState().DidResume
	}
	return resumed, nil
}

func milliseconds(d time.Duration) float64 { return d.Seconds() * 1000 }
