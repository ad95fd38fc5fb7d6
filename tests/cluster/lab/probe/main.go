// Command probe is a test's hand in a pod, where there is no shell: it serves,
// asks and looks, one thing per call.
//
//	probe serve ADDRESS     HTTP: answers with its host name and path, ?body= or the header ?header=
//	probe echo ADDRESS      TCP: sends back what it gets, and FIN for FIN
//	probe get URL           prints the body; fails unless the status is 2xx
//	probe dial HOST:PORT    connects and leaves
//	probe resolve NAME      prints its addresses, one a line
//	probe read FILE         prints it
//	probe write FILE TEXT   replaces it
//	probe sleep             until SIGTERM
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// patience bounds one question; who asks repeats it.
const patience = 5 * time.Second

var verbs = map[string]struct {
	arguments int
	run       func(ctx context.Context, arguments []string) error
}{
	"serve":   {1, serve},
	"echo":    {1, echo},
	"get":     {1, get},
	"dial":    {1, dial},
	"resolve": {1, resolve},
	"read":    {1, read},
	"write":   {2, write},
	"sleep":   {0, func(ctx context.Context, _ []string) error { <-ctx.Done(); return nil }},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if len(os.Args) < 2 || verbs[os.Args[1]].run == nil || len(os.Args) != 2+verbs[os.Args[1]].arguments {
		fmt.Fprintln(os.Stderr, "usage: probe serve|echo|get|dial|resolve|read|write|sleep ARGUMENTS")
		os.Exit(64)
	}
	if err := verbs[os.Args[1]].run(ctx, os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func serve(ctx context.Context, arguments []string) error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	server := &http.Server{
		Addr:              arguments[0],
		ReadHeaderTimeout: patience,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(os.Stdout, "%s %s from %s\n", r.Method, r.URL, r.RemoteAddr)
			if body := r.URL.Query().Get("body"); body != "" {
				io.WriteString(w, body)
				return
			}
			if header := r.URL.Query().Get("header"); header != "" {
				fmt.Fprintf(w, "%s\n", r.Header.Values(header))
				return
			}
			fmt.Fprintf(w, "%s %s\n", name, r.URL.Path)
		}),
	}
	context.AfterFunc(ctx, func() { server.Shutdown(context.Background()) })
	fmt.Fprintln(os.Stdout, "serving on", arguments[0])
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		return err
	}
	return nil
}

func echo(ctx context.Context, arguments []string) error {
	listener, err := net.Listen("tcp", arguments[0])
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { listener.Close() })
	for {
		connection, err := listener.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		go func() {
			io.Copy(connection, connection)
			connection.Close()
		}()
	}
}

func get(ctx context.Context, arguments []string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, arguments[0], nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(os.Stdout, response.Body); err != nil {
		return err
	}
	if response.StatusCode/100 != 2 {
		return fmt.Errorf("%s: %s", arguments[0], response.Status)
	}
	return nil
}

func dial(ctx context.Context, arguments []string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	connection, err := (&net.Dialer{}).DialContext(ctx, "tcp", arguments[0])
	if err != nil {
		return err
	}
	return connection.Close()
}

func resolve(ctx context.Context, arguments []string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupHost(ctx, arguments[0])
	for _, address := range addresses {
		fmt.Fprintln(os.Stdout, address)
	}
	return err
}

func read(_ context.Context, arguments []string) error {
	text, err := os.ReadFile(arguments[0])
	os.Stdout.Write(text)
	return err
}

func write(_ context.Context, arguments []string) error {
	return os.WriteFile(arguments[0], []byte(arguments[1]), 0o600)
}
