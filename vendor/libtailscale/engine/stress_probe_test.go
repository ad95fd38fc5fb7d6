package engine

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tailway/libtailscale/engine/relay"
)

// churn: many short connections, with random closes, must leave nothing.
func TestProbeChurn(t *testing.T) {
	if os.Getenv("PROBE") == "" { t.Skip() }
	client := up(t, "client")
	server := startNode(t, func(o *Options) { o.Hostname = "server"; o.Logf = func(_ bool, l string) { if strings.Contains(l, "CreateEndpoint") { fmt.Println(l) } } })
	_, err := server.Up(withPatience(t)); check(t, err)
	conns := accepting(t, server)
	before := Connections()
	files := openFiles(t)
	var served sync.Map
	if os.Getenv("PROBE") == "stock" {
		ln, err := server.server.Listen("tcp", ":80"); check(t, err)
		go func() { for { c, err := ln.Accept(); if err != nil { return }
			go func() { io.Copy(c, c); c.Close() }() } }()
	}
	go func() {
		for c := range conns {
			served.Store(c.Source().Port(), c)
			go func() {
				s := opened(t, c)
				n, err := io.Copy(s, s)
				served.Store(-int(c.Source().Port()), fmt.Sprint(n, err))
				s.Close()
			}()
		}
	}()
	to := netip.AddrPortFrom(addressOf(t, server), 80).String()
	await(t, "knows", func() bool { return client.knows(to) })
	start := time.Now()
	var wg sync.WaitGroup
	for w := range 32 {
		wg.Go(func() {
			for i := range 100 {
				c := dial(t, client, to)
				s := opened(t, c)
				msg := make([]byte, 1000*(w+1))
				go func() { s.Write(msg); if i%3 != 2 || os.Getenv("NOABORT") != "" { s.CloseWrite() } }()
				k := i % 3; if os.Getenv("NOABORT") != "" && k == 2 { k = 0; s.CloseWrite() }
				switch k {
				case 0, 1:
					n, err := io.Copy(io.Discard, s)
					if err != nil || int(n) != len(msg) { 
						v, _ := served.Load(c.Source().Port()); e, _ := served.Load(-int(c.Source().Port()))
						var st relay.Stats; if v != nil { st = v.(*Conn).Stats() }
						t.Errorf("%d of %d: %v mine %+v theirs %+v echo %v", n, len(msg), err, c.Stats(), st, e) }
					s.Close()
				case 2:
					io.ReadFull(s, msg[:100])
					if i%2 == 0 { c.Abort() } else { s.Close() }
				}
			}
		})
	}
	wg.Wait()
	fmt.Println("3200 connections in", time.Since(start))
	await(t, "all ended", func() bool { return Connections() == before })
	await(t, "no pooled", func() bool { return relay.PooledBytes() == 0 })
	fmt.Println("files", openFiles(t)-files)
	t0 := time.Now()
	check(t, server.Close(patience))
	check(t, client.Close(patience))
	fmt.Println("closed in", time.Since(t0))
}
