package main

import (
	"errors"
	"slices"
	"sort"
	"strings"
	"sync"

	"tailscale.com/tailcfg"
)

// challengeRecords holds the TXT records that nodes set through control, which
// is where the ACME server looks them up. While held, a set-dns waits.
type challengeRecords struct {
	mu      sync.Mutex
	records map[string][]string
	sets    int
	waiting int
	held    chan struct{} // closed on release; nil: not held
	closed  chan struct{}
}

func newChallengeRecords() *challengeRecords {
	return &challengeRecords{records: map[string][]string{}, closed: make(chan struct{})}
}

// set enters a record, after the hold if there is one.
func (c *challengeRecords) set(request *tailcfg.SetDNSRequest) error {
	for {
		c.mu.Lock()
		held := c.held
		if held == nil {
			name := recordName(request.Name)
			if !slices.Contains(c.records[name], request.Value) {
				c.records[name] = append(c.records[name], request.Value)
			}
			c.sets++
			c.mu.Unlock()
			return nil
		}
		c.waiting++
		c.mu.Unlock()

		var err error
		select {
		case <-held:
		case <-c.closed:
			err = errors.New("the local tailnet is shutting down")
		}
		c.mu.Lock()
		c.waiting--
		c.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

func (c *challengeRecords) hold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held == nil {
		c.held = make(chan struct{})
	}
}

func (c *challengeRecords) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held != nil {
		close(c.held)
		c.held = nil
	}
}

func (c *challengeRecords) close() { close(c.closed) }

func (c *challengeRecords) values(name string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.records[recordName(name)])
}

// dnsState is the answer of GET /dns.
type dnsState struct {
	Held    bool        `json:"held"`
	Waiting int         `json:"waiting"`
	Sets    int         `json:"sets"`
	Records []dnsRecord `json:"records"`
}

type dnsRecord struct {
	Name   string   `json:"name"`
	Type   string   `json:"type"`
	Values []string `json:"values"`
}

func (c *challengeRecords) state() dnsState {
	c.mu.Lock()
	defer c.mu.Unlock()
	state := dnsState{Held: c.held != nil, Waiting: c.waiting, Sets: c.sets, Records: []dnsRecord{}}
	for name, values := range c.records {
		state.Records = append(state.Records, dnsRecord{Name: name, Type: "TXT", Values: slices.Clone(values)})
	}
	sort.Slice(state.Records, func(i, j int) bool { return state.Records[i].Name < state.Records[j].Name })
	return state
}

func recordName(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }
