package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"time"
)

// bench is one run.
type bench struct {
	options    options
	self       string // this program, which is every child but tailway, tailscaled and localtailnet
	children   *children
	tailnet    *tailnet
	backend    string // host:port
	web        string // host:port of the HTTP backend
	contenders []contender
	phases     map[phase]bool
	nodes      int // started so far; part of their names

	client  *child // nil when there is none, or the last one failed
	reached map[string]bool

	results  results
	loads    []string // load average at the start, after each round
	failures []string
	notes    []string
}

func (b *bench) note(format string, arguments ...any) {
	text := fmt.Sprintf(format, arguments...)
	fmt.Fprintln(os.Stderr, "bench:", text)
	b.notes = append(b.notes, text)
}

// begin starts what all rounds share.
func (b *bench) begin(ctx context.Context) error {
	b.loads = append(b.loads, loadAverage())
	fmt.Fprintln(os.Stderr, "bench: load average at the start", loadAverage())
	var err error
	if b.tailnet, err = startTailnet(ctx, b.children, b.options.localtailnet); err != nil {
		return err
	}
	b.children.env = append(b.children.env, rootsVariable+"="+b.tailnet.RootCAPEM)
	backend, err := b.children.start("backend", b.self, "-role", "backend")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	line, err := backend.line(ctx)
	if err != nil {
		return err
	}
	var two bool
	if b.backend, b.web, two = strings.Cut(line, " "); !two {
		return fmt.Errorf("the backend printed no two addresses but %q", line)
	}
	return nil
}

// round takes every figure of every contender once. Only an interruption is an
// error; what cannot be measured is noted and left out.
func (b *bench) round(ctx context.Context, round int) error {
	if b.phases[phaseMemory] {
		for _, c := range turn(b.contenders, round) {
			b.measureAlone(ctx, round, c, phaseMemory, b.memory)
		}
	}
	if b.phases[phaseThroughput] || b.phases[phaseLatency] || b.phases[phaseConnections] || b.phases[phaseRequests] {
		b.measureTogether(ctx, round)
	}
	if b.phases[phaseStreams] {
		for _, c := range turn(b.contenders, round) {
			if c.job == jobL4 || c.job == jobTLS {
				b.measureAlone(ctx, round, c, phaseStreams, b.streams)
			}
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	// A fresh client for each round: the last one keeps what it closed in
	// TIME-WAIT.
	b.endClient(ctx)
	b.loads = append(b.loads, loadAverage())
	fmt.Fprintf(os.Stderr, "bench: round %d of %d done, load average %s\n", round+1, b.options.rounds, loadAverage())
	return nil
}

// measureAlone measures a process that has served nothing else.
func (b *bench) measureAlone(ctx context.Context, round int, c contender, p phase, measure func(context.Context, int, *running) error) {
	if ctx.Err() != nil {
		return
	}
	r, err := b.launch(ctx, c)
	if err != nil {
		b.fail(ctx, round, c, "start", err)
		return
	}
	defer b.stop(ctx, r)
	if err := measure(ctx, round, r); err != nil {
		b.fail(ctx, round, c, string(p), err)
	}
}

func (b *bench) fail(ctx context.Context, round int, c contender, what string, err error) {
	if ctx.Err() != nil {
		return // an interruption is no failure of the contender
	}
	text := fmt.Sprintf("round %d, %s, %s: %v", round+1, c.name, what, err)
	fmt.Fprintln(os.Stderr, "bench:", text)
	b.failures = append(b.failures, text)
}

// memory takes what a process holds at rest and with idle connections.
func (b *bench) memory(ctx context.Context, round int, r *running) error {
	b.progress(round, r, "memory")
	rest, err := settle(ctx, r.child.pid())
	if err != nil {
		return r.child.failure(err)
	}
	b.results.set(r.name, round, idleResident, rest.resident)
	b.results.set(r.name, round, idleAnonymous, rest.anonymous)
	b.results.set(r.name, round, idleThreads, rest.threads)
	b.results.set(r.name, round, idleFiles, rest.files)
	if r.job == jobNone {
		return nil
	}
	// The first connection brings the session with the client, which is not
	// what a connection costs.
	if err := b.reach(ctx, r); err != nil {
		return err
	}
	before, err := settle(ctx, r.child.pid())
	if err != nil {
		return r.child.failure(err)
	}
	held, err := b.load(ctx, r, order{Load: "hold", Count: heldConnections, Seconds: 30})
	if err != nil {
		return err
	}
	after, err := settle(ctx, r.child.pid())
	if err != nil {
		return r.child.failure(err)
	}
	b.results.set(r.name, round, heldResident, (after.resident-before.resident)*1024/float64(held.Count))
	b.results.set(r.name, round, heldThreads, after.threads)
	b.results.set(r.name, round, heldFiles, after.files)
	_, err = b.load(ctx, r, order{Load: "release"})
	return err
}

// settle waits until resident memory stays where it is, or long enough.
func settle(ctx context.Context, pid int) (footprint, error) {
	const (
		interval = 250 * time.Millisecond
		window   = 8 // readings that must agree
		longest  = 60
		agree    = 0.01
	)
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	var last []float64
	for reading := 1; ; reading++ {
		now, err := readFootprint(pid)
		if err != nil {
			return footprint{}, err
		}
		last = append(last, now.resident)
		if len(last) > window {
			last = last[1:]
		}
		s := spreadOf(last)
		if len(last) == window && s.Max-s.Min <= agree*s.Max || reading == longest {
			return now, nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return footprint{}, ctx.Err()
		}
	}
}

// streams takes the figures of eight streams at a time.
func (b *bench) streams(ctx context.Context, round int, r *running) error {
	const count = 8
	if err := b.reach(ctx, r); err != nil {
		return err
	}
	if err := resetPeak(r.child.pid()); err != nil {
		b.note("the peak of %s counts from its start: %v", r.name, err)
	}
	if err := b.transfer(ctx, round, r, "upload", count, upKeys8); err != nil {
		return err
	}
	if err := b.transfer(ctx, round, r, "download", count, downKeys8); err != nil {
		return err
	}
	now, err := readFootprint(r.child.pid())
	if err != nil {
		return r.child.failure(err)
	}
	b.results.set(r.name, round, peakResident, now.peak)
	return nil
}

func (b *bench) transfer(ctx context.Context, round int, r *running, load string, count int, keys transferKeys) error {
	b.progress(round, r, fmt.Sprintf("%s, streams: %d", load, count))
	o, err := b.load(ctx, r, order{Load: load, Streams: count, Seconds: b.options.seconds})
	if err != nil {
		return err
	}
	b.results.set(r.name, round, keys.speed, float64(o.Bytes)*8/1e9/o.Elapsed)
	b.results.set(r.name, round, keys.cpu, o.ServerCPU/(float64(o.Bytes)/1e9))
	if o.ClientCPU > 0 {
		b.results.set(r.name, round, keys.balance, o.ServerCPU/o.ClientCPU)
	}
	return nil
}

// measureTogether measures contenders that run side by side, so that the same
// figure of each is taken back to back; all but one are idle.
func (b *bench) measureTogether(ctx context.Context, round int) {
	var all []*running
	defer func() {
		for _, r := range all {
			b.stop(ctx, r)
		}
	}()
	for _, c := range b.contenders {
		if c.job == jobNone || ctx.Err() != nil {
			continue
		}
		r, err := b.launch(ctx, c)
		if err == nil {
			all = append(all, r)
			err = b.warm(ctx, r)
		}
		if err != nil {
			b.fail(ctx, round, c, "start", err)
		}
	}
	for i, m := range b.measurements() {
		for _, r := range turn(all, round+i) {
			if ctx.Err() != nil {
				return
			}
			if !slices.Contains(m.jobs, r.job) {
				continue
			}
			if err := m.take(ctx, round, r); err != nil {
				b.fail(ctx, round, r.contender, m.name, err)
			}
		}
	}
}

// warm lets a server grow its heap and find its path before it is timed.
func (b *bench) warm(ctx context.Context, r *running) error {
	if err := b.reach(ctx, r); err != nil {
		return err
	}
	if r.job == jobHTTP {
		_, err := b.load(ctx, r, order{Load: "requests", Streams: 8, Seconds: math.Min(1, b.options.seconds)})
		return err
	}
	for _, load := range []string{"upload", "download"} {
		if _, err := b.load(ctx, r, order{Load: load, Streams: 1, Seconds: math.Min(0.5, b.options.seconds)}); err != nil {
			return err
		}
	}
	return nil
}

type measurement struct {
	name string
	jobs []job // that it is for
	take func(context.Context, int, *running) error
}

func (b *bench) measurements() []measurement {
	var all []measurement
	add := func(p phase, name string, take func(context.Context, int, *running) error, jobs ...job) {
		if b.phases[p] {
			all = append(all, measurement{name: name, jobs: jobs, take: take})
		}
	}
	add(phaseThroughput, "upload", func(ctx context.Context, round int, r *running) error {
		return b.transfer(ctx, round, r, "upload", 1, upKeys)
	}, jobL4, jobTLS)
	add(phaseThroughput, "download", func(ctx context.Context, round int, r *running) error {
		return b.transfer(ctx, round, r, "download", 1, downKeys)
	}, jobL4, jobTLS)
	add(phaseLatency, "echo on 1 connection", func(ctx context.Context, round int, r *running) error {
		return b.echo(ctx, round, r, 1, echoP50, echoP99, "")
	}, jobL4, jobTLS)
	add(phaseLatency, "echo on 32 connections", func(ctx context.Context, round int, r *running) error {
		return b.echo(ctx, round, r, 32, echo32P50, echo32P99, echo32CPU)
	}, jobL4, jobTLS)
	add(phaseConnections, "connect", func(ctx context.Context, round int, r *running) error {
		return b.connections(ctx, round, r, "connect", connectRate, connectPerCPU)
	}, jobL4, jobTLS, jobHTTP)
	add(phaseConnections, "resume", func(ctx context.Context, round int, r *running) error {
		return b.connections(ctx, round, r, "resume", resumeRate, resumePerCPU)
	}, jobTLS, jobHTTP)
	for _, e := range exchanges {
		add(e.phase, e.load.Load, func(ctx context.Context, round int, r *running) error {
			return b.exchange(ctx, round, r, e)
		}, jobHTTP)
	}
	return all
}

func (b *bench) echo(ctx context.Context, round int, r *running, count int, p50, p99, cpu string) error {
	b.progress(round, r, fmt.Sprintf("echo, connections: %d", count))
	o, err := b.load(ctx, r, order{Load: "echo", Streams: count, Seconds: b.options.seconds / 2})
	if err != nil {
		return err
	}
	b.results.set(r.name, round, p50, o.P50)
	b.results.set(r.name, round, p99, o.P99)
	if cpu != "" && o.Count > 0 {
		b.results.set(r.name, round, cpu, o.ServerCPU*10_000/float64(o.Count))
	}
	return nil
}

// exchange puts a load of HTTP on a server and keeps its figures.
func (b *bench) exchange(ctx context.Context, round int, r *running, e exchange) error {
	b.progress(round, r, e.load.Load)
	ordered := e.load
	ordered.Seconds = b.options.seconds
	o, err := b.load(ctx, r, ordered)
	if err != nil {
		return err
	}
	set := func(key string, value float64) {
		if key != "" {
			b.results.set(r.name, round, key, value)
		}
	}
	set(e.keys.p50, o.P50)
	set(e.keys.p99, o.P99)
	if o.Count > 0 {
		set(e.keys.rate, float64(o.Count)/o.Elapsed)
		set(e.keys.cpu, o.ServerCPU*10_000/float64(o.Count))
	}
	if o.Bytes > 0 {
		set(e.keys.cpuPerGB, o.ServerCPU/(float64(o.Bytes)/1e9))
	}
	return nil
}

func (b *bench) connections(ctx context.Context, round int, r *running, load, rate, perCPU string) error {
	const workers = 16
	b.progress(round, r, load)
	o, err := b.load(ctx, r, order{Load: load, Streams: workers, Seconds: b.options.seconds})
	if err != nil {
		return err
	}
	if load == "resume" && float64(o.Resumed) < 0.9*float64(o.Count) {
		b.note("round %d: %s resumed %d of %d TLS sessions, so its figures for resumption are left out", round+1, r.name, o.Resumed, o.Count)
		return nil
	}
	b.results.set(r.name, round, rate, float64(o.Count)/o.Elapsed)
	if o.ServerCPU > 0 {
		b.results.set(r.name, round, perCPU, float64(o.Count)/o.ServerCPU)
	}
	return nil
}

func (b *bench) progress(round int, r *running, what string) {
	fmt.Fprintf(os.Stderr, "bench: round %d of %d: %s: %s\n", round+1, b.options.rounds, r.name, what)
}

// reach has the client find the server, over a direct path.
func (b *bench) reach(ctx context.Context, r *running) error {
	if b.client != nil && b.reached[r.host] {
		return nil
	}
	_, err := b.ask(ctx, r, order{Load: "reach"})
	if err == nil {
		b.reached[r.host] = true
	}
	return err
}

// load puts a load on a server.
func (b *bench) load(ctx context.Context, r *running, o order) (outcome, error) {
	if err := b.reach(ctx, r); err != nil {
		return outcome{}, err
	}
	return b.ask(ctx, r, o)
}

// ask gives an order to the client, a new one when the last one failed.
func (b *bench) ask(ctx context.Context, r *running, o order) (outcome, error) {
	if b.client == nil {
		if err := b.startClient(ctx); err != nil {
			return outcome{}, err
		}
	}
	o.Host, o.Domain, o.Port, o.PID = r.host, b.tailnet.Domain, r.port(), r.child.pid()
	o.TLS, o.HTTP = r.job != jobL4, r.job == jobHTTP
	line, err := json.Marshal(o)
	if err != nil {
		return outcome{}, err
	}
	// The client has a limit of its own; this one is for a client that hangs.
	ctx, cancel := context.WithTimeout(ctx, seconds(o.Seconds+graceSeconds+10))
	defer cancel()
	if _, err := fmt.Fprintf(b.client.stdin, "%s\n", line); err != nil {
		return outcome{}, b.dropClient(err)
	}
	answer, err := b.client.line(ctx)
	if err != nil {
		return outcome{}, b.dropClient(err)
	}
	var result outcome
	if err := json.Unmarshal([]byte(answer), &result); err != nil {
		return outcome{}, b.dropClient(fmt.Errorf("the client answered %q: %w", answer, err))
	}
	if result.Error != "" {
		return outcome{}, r.child.failure(errors.New(result.Error))
	}
	return result, nil
}

func (b *bench) startClient(ctx context.Context) error {
	b.nodes++
	host := fmt.Sprintf("client-%d", b.nodes)
	one, err := b.children.start(host, b.self, "-role", "client", "-host", host, "-dir", b.children.dir+"/"+host,
		"-control-url", b.tailnet.ControlURL, "-auth-key", b.tailnet.AuthKey)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if _, err := one.line(ctx); err != nil {
		b.children.kill(one)
		return err
	}
	b.client, b.reached = one, map[string]bool{}
	return nil
}

// dropClient ends a client that cannot go on and passes the error on.
func (b *bench) dropClient(err error) error {
	b.children.kill(b.client)
	b.client = nil
	return err
}

func (b *bench) endClient(ctx context.Context) {
	if b.client == nil {
		return
	}
	name := b.client.name
	b.children.kill(b.client)
	b.client = nil
	if err := b.tailnet.forget(ctx, name); err != nil && ctx.Err() == nil {
		b.note("%v", err)
	}
}
