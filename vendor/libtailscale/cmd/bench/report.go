package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
)

// report is everything a run has to say.
type report struct {
	Command    string                          `json:"command"`
	CPU        string                          `json:"cpu"`
	Cores      int                             `json:"cores"`
	Kernel     string                          `json:"kernel"`
	Go         string                          `json:"go"`
	Tailscale  string                          `json:"tailscale"`
	Rounds     int                             `json:"rounds"`
	Seconds    float64                         `json:"seconds"`
	Loads      []string                        `json:"load_averages"` // at the start and after each round
	Contenders []string                        `json:"contenders"`
	Results    results                         `json:"results"` // by contender, round and figure
	Ratios     map[string]map[string]ratioJSON `json:"ratios"`  // by contender and figure
	Failures   []string                        `json:"failures"`
	Notes      []string                        `json:"notes"`
}

type ratioJSON struct {
	spread
	To     string  `json:"to"`
	Target float64 `json:"target,omitempty"`
}

func (b *bench) report() *report {
	cpu, kernel := machine()
	r := &report{
		Command: strings.Join(os.Args, " "), CPU: cpu, Cores: runtime.NumCPU(), Kernel: kernel,
		Go: runtime.Version(), Tailscale: tailscaleVersion(),
		Rounds: b.options.rounds, Seconds: b.options.seconds, Loads: b.loads,
		Results: b.results, Ratios: map[string]map[string]ratioJSON{},
		Failures: b.failures, Notes: b.notes,
	}
	for _, c := range b.contenders {
		r.Contenders = append(r.Contenders, c.name)
		for _, f := range figures {
			to := f.baseline(c.job)
			s := spreadOf(b.results.ratios(c.name, to, f.key))
			if to == c.name || s.Count == 0 {
				continue
			}
			if r.Ratios[c.name] == nil {
				r.Ratios[c.name] = map[string]ratioJSON{}
			}
			ratio := ratioJSON{spread: s, To: to}
			if c.subject == "tailway" && c.routes == 0 {
				ratio.Target = f.target[c.job]
			}
			r.Ratios[c.name][f.key] = ratio
		}
	}
	return r
}

func (r *report) writeJSON(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

// write prints the report as Markdown.
func (r *report) write(w io.Writer) error {
	var text strings.Builder
	r.targets(&text)
	for _, j := range []job{jobL4, jobTLS, jobHTTP} {
		r.ratioTable(&text, j)
	}
	for _, j := range []job{jobL4, jobTLS, jobHTTP} {
		r.rawTable(&text, j)
	}
	r.circumstances(&text)
	_, err := io.WriteString(w, text.String())
	return err
}

// of are the contenders of a job, the one they are compared with first.
func (r *report) of(j job) []contender {
	var first, others []contender
	for _, c := range contenders {
		switch {
		case len(r.Results[c.name]) == 0 || c.job != j:
		case c.name == peerOf(j):
			first = append(first, c)
		default:
			others = append(others, c)
		}
	}
	return append(first, others...)
}

// targets compares tailway with what it is to reach.
func (r *report) targets(text *strings.Builder) {
	var rows [][]string
	add := func(c contender, f figure, to string, s spread, target float64) {
		if s.Count == 0 || target == 0 {
			return
		}
		sign := "≥"
		if f.lower {
			sign = "≤"
		}
		rows = append(rows, []string{string(c.job), f.label, to, number(s.Median), number(s.Min),
			number(s.Max), fmt.Sprintf("%s %.2f", sign, target), verdict(s.Median, target, f.lower)})
	}
	for _, c := range contenders {
		if c.subject != "tailway" {
			continue
		}
		for _, f := range figures {
			if c.routes > 0 {
				one := spreadOf(r.Results.ratios(c.name, tailwayHTTP, f.key))
				add(c, f, fmt.Sprintf("one route, with %d", c.routes+1), one, f.routes)
				continue
			}
			ratio := r.Ratios[c.name][f.key]
			add(c, f, ratio.To, ratio.spread, ratio.Target)
			if c.job == jobHTTP {
				add(c, f, serveHTTP, spreadOf(r.Results.ratios(c.name, serveHTTP, f.key)), f.serve)
			}
		}
	}
	if len(rows) == 0 {
		fmt.Fprintf(text, "tailway was not measured against a peer, so there is nothing to compare with the targets.\n\n")
		return
	}
	fmt.Fprintf(text, "### tailway against its targets\n\n")
	table(text, []string{"job", "figure", "divided by", "median", "min", "max", "target", "verdict"}, rows)
}

// verdict says by how much a ratio misses its target.
func verdict(ratio, target float64, lower bool) string {
	miss := ratio/target - 1
	if !lower {
		miss = 1 - ratio/target
	}
	if miss <= 0 {
		return "met"
	}
	return fmt.Sprintf("**missed by %.1f %%**", miss*100)
}

func (r *report) ratioTable(text *strings.Builder, j job) {
	columns := []string{"figure"}
	var shown []contender
	for _, c := range r.of(j) {
		if len(r.Ratios[c.name]) > 0 {
			shown = append(shown, c)
			columns = append(columns, c.name)
		}
	}
	var rows [][]string
	for _, f := range figures {
		row := []string{fmt.Sprintf("%s (÷ %s)", f.label, f.baseline(j))}
		any := false
		for _, c := range shown {
			cell := "–"
			if ratio, ok := r.Ratios[c.name][f.key]; ok {
				cell = cellOf(ratio.spread)
				any = true
			}
			row = append(row, cell)
		}
		if any {
			rows = append(rows, row)
		}
	}
	if len(rows) == 0 {
		return
	}
	fmt.Fprintf(text, "### %s, ratios: median (min–max), rounds: %d\n\n", j, r.Rounds)
	table(text, columns, rows)
}

func (r *report) rawTable(text *strings.Builder, j job) {
	columns := []string{"figure"}
	shown := r.of(j)
	if len(shown) == 0 {
		return
	}
	if len(r.Results[bare]) > 0 {
		shown = append([]contender{contenders[0]}, shown...)
	}
	for _, c := range shown {
		columns = append(columns, c.name)
	}
	var rows [][]string
	for _, f := range figures {
		label := f.label
		if f.unit != "" {
			label += ", " + f.unit
		}
		row := []string{label}
		any := false
		for _, c := range shown {
			cell := "–"
			if s := spreadOf(r.Results.values(c.name, f.key)); s.Count > 0 {
				cell = cellOf(s)
				any = true
			}
			row = append(row, cell)
		}
		if any {
			rows = append(rows, row)
		}
	}
	fmt.Fprintf(text, "### %s, figures: median (min–max), rounds: %d\n\n", j, r.Rounds)
	table(text, columns, rows)
}

func (r *report) circumstances(text *strings.Builder) {
	fmt.Fprintf(text, "%s, %d cores; Linux %s; %s; tailscale.com %s; rounds: %d, loads of %g s; everything on loopback of one machine.\n",
		r.CPU, r.Cores, r.Kernel, r.Go, r.Tailscale, r.Rounds, r.Seconds)
	if len(r.Loads) > 0 {
		fmt.Fprintf(text, "Load average at the start %s; after each round %s.\n", r.Loads[0], strings.Join(r.Loads[1:], ", "))
	}
	fmt.Fprintf(text, "CPU is user and system time of the server process alone; a GB is 10⁹ bytes. A ratio divides figures of the same round; "+
		"on a machine that others use, 15 %% either way is noise.\n")
	fmt.Fprintf(text, "go-tls and go-http take the node's certificate as tsnet's ListenTLS does, by a question to the LocalAPI for each full handshake; "+
		"go-tls-cached keeps it in memory.\n")
	if len(r.Notes) > 0 {
		fmt.Fprintf(text, "\nNotes:\n%s", list(r.Notes))
	}
	if len(r.Failures) > 0 {
		fmt.Fprintf(text, "\nFailed measurements:\n%s", list(r.Failures))
	}
	fmt.Fprintf(text, "\nWhere tailway spends its time, Go and Rust alike: while `bench … -only tailway-l4,throughput -seconds 60` runs,\n"+
		"`perf record -F 499 -g -p $(pgrep -n tailway) -- sleep 10 && perf report --no-children`.\n")
}

func list(items []string) string {
	var text strings.Builder
	for _, item := range items {
		fmt.Fprintf(&text, "- %s\n", strings.ReplaceAll(item, "\n", "\n  "))
	}
	return text.String()
}

func table(text *strings.Builder, columns []string, rows [][]string) {
	line := func(cells []string) { fmt.Fprintf(text, "| %s |\n", strings.Join(cells, " | ")) }
	line(columns)
	fmt.Fprintf(text, "|%s\n", strings.Repeat("---|", len(columns)))
	for _, row := range rows {
		line(row)
	}
	text.WriteByte('\n')
}

// cellOf shows no spread where there is one value.
func cellOf(s spread) string {
	if s.Count == 1 {
		return number(s.Median)
	}
	return fmt.Sprintf("%s (%s–%s)", number(s.Median), number(s.Min), number(s.Max))
}

// number has about three digits that count.
func number(v float64) string {
	switch {
	case v >= 100 || v <= -100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10 || v <= -10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
