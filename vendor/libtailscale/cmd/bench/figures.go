package main

// figure is one number that is taken of a contender in a round.
type figure struct {
	key    string
	label  string
	unit   string
	lower  bool // less is better
	target map[job]float64
	// serve bounds the ratio of tailway to tailscaled, of the HTTP job.
	serve float64
	// routes bounds the ratio of tailway with 1,000 routes to tailway with one.
	routes float64
}

// Keys of figures, by the phase that takes them.
const (
	idleResident  = "idle_resident"
	idleAnonymous = "idle_anonymous"
	idleThreads   = "idle_threads"
	idleFiles     = "idle_files"
	heldResident  = "held_resident"
	heldThreads   = "held_threads"
	heldFiles     = "held_files"
	peakResident  = "peak8_resident"
	echoP50       = "echo_p50"
	echoP99       = "echo_p99"
	echo32P50     = "echo32_p50"
	echo32P99     = "echo32_p99"
	echo32CPU     = "echo32_cpu"
	connectRate   = "connect_rate"
	connectPerCPU = "connect_per_cpu"
	resumeRate    = "resume_rate"
	resumePerCPU  = "resume_per_cpu"
)

// exchange is a load of the HTTP job, and the figures that it gives.
type exchange struct {
	phase phase
	load  order
	keys  exchangeKeys
}

// exchangeKeys are those of an exchange; an empty one is not kept.
type exchangeKeys struct {
	rate, cpu, cpuPerGB, p50, p99 string
}

var exchanges = []exchange{
	{phaseRequests, order{Load: "requests", Streams: 32}, exchangeKeys{rate: "http1_rate", cpu: "http1_cpu", p99: "http1_p99"}},
	{phaseRequests, order{Load: "requests2", Streams: 4}, exchangeKeys{rate: "http2_rate", cpu: "http2_cpu", p99: "http2_p99"}},
	{phaseRequests, order{Load: "calls", Streams: 4}, exchangeKeys{rate: "calls_rate", cpu: "calls_cpu"}},
	{phaseRequests, order{Load: "messages", Streams: 4}, exchangeKeys{rate: "messages_rate", cpu: "messages_cpu"}},
	{phaseThroughput, order{Load: "bodies", Streams: 8}, exchangeKeys{cpuPerGB: "bodies_cpu"}},
	{phaseLatency, order{Load: "paced", Streams: 32, Rate: 300}, exchangeKeys{p50: "paced_p50", p99: "paced_p99"}},
	{phaseLatency, order{Load: "sockets", Streams: 32}, exchangeKeys{cpu: "sockets_cpu", p50: "sockets_p50"}},
}

// heldConnections are idle ones in the memory phase.
const heldConnections = 1000

// transferKeys are those of a direction and a number of streams.
type transferKeys struct {
	speed, cpu string
	balance    string // CPU of the server by that of the client: both suffer alike from what else runs
}

var (
	upKeys    = transferKeys{speed: "up_gbit", cpu: "up_cpu", balance: "up_balance"}
	downKeys  = transferKeys{speed: "down_gbit", cpu: "down_cpu", balance: "down_balance"}
	upKeys8   = transferKeys{speed: "up8_gbit", cpu: "up8_cpu", balance: "up8_balance"}
	downKeys8 = transferKeys{speed: "down8_gbit", cpu: "down8_cpu", balance: "down8_balance"}
)

func bothJobs(target float64) map[job]float64 { return map[job]float64{jobL4: target, jobTLS: target} }

func onlyHTTP(target float64) map[job]float64 { return map[job]float64{jobHTTP: target} }

// figures in the order in which they are shown. The target bounds the ratio of
// tailway to the Go peer of the same job.
var figures = []figure{
	{key: upKeys.cpu, label: "CPU per GB, upload, 1 stream", unit: "s", lower: true, target: bothJobs(1.0)},
	{key: downKeys.cpu, label: "CPU per GB, download, 1 stream", unit: "s", lower: true, target: bothJobs(1.0)},
	{key: upKeys8.cpu, label: "CPU per GB, upload, 8 streams", unit: "s", lower: true, target: bothJobs(1.0)},
	{key: downKeys8.cpu, label: "CPU per GB, download, 8 streams", unit: "s", lower: true, target: bothJobs(1.0)},
	{key: upKeys.balance, label: "server CPU ÷ client CPU, upload, 1 stream", lower: true},
	{key: downKeys.balance, label: "server CPU ÷ client CPU, download, 1 stream", lower: true},
	{key: upKeys8.balance, label: "server CPU ÷ client CPU, upload, 8 streams", lower: true},
	{key: downKeys8.balance, label: "server CPU ÷ client CPU, download, 8 streams", lower: true},
	{key: upKeys.speed, label: "upload, 1 stream", unit: "Gbit/s"},
	{key: downKeys.speed, label: "download, 1 stream", unit: "Gbit/s"},
	{key: upKeys8.speed, label: "upload, 8 streams", unit: "Gbit/s", target: bothJobs(1.0)},
	{key: downKeys8.speed, label: "download, 8 streams", unit: "Gbit/s", target: bothJobs(1.0)},
	{key: "http1_cpu", label: "CPU per 10,000 requests, HTTP/1.1", unit: "s", lower: true, target: onlyHTTP(0.7), serve: 0.45, routes: 1.1},
	{key: "http2_cpu", label: "CPU per 10,000 requests, HTTP/2", unit: "s", lower: true, target: onlyHTTP(0.7), serve: 0.45, routes: 1.1},
	{key: "http1_rate", label: "requests, HTTP/1.1, 32 connections", unit: "1/s"},
	{key: "http2_rate", label: "requests, HTTP/2, 4 connections, 32 streams", unit: "1/s"},
	{key: "paced_p50", label: "p50 at 300 requests/s", unit: "ms", lower: true},
	{key: "paced_p99", label: "p99 at 300 requests/s", unit: "ms", lower: true, target: onlyHTTP(0.8), serve: 0.6},
	{key: "http1_p99", label: "p99 at full load, HTTP/1.1", unit: "ms", lower: true},
	{key: "http2_p99", label: "p99 at full load, HTTP/2", unit: "ms", lower: true},
	{key: "bodies_cpu", label: "CPU per GB, bodies of 1 MiB", unit: "s", lower: true},
	{key: "calls_cpu", label: "CPU per 10,000 gRPC calls", unit: "s", lower: true},
	{key: "calls_rate", label: "gRPC calls", unit: "1/s"},
	{key: "messages_cpu", label: "CPU per 10,000 messages on gRPC streams", unit: "s", lower: true},
	{key: "messages_rate", label: "messages on gRPC streams", unit: "1/s"},
	{key: "sockets_cpu", label: "CPU per 10,000 WebSocket echoes", unit: "s", lower: true},
	{key: "sockets_p50", label: "WebSocket echo p50, 32 connections", unit: "ms", lower: true},
	{key: connectRate, label: "new connections, no resumption", unit: "1/s"},
	{key: connectPerCPU, label: "new connections per CPU second, no resumption", unit: "1/s", target: map[job]float64{jobTLS: 1.15, jobHTTP: 1.3}},
	{key: resumeRate, label: "new connections, resumed", unit: "1/s"},
	{key: resumePerCPU, label: "new connections per CPU second, resumed", unit: "1/s", target: map[job]float64{jobTLS: 1.15}},
	{key: echoP50, label: "1-byte echo p50, 1 connection", unit: "ms", lower: true},
	{key: echoP99, label: "1-byte echo p99, 1 connection", unit: "ms", lower: true},
	{key: echo32P50, label: "1-byte echo p50, 32 connections", unit: "ms", lower: true},
	{key: echo32P99, label: "1-byte echo p99, 32 connections", unit: "ms", lower: true},
	{key: echo32CPU, label: "CPU per 10,000 echoes, 32 connections", unit: "s", lower: true},
	{key: idleResident, label: "resident memory, idle", unit: "MiB", lower: true, target: bothJobs(1.1)},
	{key: idleAnonymous, label: "of it anonymous", unit: "MiB", lower: true},
	{key: peakResident, label: "peak resident memory, 8 streams", unit: "MiB", lower: true, target: bothJobs(0.5)},
	{key: heldResident, label: "resident memory per idle connection", unit: "KiB", lower: true,
		target: map[job]float64{jobL4: 0.8, jobTLS: 0.6, jobHTTP: 0.5}},
	{key: idleThreads, label: "threads, idle", lower: true},
	{key: heldThreads, label: "threads, 1,000 idle connections", lower: true},
	{key: idleFiles, label: "file descriptors, idle", lower: true},
	{key: heldFiles, label: "file descriptors, 1,000 idle connections", lower: true},
}

// baseline is the contender that a figure of a job is compared with.
func (f figure) baseline(j job) string {
	// A process that serves nothing is the floor for memory at rest.
	if f.key == idleResident || f.key == idleAnonymous || f.key == idleThreads || f.key == idleFiles {
		return bare
	}
	return peerOf(j)
}

// phase is a part of a round.
type phase string

const (
	phaseMemory      phase = "memory"
	phaseThroughput  phase = "throughput"
	phaseRequests    phase = "requests"
	phaseLatency     phase = "latency"
	phaseConnections phase = "connections"
	phaseStreams     phase = "streams"
)

var phases = []phase{phaseMemory, phaseThroughput, phaseRequests, phaseLatency, phaseConnections, phaseStreams}

// results are figures by contender and round.
type results map[string][]map[string]float64

// set keeps a figure of a round; rounds are counted from 0.
func (r results) set(contender string, round int, key string, value float64) {
	for len(r[contender]) <= round {
		r[contender] = append(r[contender], map[string]float64{})
	}
	r[contender][round][key] = value
}

// values are a figure's numbers of all rounds that have it.
func (r results) values(contender, key string) []float64 {
	var values []float64
	for _, round := range r[contender] {
		if value, ok := round[key]; ok {
			values = append(values, value)
		}
	}
	return values
}

// ratios divide a figure by that of another contender in the same round.
func (r results) ratios(contender, baseline, key string) []float64 {
	var ratios []float64
	for i, round := range r[contender] {
		if i >= len(r[baseline]) {
			break
		}
		value, ok := round[key]
		base, okBase := r[baseline][i][key]
		if ok && okBase && base > 0 {
			ratios = append(ratios, value/base)
		}
	}
	return ratios
}
