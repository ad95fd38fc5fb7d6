package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// clockTicks per second of /proc/PID/stat (USER_HZ): 100 on every architecture
// that Go and tailway run on.
const clockTicks = 100

// cpuSeconds is what all threads of a process, gone ones too, have used.
func cpuSeconds(pid int) (float64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The command name may hold anything, so fields count from its last ')'.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const userTime, systemTime = 14 - 3, 15 - 3 // proc(5) numbers them from 1; 3 comes first here
	if len(fields) <= systemTime {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	var ticks uint64
	for _, field := range []string{fields[userTime], fields[systemTime]} {
		n, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
		ticks += n
	}
	return float64(ticks) / clockTicks, nil
}

// footprint is what a process holds at a moment.
type footprint struct {
	resident  float64 // MiB, shared file pages included
	anonymous float64 // MiB
	peak      float64 // MiB resident since the start or resetPeak
	threads   float64
	files     float64 // open file descriptors
}

func readFootprint(pid int) (footprint, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return footprint{}, err
	}
	var f footprint
	kibibytes := map[string]*float64{"VmRSS": &f.resident, "RssAnon": &f.anonymous, "VmHWM": &f.peak}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		number, _, _ := strings.Cut(strings.TrimSpace(value), " ")
		n, err := strconv.ParseFloat(number, 64)
		if err != nil {
			continue
		}
		if name == "Threads" {
			f.threads = n
		} else if field, ok := kibibytes[name]; ok {
			*field = n / 1024
		}
	}
	if f.resident == 0 || f.threads == 0 {
		return footprint{}, fmt.Errorf("/proc/%d/status tells no resident memory: the process is gone", pid)
	}
	descriptors, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return footprint{}, err
	}
	f.files = float64(len(descriptors))
	return f, nil
}

// resetPeak makes the peak of the resident memory start anew.
func resetPeak(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
}

// loadAverage is the first three words of /proc/loadavg, or why not.
func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	fields := strings.Fields(string(text))
	if err != nil || len(fields) < 3 {
		return "unknown"
	}
	return strings.Join(fields[:3], " ")
}

// machine says on what the figures were taken.
func machine() (cpu, kernel string) {
	cpu, kernel = "unknown CPU", "unknown kernel"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(line, ":")
			if strings.TrimSpace(name) == "model name" {
				cpu = strings.TrimSpace(value)
				break
			}
		}
	}
	if text, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		kernel = strings.TrimSpace(string(text))
	}
	return cpu, kernel
}
