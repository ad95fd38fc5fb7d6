package main

import (
	"fmt"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// translated is PostTranslateModifyRequest or PostTranslateModifyResponse, which
// has no context, so that its lists are numbered from 1 and not from 2.
type translated struct {
	policies  [][]byte
	clusters  []*cluster.Cluster
	secrets   []*tls.Secret
	listeners []*listener.Listener
	routes    []*route.RouteConfiguration
}

// decodeRequest and decodeResponse are what generated code would do.
func decodeRequest(data []byte) (*translated, error)  { return decode(data, 1) }
func decodeResponse(data []byte) (*translated, error) { return decode(data, 0) }

func decode(data []byte, contexts protowire.Number) (*translated, error) {
	t := &translated{}
	err := fields(data, func(number protowire.Number, value []byte) (err error) {
		switch number - contexts {
		case 0:
			err = t.decodeContext(value)
		case 1:
			t.clusters, err = appended(t.clusters, &cluster.Cluster{}, value)
		case 2:
			t.secrets, err = appended(t.secrets, &tls.Secret{}, value)
		case 3:
			t.listeners, err = appended(t.listeners, &listener.Listener{}, value)
		case 4:
			t.routes, err = appended(t.routes, &route.RouteConfiguration{}, value)
		}
		return err
	})
	return t, err
}

// decodeContext takes the JSON of objects, each the first field of a message.
func (t *translated) decodeContext(data []byte) error {
	return fields(data, func(_ protowire.Number, resource []byte) error {
		return fields(resource, func(_ protowire.Number, text []byte) error {
			t.policies = append(t.policies, text)
			return nil
		})
	})
}

func appended[M proto.Message](list []M, element M, value []byte) ([]M, error) {
	err := proto.Unmarshal(value, element)
	return append(list, element), err
}

// fields calls take for every field of a message that has messages and bytes alone.
func fields(data []byte, take func(protowire.Number, []byte) error) error {
	for len(data) > 0 {
		number, kind, size := protowire.ConsumeTag(data)
		if size < 0 {
			return protowire.ParseError(size)
		}
		if kind != protowire.BytesType {
			return fmt.Errorf("field %d has wire type %d", number, kind)
		}
		value, length := protowire.ConsumeBytes(data[size:])
		if length < 0 {
			return protowire.ParseError(length)
		}
		if err := take(number, value); err != nil {
			return err
		}
		data = data[size+length:]
	}
	return nil
}

func (t *translated) encodeRequest() ([]byte, error) {
	var context []byte
	for _, text := range t.policies {
		resource := bytesField(nil, 1, text)
		context = bytesField(context, 1, resource)
	}
	return t.encode(bytesField(nil, 1, context), 1)
}

func (t *translated) encodeResponse() ([]byte, error) { return t.encode(nil, 0) }

func (t *translated) encode(data []byte, contexts protowire.Number) (_ []byte, err error) {
	if data, err = listField(data, 1+contexts, t.clusters); err != nil {
		return nil, err
	}
	if data, err = listField(data, 2+contexts, t.secrets); err != nil {
		return nil, err
	}
	if data, err = listField(data, 3+contexts, t.listeners); err != nil {
		return nil, err
	}
	return listField(data, 4+contexts, t.routes)
}

func bytesField(data []byte, number protowire.Number, value []byte) []byte {
	data = protowire.AppendTag(data, number, protowire.BytesType)
	return protowire.AppendBytes(data, value)
}

func listField[M proto.Message](data []byte, number protowire.Number, list []M) ([]byte, error) {
	options := proto.MarshalOptions{}
	for _, element := range list {
		var err error
		data = protowire.AppendTag(data, number, protowire.BytesType)
		data = protowire.AppendVarint(data, uint64(options.Size(element)))
		if data, err = options.MarshalAppend(data, element); err != nil {
			return nil, err
		}
	}
	return data, nil
}
