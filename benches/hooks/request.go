package main

import (
	"encoding/json"
	"fmt"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
)

// set is what of a TailscaleEgressSet is written and read here.
type set struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   map[string]string `json:"metadata"`
	Spec       struct {
		TargetRefs []map[string]string `json:"targetRefs"`
		Revision   string              `json:"revision"`
		Services   []service           `json:"services"`
	} `json:"spec"`
}

type service struct {
	Name       string `json:"name"`
	Source     string `json:"source"`
	Route      string `json:"route"`
	PathPrefix string `json:"pathPrefix"`
	Cluster    string `json:"cluster"`
	Upstream   struct {
		Protocol string   `json:"protocol"`
		Host     string   `json:"host"`
		Targets  []target `json:"targets"`
	} `json:"upstream"`
}

type target struct {
	Host string `json:"host"`
	Port uint32 `json:"port"`
}

// translation is what Envoy Gateway asks for a Gateway with these routes of its
// users and, unless there are none, this many services of ours. The first of
// these is another in each variant.
func translation(routes, services, variant int) (message, error) {
	host := &route.VirtualHost{
		Name:     "default/web/http/*",
		Domains:  []string{"*"},
		Metadata: metadata("Gateway", "web"),
	}
	t := &translated{}
	for number := range routes {
		name := fmt.Sprintf("httproute/default/users-%04d/rule/0", number)
		host.Routes = append(host.Routes, usersRoute(name, number))
		t.clusters = append(t.clusters, usersCluster(name))
	}
	t.routes = []*route.RouteConfiguration{{
		Name:                     "default/web/http",
		IgnorePortInHostMatching: true,
		VirtualHosts:             []*route.VirtualHost{host},
	}}
	if services > 0 {
		text, err := json.Marshal(egressSet(services, variant))
		if err != nil {
			return nil, err
		}
		t.policies = [][]byte{text}
	}
	return t.encodeRequest()
}

func egressSet(services, variant int) *set {
	s := &set{
		APIVersion: "gateway.tailscale.com/v1alpha1",
		Kind:       "TailscaleEgressSet",
		Metadata:   map[string]string{"namespace": "default", "name": "web"},
	}
	s.Spec.TargetRefs = []map[string]string{{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "web"}}
	s.Spec.Revision = fmt.Sprint(variant)
	for number := range services {
		name := fmt.Sprintf("service-%04d", number)
		one := service{
			Name: name, Source: "default/endpoints", Route: "tailscale-egress-" + name,
			PathPrefix: "/api/" + name, Cluster: "external-backend-" + name,
		}
		one.Upstream.Protocol = "HTTP"
		one.Upstream.Host = name + ".example.com"
		one.Upstream.Targets = []target{{Host: fmt.Sprintf("198.18.%d.%d", number/250, number%250+1), Port: 8080}}
		s.Spec.Services = append(s.Spec.Services, one)
	}
	s.Spec.Services[0].Upstream.Targets[0].Port += uint32(variant)
	return s
}

func usersRoute(name string, number int) *route.Route {
	return &route.Route{
		Name:     name + "/match/0/*",
		Metadata: metadata("HTTPRoute", fmt.Sprintf("users-%04d", number)),
		Match: &route.RouteMatch{
			PathSpecifier: &route.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: fmt.Sprintf("/users/%04d", number)},
			Headers: []*route.HeaderMatcher{{
				Name: "x-tenant",
				HeaderMatchSpecifier: &route.HeaderMatcher_StringMatch{StringMatch: &matcher.StringMatcher{
					MatchPattern: &matcher.StringMatcher_Exact{Exact: fmt.Sprint(number)},
				}},
			}},
		},
		Action: &route.Route_Route{Route: &route.RouteAction{
			ClusterSpecifier: &route.RouteAction_Cluster{Cluster: name},
			UpgradeConfigs:   []*route.RouteAction_UpgradeConfig{{UpgradeType: "websocket"}},
			Timeout:          durationpb.New(15 * time.Second),
		}},
	}
}

func usersCluster(name string) *cluster.Cluster {
	return &cluster.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_EDS},
		EdsClusterConfig: &cluster.Cluster_EdsClusterConfig{
			ServiceName: name,
			EdsConfig: &core.ConfigSource{
				ResourceApiVersion:    core.ApiVersion_V3,
				ConfigSourceSpecifier: &core.ConfigSource_Ads{Ads: &core.AggregatedConfigSource{}},
			},
		},
		ConnectTimeout:  durationpb.New(10 * time.Second),
		DnsLookupFamily: cluster.Cluster_V4_PREFERRED,
		LbPolicy:        cluster.Cluster_LEAST_REQUEST,
	}
}

// metadata is by which Envoy Gateway says what something was made of.
func metadata(kind, name string) *core.Metadata {
	text := structpb.NewStringValue
	resource := &structpb.Struct{Fields: map[string]*structpb.Value{
		"kind": text(kind), "namespace": text("default"), "name": text(name), "sectionName": text("http"),
	}}
	list := &structpb.ListValue{Values: []*structpb.Value{structpb.NewStructValue(resource)}}
	return &core.Metadata{FilterMetadata: map[string]*structpb.Struct{
		"envoy-gateway": {Fields: map[string]*structpb.Value{"resources": structpb.NewListValue(list)}},
	}}
}
