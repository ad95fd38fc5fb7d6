package main

import (
	"bytes"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestASpreadIsMinMedianAndMax(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   spread
	}{
		{nil, spread{}},
		{[]float64{2}, spread{Min: 2, Median: 2, Max: 2, Count: 1}},
		{[]float64{3, 1, 2}, spread{Min: 1, Median: 2, Max: 3, Count: 3}},
		{[]float64{4, 1, 3, 2}, spread{Min: 1, Median: 2.5, Max: 4, Count: 4}},
	} {
		values := slices.Clone(test.values)
		if got := spreadOf(values); got != test.want {
			t.Errorf("spreadOf(%v) = %+v, want %+v", test.values, got, test.want)
		}
		if !slices.Equal(values, test.values) {
			t.Errorf("spreadOf reordered %v to %v", test.values, values)
		}
	}
}

func TestAQuantileIsTheNearestRank(t *testing.T) {
	hundred := make([]int, 100)
	for i := range hundred {
		hundred[i] = i + 1
	}
	for _, test := range []struct {
		sorted []int
		part   float64
		want   int
	}{
		{nil, 0.5, 0}, {[]int{7}, 0, 7}, {[]int{7}, 1, 7}, {[]int{1, 2, 3}, 0.5, 2}, {[]int{1, 2, 3, 4}, 0.5, 2},
		{hundred, 0.5, 50}, {hundred, 0.99, 99}, {hundred, 1, 100}, {hundred[:10], 0.99, 10},
	} {
		if got := quantile(test.sorted, test.part); got != test.want {
			t.Errorf("quantile(%v, %v) = %d, want %d", test.sorted, test.part, got, test.want)
		}
	}
}

func TestEveryoneStartsOnceAndNeighboursChangePlaces(t *testing.T) {
	all := []string{"a", "b", "c"}
	var got []string
	for n := range 4 {
		got = append(got, strings.Join(turn(all, n), ""))
	}
	if want := []string{"abc", "acb", "cab", "cba"}; !slices.Equal(got, want) {
		t.Errorf("turns are %v, want %v", got, want)
	}
	if !slices.Equal(all, []string{"a", "b", "c"}) {
		t.Errorf("turn changed its argument to %v", all)
	}
}

func TestRatiosDivideFiguresOfTheSameRound(t *testing.T) {
	r := results{}
	r.set("tailway-l4", 0, "up_cpu", 3)
	r.set("tailway-l4", 1, "up_cpu", 4)
	r.set("tailway-l4", 2, "up_cpu", 5)
	r.set("go-l4", 0, "up_cpu", 6)
	r.set("go-l4", 2, "up_cpu", 10) // its second round failed
	if got, want := r.ratios("tailway-l4", "go-l4", "up_cpu"), []float64{0.5, 0.5}; !slices.Equal(got, want) {
		t.Errorf("ratios are %v, want %v", got, want)
	}
	if got := r.ratios("tailway-l4", "raw", "up_cpu"); got != nil {
		t.Errorf("ratios to nobody are %v", got)
	}
}

func TestAVerdictSaysByHowMuchATargetIsMissed(t *testing.T) {
	for _, test := range []struct {
		ratio, target float64
		lower         bool
		want          string
	}{
		{0.99, 1, true, "met"},
		{1, 1, true, "met"},
		{1.1, 1, true, "**missed by 10.0 %**"},
		{0.6, 0.5, true, "**missed by 20.0 %**"},
		{1.15, 1.15, false, "met"},
		{0.92, 1.15, false, "**missed by 20.0 %**"},
	} {
		if got := verdict(test.ratio, test.target, test.lower); got != test.want {
			t.Errorf("verdict(%v, %v, %v) = %q, want %q", test.ratio, test.target, test.lower, got, test.want)
		}
	}
}

func TestTheReportShowsTargetsRatiosAndFigures(t *testing.T) {
	chosen, _, err := choose("bare,go-l4,tailway-l4")
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{
		options: options{rounds: 2, seconds: 4}, contenders: chosen, results: results{},
		loads: []string{"0.1 0.1 0.1", "1 1 1", "2 2 2"}, notes: []string{"a note"}, failures: []string{"a failure\nof two lines"},
	}
	for round := range 2 {
		b.results.set(bare, round, idleResident, 20)
		b.results.set(peerL4, round, idleResident, 25)
		b.results.set("tailway-l4", round, idleResident, 30)
		b.results.set(peerL4, round, upKeys.cpu, 4)
		b.results.set("tailway-l4", round, upKeys.cpu, float64(3+round))
	}
	var text bytes.Buffer
	if err := b.report().write(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`### tailway against its targets

| job | figure | divided by | median | min | max | target | verdict |
|---|---|---|---|---|---|---|---|
| L4 | CPU per GB, upload, 1 stream | go-l4 | 0.88 | 0.75 | 1.00 | ≤ 1.00 | met |
| L4 | resident memory, idle | bare | 1.50 | 1.50 | 1.50 | ≤ 1.10 | **missed by 36.4 %** |

### L4, ratios: median (min–max), rounds: 2

| figure | go-l4 | tailway-l4 |
|---|---|---|
| CPU per GB, upload, 1 stream (÷ go-l4) | – | 0.88 (0.75–1.00) |
| resident memory, idle (÷ bare) | 1.25 (1.25–1.25) | 1.50 (1.50–1.50) |

### L4, figures: median (min–max), rounds: 2

| figure | bare | go-l4 | tailway-l4 |
|---|---|---|---|
| CPU per GB, upload, 1 stream, s | – | 4.00 (4.00–4.00) | 3.50 (3.00–4.00) |
| resident memory, idle, MiB | 20.0 (20.0–20.0) | 25.0 (25.0–25.0) | 30.0 (30.0–30.0) |

`,
		"Load average at the start 0.1 0.1 0.1; after each round 1 1 1, 2 2 2.\n",
		"\nNotes:\n- a note\n",
		"\nFailed measurements:\n- a failure\n  of two lines\n",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the report lacks\n%s\nit is\n%s", want, text.String())
		}
	}
}

func TestAReportWithoutTailwayHasNoTargets(t *testing.T) {
	b := &bench{results: results{}, loads: []string{"0 0 0"}}
	b.results.set(peerL4, 0, upKeys.cpu, 4)
	var text bytes.Buffer
	if err := b.report().write(&text); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(text.String(), "tailway was not measured against a peer") || strings.Contains(text.String(), "verdict") {
		t.Errorf("the report is\n%s", text.String())
	}
}

func TestOnlyChoosesByServerJobAndPhase(t *testing.T) {
	names := func(only string) string {
		chosen, _, err := choose(only)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, c := range chosen {
			names = append(names, c.name)
		}
		return strings.Join(names, " ")
	}
	everyone := "bare raw go-l4 tailscaled-l4 tailway-l4 go-tls go-tls-cached tailscaled-tls tailway-tls " +
		"go-http tailscaled-http tailway-http tailway-routes"
	for only, want := range map[string]string{
		"":                      everyone,
		"tls":                   "bare go-tls go-tls-cached tailscaled-tls tailway-tls",
		"tailway":               "tailway-l4 tailway-tls tailway-http tailway-routes",
		"http,go-http,tailway":  "go-http tailway-http tailway-routes",
		"tailway,L4":            "tailway-l4",
		"tailway-tls, go-tls":   "go-tls tailway-tls",
		"go-tls-cached,latency": "go-tls-cached",
		"memory":                everyone,
	} {
		if got := names(only); got != want {
			t.Errorf("-only %q chooses %q, want %q", only, got, want)
		}
	}
	_, phases, err := choose("go-l4,memory,latency")
	if err != nil || len(phases) != 2 || !phases[phaseMemory] || !phases[phaseLatency] {
		t.Errorf("phases are %v, error %v", phases, err)
	}
	for _, wrong := range []string{"nginx", "raw,tls"} {
		if _, _, err := choose(wrong); err == nil {
			t.Errorf("-only %q is accepted", wrong)
		}
	}
}

func TestAMissingBinaryIsNamedWithItsRemedy(t *testing.T) {
	for _, path := range []string{"", t.TempDir() + "/none", t.TempDir()} {
		_, err := program(path, "tailway", "make release builds it")
		if err == nil || !strings.Contains(err.Error(), "tailway") || !strings.Contains(err.Error(), "make release builds it") {
			t.Errorf("program(%q) says %v", path, err)
		}
	}
}

// connected are the ends of a connection through the proxy of the Go peers to a
// backend.
func connected(t *testing.T) net.Conn {
	t.Helper()
	listen := func(serve func(net.Conn)) string {
		listener, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { listener.Close() })
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				go serve(conn)
			}
		}()
		return listener.Addr().String()
	}
	backend := listen(func(conn net.Conn) { serveBackend(conn) })
	front := listen(func(conn net.Conn) { proxy(conn, backend) })
	conn, err := net.Dial("tcp", front)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestTransfersCountWhatArrived(t *testing.T) {
	for name, move := range map[string]func(net.Conn, time.Duration) (int64, error){"upload": upload, "download": download} {
		bytes, err := move(connected(t), 10*time.Millisecond)
		if err != nil || bytes < blockSize || bytes%blockSize != 0 {
			t.Errorf("%s moved %d bytes, error %v", name, bytes, err)
		}
	}
}

func TestAnEchoIsTimedUntilTheEnd(t *testing.T) {
	conn := connected(t)
	if err := startEcho(conn); err != nil {
		t.Fatal(err)
	}
	times, err := timeEchoes(conn, time.Now().Add(10*time.Millisecond))
	if err != nil || len(times) == 0 {
		t.Errorf("%d echoes, error %v", len(times), err)
	}
}

func TestTheProxyPassesOnTheEndOfTheClientAlone(t *testing.T) {
	conn := connected(t)
	if err := startEcho(conn); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := awaitEcho(conn); err != nil {
		t.Error(err)
	}
	if n, err := conn.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %d bytes, error %v", n, err)
	}
}

func TestTheProcessTellsItsCPUTimeAndFootprint(t *testing.T) {
	before, err := cpuSeconds(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	after := before
	for sink := 1.0; after < before+0.05; {
		if time.Now().After(deadline) {
			t.Fatalf("work did not show: %v s before, %v after (%v)", before, after, sink)
		}
		for range 1_000_000 {
			sink = math.Sqrt(sink + 1)
		}
		if after, err = cpuSeconds(os.Getpid()); err != nil {
			t.Fatal(err)
		}
	}
	f, err := readFootprint(os.Getpid())
	if err != nil || f.resident <= 0 || f.anonymous <= 0 || f.peak < f.anonymous || f.threads < 1 || f.files < 3 {
		t.Errorf("footprint %+v, error %v", f, err)
	}
	if _, err := readFootprint(1 << 30); err == nil {
		t.Error("a process that is not there has a footprint")
	}
}

func TestWorkIsSharedWithoutRest(t *testing.T) {
	total := 0
	for worker := range 16 {
		total += share(1000, 16, worker)
	}
	if total != 1000 {
		t.Errorf("16 workers do %d of 1000", total)
	}
}
