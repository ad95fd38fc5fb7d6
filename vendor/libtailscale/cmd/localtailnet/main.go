// Command localtailnet runs a whole tailnet on loopback, for the demo and for
// tests: a control server, DERP, STUN, an ACME server for the nodes'
// certificates, a fake of Tailscale's HTTP API, an admin API, and clients on
// the tailnet.
//
//	localtailnet [flags]                      run until SIGTERM or SIGINT
//	localtailnet get -admin URL https://…     request a page as a tailnet client
//
// When every part listens it prints one line of JSON, which is what a node
// needs to join (see Ready). Nothing in it is authenticated beyond what nodes
// do, so it listens on loopback only, or with -ip, for all but the admin API,
// on an address of a network that tests made.
//
// The admin API speaks JSON. A refusal is {"error": "…"} with a status of 4xx
// or 5xx. NAME of a node is its first label.
//
//	GET    /ready                      the ready line
//	GET    /nodes, /nodes/NAME         id, name, addresses, tags, login, online, expiry, counts
//	DELETE /nodes/NAME                 its peers forget it, it needs to log in again
//	POST   /nodes/NAME/tags            {"tags":["tag:x"]}
//	POST   /nodes/NAME/login           {"login","display_name","profile_pic_url"}; takes tags away
//	POST   /nodes/NAME/expire          {} now, {"in":"1h"} or {"never":true}
//	POST   /nodes/NAME/rename          {"name":"other"}
//	POST   /nodes/NAME/approve         an admin lets it in; {"approved":false} takes that back
//	POST   /nodes/NAME/capabilities    {"src":"*|NAME|LOGIN|TAG","capabilities":{"cap":[…]}}; none: take away
//	POST   /auth-keys                  {"login","tags","ephemeral","reusable","preauthorized","expires_in"} → {"auth_key"}
//	POST   /approval                   {"required":true}: later nodes wait for it unless their key is preauthorized
//	POST   /https                      {"enabled":false}: no certificates for nodes; true: again
//	POST   /magic-dns                  {"enabled":false}: nobody can ask for names, which takes certificates along
//	POST   /api/clients                {"scopes","tags","owned_tags","federated":{…}} → {"client_id","client_secret"}
//	DELETE /api/clients/ID             its tokens end with it
//	POST   /api/tokens/revoke          every token ends before its time
//	POST   /api/tokens/lifetime        {"lifetime":"90s"} of later tokens
//	POST   /api/failures               {"method","path","status","retry_after","body","hang","close","count"} → {"id"}
//	GET    /api/failures               what fails now
//	DELETE /api/failures, /api/failures/ID  what was made to fail works again
//	GET    /api/calls                  time, method, path, client and status of each call; DELETE forgets them
//	POST   /api/stop, /api/start       while it is stopped, connections are reset
//	POST   /filter                     {"mode":"allow|deny"} or {"rules":[{"src":[…],"dst":[…],"ports":["443"]}]}
//	GET    /dns                        TXT records, held or not, requests that wait
//	POST   /dns/hold, /dns/release     let set-dns requests of nodes wait
//	GET    /acme/orders                orders by status, certificates
//	POST   /acme/rate-limit            {"count":n} or {"on":bool}, {"retry_after":seconds}
//	POST   /acme/renew                 {"name"}: the renewal window (ARI) is in the past; no name: of all
//	POST   /acme/lifetime              {"lifetime":"48h"} of later certificates
//	GET    /control                    running or not, unknown paths that were asked for
//	POST   /control/stop, /control/start
//	GET    /client                     names of the clients
//	POST   /client/NAME                {"login","tags","hostname","ephemeral"}; joins, one that is there stays
//	DELETE /client/NAME                leaves
//	POST   /client/NAME/http           {"url","method","headers","body",…}, see httpRequest
//	GET    /client/NAME/tunnel         ?address=HOST:PORT and Upgrade: tailnet-tcp → 101, then raw bytes
//
// A node that asked in vain while control was stopped comes back up to 10 s
// after the start: its client waits out its dial timeout when the only port
// fails. A node asks for its renewal window once per process and certificate,
// so /acme/renew must come before it has asked.
//
// The API (api_url) is Tailscale's v2 as far as a gateway needs it: tokens for
// OAuth clients and federated identities, auth keys that really let nodes in,
// devices that really go. A client may give its own tags to a key, all of
// them, or "owned_tags", those that its tags own in the policy; "*" is every
// tag. A client is there from the start, with the scopes auth_keys and
// devices:core, and may give any tag.
//
// A node without an auth key prints a login URL of the control server; opening
// it logs the node in, as ?login=NAME when that is given.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	var err error
	subcommand := ""
	if len(os.Args) > 1 {
		subcommand = os.Args[1]
	}
	switch subcommand {
	case "get":
		err = runGet(ctx, os.Args[2:], os.Stdout)
	case "backend":
		err = runBackend(ctx, os.Args[2:])
	default:
		err = run(ctx, os.Args[1:], os.Stdin, os.Stdout)
	}
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "localtailnet:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, arguments []string, stdin io.Reader, stdout io.Writer) error {
	var config Config
	flags := flag.NewFlagSet("localtailnet", flag.ContinueOnError)
	flags.StringVar(&config.Domain, "domain", "tail1234.ts.net", "MagicDNS suffix of the tailnet")
	flags.StringVar(&config.IP, "ip", "127.0.0.1", "IP address that nodes reach the tailnet at; another than loopback's is for a network namespace of tests")
	flags.StringVar(&config.Listen, "listen", "", "address of the control server (default port 0 of -ip)")
	flags.StringVar(&config.AdminListen, "admin-listen", "127.0.0.1:0", "loopback address of the admin API")
	flags.StringVar(&config.APIListen, "api-listen", "", "address of the fake of Tailscale's HTTP API (default port 0 of -ip)")
	flags.StringVar(&config.Login, "login", "owner@example.com", "login name that owns untagged nodes")
	flags.DurationVar(&config.CertificateLifetime, "certificate-lifetime", 90*24*time.Hour, "lifetime of issued certificates")
	flags.DurationVar(&config.EphemeralGrace, "ephemeral-grace", 5*time.Second, "from losing an ephemeral node to removing it")
	readyFile := flags.String("ready-file", "", "also write the line of JSON to this file")
	exitWithStdin := flags.Bool("exit-with-stdin", false, "exit when stdin ends")
	verbose := flags.Bool("v", false, "log to stderr")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unknown argument %q: the subcommands are get and backend", flags.Arg(0))
	}
	log.SetOutput(io.Discard)
	if *verbose {
		log.SetOutput(os.Stderr)
		config.Logf = log.Printf
	}
	if *exitWithStdin {
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		go func() {
			defer cancel()
			io.Copy(io.Discard, stdin)
		}()
	}

	tailnet, err := Start(config)
	if err != nil {
		return err
	}
	if err := announce(tailnet.Ready(), *readyFile, stdout); err != nil {
		return errors.Join(err, tailnet.Close())
	}
	<-ctx.Done()
	return closeWithin(tailnet, 5*time.Second)
}

// announce writes the ready line to the file, whole or not at all, and to
// stdout.
func announce(ready Ready, readyFile string, stdout io.Writer) error {
	line, err := json.Marshal(ready)
	if err != nil {
		return fmt.Errorf("ready line: %w", err)
	}
	line = append(line, '\n')
	if readyFile != "" {
		temporary, err := os.CreateTemp(filepath.Dir(readyFile), ".localtailnet-ready-")
		if err != nil {
			return fmt.Errorf("ready file %s: %w", readyFile, err)
		}
		_, writeErr := temporary.Write(line)
		if err := errors.Join(writeErr, temporary.Close()); err != nil {
			return errors.Join(fmt.Errorf("ready file %s: %w", readyFile, err), os.Remove(temporary.Name()))
		}
		if err := os.Rename(temporary.Name(), readyFile); err != nil {
			return errors.Join(fmt.Errorf("ready file %s: %w", readyFile, err), os.Remove(temporary.Name()))
		}
	}
	if _, err := stdout.Write(line); err != nil {
		return fmt.Errorf("ready line: %w", err)
	}
	return nil
}

// closeWithin closes the tailnet, and gives up after a while: the process is
// to end in any case.
func closeWithin(tailnet *Tailnet, limit time.Duration) error {
	closed := make(chan error, 1)
	go func() { closed <- tailnet.Close() }()
	select {
	case <-closed:
	case <-time.After(limit):
	}
	return nil
}
