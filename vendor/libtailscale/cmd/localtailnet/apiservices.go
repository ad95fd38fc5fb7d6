package main

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// apiService is a service of the tailnet in the API's form. Nobody provides
// it: it can be listed, and not be connected to.
type apiService struct {
	Name        string            `json:"name"`
	Addrs       []string          `json:"addrs,omitempty"`
	Comment     string            `json:"comment,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Ports       []string          `json:"ports,omitempty"`
	Tags        []string          `json:"tags,omitempty"`
}

// firstService is the address of the first service; each further one has the
// next.
var firstService = netip.MustParseAddr("100.100.0.1")

func (a *api) listServices(*http.Request, *apiToken) (any, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return map[string]any{"vipServices": slices.Clone(a.services)}, nil
}

// putService makes a service, or replaces the one of its name.
func (a *api) putService(r *http.Request, _ *apiToken) (any, error) {
	var service apiService
	if err := readAPIBody(r, &service); err != nil {
		return nil, err
	}
	name := r.PathValue("name")
	if label, ok := strings.CutPrefix(name, "svc:"); !ok || label == "" || service.Name != "" && service.Name != name {
		return nil, apiRefuse(http.StatusBadRequest, "name must be svc: and a label, and that of the path")
	}
	service.Name = name
	a.mu.Lock()
	defer a.mu.Unlock()
	at := slices.IndexFunc(a.services, func(known apiService) bool { return known.Name == name })
	if at >= 0 {
		if len(service.Addrs) == 0 {
			service.Addrs = a.services[at].Addrs
		}
		a.services[at] = service
		return service, nil
	}
	if len(service.Addrs) == 0 {
		address := firstService
		for range a.services {
			address = address.Next()
		}
		service.Addrs = []string{address.String()}
	}
	a.services = append(a.services, service)
	return service, nil
}

func (a *api) deleteService(r *http.Request, _ *apiToken) (any, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	before := len(a.services)
	a.services = slices.DeleteFunc(a.services, func(known apiService) bool { return known.Name == r.PathValue("name") })
	if len(a.services) == before {
		return nil, apiRefuse(http.StatusNotFound, "service not found")
	}
	return nil, nil
}
