package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	http "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

// typed decodes and encodes as generated code of the service would.
type typed struct{}

func (typed) Name() string { return "proto" }

func (typed) Unmarshal(data mem.BufferSlice, v any) error {
	decoded, err := decodeRequest(data.Materialize())
	if err == nil {
		*v.(*translated) = *decoded
	}
	return err
}

func (typed) Marshal(v any) (mem.BufferSlice, error) {
	data, err := v.(*translated).encodeResponse()
	return mem.BufferSlice{mem.SliceBuffer(data)}, err
}

// serve is the simplest extension server that adds the services of policies.
func serve(ctx context.Context, socket string) error {
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	const largest = 64 << 20
	server := grpc.NewServer(grpc.ForceServerCodecV2(typed{}), grpc.MaxRecvMsgSize(largest), grpc.MaxSendMsgSize(largest))
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "envoygateway.extension.EnvoyGatewayExtension",
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "PostTranslateModify", Handler: handle}},
	}, struct{}{})
	context.AfterFunc(ctx, server.Stop)
	return server.Serve(listener)
}

func handle(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	t := &translated{}
	if err := decode(t); err != nil {
		return nil, err
	}
	for _, text := range t.policies {
		var s set
		if err := json.Unmarshal(text, &s); err != nil {
			return nil, err
		}
		if err := t.inject(s.Spec.Services); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// inject puts two routes of each service, for gRPC and for the rest, before those of users.
func (t *translated) inject(services []service) error {
	var routes []*route.Route
	for _, one := range services {
		for _, grpc := range []bool{true, false} {
			c, err := clusterOf(one, grpc)
			if err != nil {
				return err
			}
			t.clusters = append(t.clusters, c)
			routes = append(routes, routeOf(one, c.Name, grpc))
		}
	}
	for _, configuration := range t.routes {
		for _, host := range configuration.VirtualHosts {
			host.Routes = append(routes[:len(routes):len(routes)], host.Routes...)
		}
	}
	return nil
}

func clusterOf(one service, grpc bool) (*cluster.Cluster, error) {
	name := one.Cluster
	var options map[string]*anypb.Any
	if grpc {
		name += "/grpc"
		http2, err := anypb.New(&http.HttpProtocolOptions{
			UpstreamProtocolOptions: &http.HttpProtocolOptions_ExplicitHttpConfig_{
				ExplicitHttpConfig: &http.HttpProtocolOptions_ExplicitHttpConfig{
					ProtocolConfig: &http.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
						Http2ProtocolOptions: &core.Http2ProtocolOptions{},
					},
				},
			},
		})
		if err != nil {
			return nil, err
		}
		options = map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2}
	}
	endpoints := &endpoint.LocalityLbEndpoints{}
	for _, target := range one.Upstream.Targets {
		address := &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
			Address:       target.Host,
			PortSpecifier: &core.SocketAddress_PortValue{PortValue: target.Port},
		}}}
		endpoints.LbEndpoints = append(endpoints.LbEndpoints, &endpoint.LbEndpoint{
			HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{Address: address}},
		})
	}
	return &cluster.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_STATIC},
		ConnectTimeout:       durationpb.New(5 * time.Second),
		LoadAssignment: &endpoint.ClusterLoadAssignment{
			ClusterName: name, Endpoints: []*endpoint.LocalityLbEndpoints{endpoints},
		},
		TypedExtensionProtocolOptions: options,
	}, nil
}

func routeOf(one service, cluster string, grpc bool) *route.Route {
	match := &route.RouteMatch{
		PathSpecifier: &route.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: one.PathPrefix},
	}
	name := one.Route
	if grpc {
		name += "/grpc"
		match.Grpc = &route.RouteMatch_GrpcRouteMatchOptions{}
	}
	return &route.Route{
		Name:  name,
		Match: match,
		Action: &route.Route_Route{Route: &route.RouteAction{
			ClusterSpecifier:     &route.RouteAction_Cluster{Cluster: cluster},
			HostRewriteSpecifier: &route.RouteAction_HostRewriteLiteral{HostRewriteLiteral: one.Upstream.Host},
			RegexRewrite: &matcher.RegexMatchAndSubstitute{
				Pattern:      &matcher.RegexMatcher{Regex: fmt.Sprintf("^%s/*", one.PathPrefix)},
				Substitution: "/",
			},
			UpgradeConfigs: []*route.RouteAction_UpgradeConfig{{UpgradeType: "websocket"}},
			Timeout:        durationpb.New(0),
		}},
	}
}
