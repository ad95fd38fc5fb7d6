// Command hooks measures what an extension server of Envoy Gateway takes to
// answer, tailway's beside a minimal one in Go, in one run on one machine:
//
//	hooks -tailway PATH [-rounds 3] [-calls 100]
//
// Each server is a process of its own behind a socket in the file system. One
// call follows another, as Envoy Gateway makes them. Every round measures every
// server, in a changing order, and only figures of the same round are divided
// by each other, since the speed of a shared machine drifts.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	tailway := flag.String("tailway", "", "the tailway binary")
	rounds := flag.Int("rounds", 3, "how often everything is measured")
	calls := flag.Int("calls", 100, "calls of each load")
	socket := flag.String("serve", "", "be the server in Go at this socket")
	flag.Parse()
	// The kernel ends children with the thread that started them: keep it.
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if *socket != "" {
		err = serve(ctx, *socket)
	} else {
		err = run(ctx, *tailway, *rounds, *calls)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "hooks:", err)
		os.Exit(1)
	}
}

// load is one kind of call.
type load struct {
	name               string
	routes, services   int
	variants           int // how many sets take turns; 0: the same one comes each time
	requests           []message
	clusters, answered int // in the answer: clusters, and routes of the virtual host
}

func loads() ([]load, error) {
	all := []load{
		{name: "1,000 routes of users, 10 services", routes: 1000, services: 10},
		{name: "10 routes of users, 1,000 services", routes: 10, services: 1000},
		{name: "the same, one service changed each time", routes: 10, services: 1000, variants: 50},
		{name: "1,000 routes of users, none asked for", routes: 1000},
	}
	for i := range all {
		l := &all[i]
		for variant := range max(l.variants, 1) {
			request, err := translation(l.routes, l.services, variant)
			if err != nil {
				return nil, err
			}
			l.requests = append(l.requests, request)
		}
		// Each service is there for gRPC, too.
		l.clusters = l.routes + 2*l.services
		l.answered = l.routes + 2*l.services
	}
	return all, nil
}

// figures of one load at one server in one round.
type figures struct {
	median, slow, cpu time.Duration // of one call; slow is the 99th percentile
}

func run(ctx context.Context, tailway string, rounds, calls int) error {
	if rounds < 1 || calls < 1 {
		return errors.New("-rounds and -calls must be at least 1")
	}
	if _, err := os.Stat(tailway); err != nil {
		return fmt.Errorf("set -tailway to the binary (make release builds it): %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "tailway-hooks-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	all, err := loads()
	if err != nil {
		return err
	}
	sockets := []string{filepath.Join(dir, "go"), filepath.Join(dir, "tailway")}
	peer, err := start(ctx, sockets[0], self, "-serve", sockets[0])
	if err != nil {
		return err
	}
	defer peer.end()
	subject, err := start(ctx, sockets[1], tailway, "extension", "--socket", sockets[1],
		"--policies-only", "--admin-addr", "127.0.0.1:0", "--log-level", "warn")
	if err != nil {
		return err
	}
	defer subject.end()

	servers := []*server{peer, subject}
	results := map[string][][2]figures{}
	for round := range rounds {
		for _, l := range all {
			var both [2]figures
			for turn := range servers {
				i := (turn + round) % len(servers)
				if both[i], err = servers[i].measure(ctx, l, calls); err != nil {
					return fmt.Errorf("%s, %s: %w", []string{"go", "tailway"}[i], l.name, err)
				}
			}
			results[l.name] = append(results[l.name], both)
		}
	}
	report(all, results, rounds, calls)
	return nil
}

func report(all []load, results map[string][][2]figures, rounds, calls int) {
	fmt.Printf("### the hook Translation, median (min–max), rounds: %d, calls: %d each\n\n", rounds, calls)
	fmt.Println("| load | figure | go | tailway | tailway ÷ go |\n|---|---|---|---|---|")
	kinds := []struct {
		name string
		of   func(figures) time.Duration
	}{
		{"median", func(f figures) time.Duration { return f.median }},
		{"99th percentile", func(f figures) time.Duration { return f.slow }},
		{"CPU", func(f figures) time.Duration { return f.cpu }},
	}
	for _, l := range all {
		for _, kind := range kinds {
			var values [2][]float64
			var ratios []float64
			for _, both := range results[l.name] {
				peer, subject := kind.of(both[0]).Seconds(), kind.of(both[1]).Seconds()
				values[0] = append(values[0], peer*1000)
				values[1] = append(values[1], subject*1000)
				ratios = append(ratios, subject/peer)
			}
			fmt.Printf("| %s | %s, ms | %s | %s | %s |\n", l.name, kind.name,
				spread(values[0]), spread(values[1]), spread(ratios))
		}
	}
	fmt.Printf("\n%d cores; %s; one call after another over a socket; CPU is user and system time of the server for one call.\n",
		runtime.NumCPU(), runtime.Version())
}

func spread(values []float64) string {
	slices.Sort(values)
	return fmt.Sprintf("%.2f (%.2f–%.2f)", values[len(values)/2], values[0], values[len(values)-1])
}

// cpuTime is what a process has used, from proc(5).
func cpuTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name before the fields may hold spaces.
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	var user, system int64
	if len(fields) < 13 {
		return 0, errors.New("/proc/PID/stat is too short")
	}
	if _, err := fmt.Sscan(fields[11]+" "+fields[12], &user, &system); err != nil {
		return 0, err
	}
	return time.Duration(user+system) * 10 * time.Millisecond, nil
}
