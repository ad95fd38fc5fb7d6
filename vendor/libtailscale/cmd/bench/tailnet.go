package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"
)

// tailnet is what localtailnet tells those who want to join it.
type tailnet struct {
	ControlURL string            `json:"control_url"`
	AuthKey    string            `json:"auth_key"`
	RootCAPEM  string            `json:"root_ca_pem"`
	Domain     string            `json:"domain"`
	AdminURL   string            `json:"admin_url"`
	Env        map[string]string `json:"env"`
}

// startTailnet starts the local tailnet; later children get its environment.
func startTailnet(ctx context.Context, c *children, path string) (*tailnet, error) {
	one, err := c.start("localtailnet", path, "-exit-with-stdin")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	line, err := one.line(ctx)
	if err != nil {
		return nil, err
	}
	var t tailnet
	if err := json.Unmarshal([]byte(line), &t); err != nil {
		return nil, fmt.Errorf("%s printed no JSON but %q", path, line)
	}
	c.env = slices.DeleteFunc(os.Environ(), func(pair string) bool {
		// Settings of the caller's own nodes or Go runtime would skew the figures.
		return strings.HasPrefix(pair, "TS_") || strings.HasPrefix(pair, "TAILWAY_") ||
			strings.HasPrefix(pair, "GOGC=") || strings.HasPrefix(pair, "GOMEMLIMIT=") || strings.HasPrefix(pair, "GODEBUG=")
	})
	for name, value := range t.Env {
		c.env = append(c.env, name+"="+value)
	}
	return &t, nil
}

// forget removes a node that is gone, so that the network map does not grow
// while the run goes on.
func (t *tailnet) forget(ctx context.Context, host string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodDelete, t.AdminURL+"/nodes/"+url.PathEscape(host), nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode/100 != 2 {
		return fmt.Errorf("localtailnet does not remove node %s: %s", host, response.Status)
	}
	return nil
}
