package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
)

const method = "/envoygateway.extension.EnvoyGatewayExtension/PostTranslateModify"

// message is a message as it is on the wire.
type message []byte

// wire passes messages as they are, so that the client's own work is not measured.
type wire struct{}

func (wire) Name() string { return "proto" }

func (wire) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*message))}, nil
}

func (wire) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*message) = data.Materialize()
	return nil
}

// server is a process that answers.
type server struct {
	command    *exec.Cmd
	connection *grpc.ClientConn
}

func start(ctx context.Context, socket, program string, arguments ...string) (*server, error) {
	command := exec.CommandContext(ctx, program, arguments...)
	command.Stderr = os.Stderr
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		return nil, err
	}
	const largest = 64 << 20
	connection, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(wire{}), grpc.WaitForReady(true),
			grpc.MaxCallRecvMsgSize(largest), grpc.MaxCallSendMsgSize(largest)))
	if err != nil {
		return nil, errors.Join(err, command.Process.Kill())
	}
	return &server{command, connection}, nil
}

func (s *server) end() {
	s.connection.Close()
	// An error is a process that has ended.
	_ = s.command.Process.Kill()
	_ = s.command.Wait()
}

func (s *server) call(ctx context.Context, request message) (message, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var answer message
	err := s.connection.Invoke(ctx, method, &request, &answer)
	return answer, err
}

func (s *server) measure(ctx context.Context, l load, calls int) (figures, error) {
	answer, err := s.call(ctx, l.requests[0])
	if err != nil {
		return figures{}, err
	}
	if err := l.check(answer); err != nil {
		return figures{}, err
	}
	for number := range calls / 10 {
		if _, err := s.call(ctx, l.requests[number%len(l.requests)]); err != nil {
			return figures{}, err
		}
	}
	before, err := cpuTime(s.command.Process.Pid)
	if err != nil {
		return figures{}, err
	}
	var took []time.Duration
	for number := range calls {
		begin := time.Now()
		if _, err := s.call(ctx, l.requests[number%len(l.requests)]); err != nil {
			return figures{}, err
		}
		took = append(took, time.Since(begin))
	}
	after, err := cpuTime(s.command.Process.Pid)
	if err != nil {
		return figures{}, err
	}
	slices.Sort(took)
	return figures{
		median: took[len(took)/2],
		slow:   took[len(took)*99/100],
		cpu:    (after - before) / time.Duration(calls),
	}, nil
}

// check sees that the answer has all that it must have.
func (l load) check(answer message) error {
	decoded, err := decodeResponse(answer)
	if err != nil {
		return err
	}
	routes := 0
	for _, configuration := range decoded.routes {
		for _, host := range configuration.VirtualHosts {
			routes += len(host.Routes)
		}
	}
	if len(decoded.clusters) != l.clusters || routes != l.answered {
		return fmt.Errorf("%d clusters and %d routes are answered, not %d and %d",
			len(decoded.clusters), routes, l.clusters, l.answered)
	}
	return nil
}
