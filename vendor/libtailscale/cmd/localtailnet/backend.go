package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"
)

// runBackend is the small web server that the demo puts behind a Gateway. Its
// port, chosen by the system, is written to the ready file.
func runBackend(ctx context.Context, arguments []string) error {
	flags := flag.NewFlagSet("localtailnet backend", flag.ContinueOnError)
	readyFile := flags.String("ready-file", "", "file that its port is written to")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			fmt.Fprintf(w, "Hello from the web server on 127.0.0.1:%d.\nYou asked for https://%s%s.\n",
				listener.Addr().(*net.TCPAddr).Port, r.Host, r.URL.Path)
		}),
	}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	if *readyFile != "" {
		port := fmt.Sprintf("%d\n", listener.Addr().(*net.TCPAddr).Port)
		temporary := *readyFile + ".new"
		if err := os.WriteFile(temporary, []byte(port), 0o600); err != nil {
			return err
		}
		if err := os.Rename(temporary, *readyFile); err != nil {
			return err
		}
	}
	if err := server.Serve(listener); err != http.ErrServerClosed {
		return err
	}
	return nil
}
