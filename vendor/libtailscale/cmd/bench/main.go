// Command bench measures tailway against the simplest Go servers that do the
// same, built from the same tailscale.com version, in one run on one machine:
//
//	bench -tailway PATH -localtailnet PATH [-rounds 3] [-seconds 4] [-only WORDS] [-json FILE]
//
// Everything runs on a tailnet of its own on loopback. Each server, the client
// that loads them and the backend are processes of their own; every round
// measures every server, in a changing order, and only figures of the same
// round are divided by each other, since the speed of a shared machine drifts.
//
// The servers: bare, a tsnet node that serves nothing; raw, tsnet without a
// backend, which is the ceiling; go-l4 and go-tls, tsnet and io.Copy to a TCP
// backend; go-tls-cached, the same with the certificate kept in memory; go-http,
// tsnet and httputil.ReverseProxy to an HTTP backend; tailscaled in userspace
// mode with serve; tailway, of HTTP also with 1,000 routes. Each comes in a
// process that does one job, L4, TLS or HTTP.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
)

// off, as a path, leaves a server out.
const off = "off"

type options struct {
	tailway      string
	localtailnet string
	tailscaled   string
	module       string
	rounds       int
	seconds      float64
	only         string
	json         string
}

func main() {
	var o options
	var r roleFlags
	flags := flag.NewFlagSet("bench", flag.ExitOnError)
	flags.StringVar(&o.tailway, "tailway", "", "the tailway binary, or off to leave it out")
	flags.StringVar(&o.localtailnet, "localtailnet", "", "the localtailnet binary")
	flags.StringVar(&o.tailscaled, "tailscaled", "build", "a tailscaled binary, build to build one (minutes at first), or off to leave it out")
	flags.StringVar(&o.module, "module", "", "directory of the Go module that says which tailscale.com is built (default . or vendor/libtailscale)")
	flags.IntVar(&o.rounds, "rounds", 3, "how often everything is measured")
	flags.Float64Var(&o.seconds, "seconds", 4, "length of each load")
	flags.StringVar(&o.only, "only", "", "comma-separated servers, jobs and phases to measure: "+words())
	flags.StringVar(&o.json, "json", "", "also write every figure of every round to this file")
	r.register(flags)
	flags.Usage = func() { usage(flags) }
	flags.Parse(os.Args[1:])

	var err error
	if r.role != "" {
		err = runRole(r)
	} else if flags.NArg() > 0 {
		err = fmt.Errorf("unknown argument %q", flags.Arg(0))
	} else {
		err = run(o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// usage leaves out what children are started with.
func usage(flags *flag.FlagSet) {
	fmt.Fprintln(flags.Output(), "usage: bench -tailway PATH -localtailnet PATH [flags]")
	flags.VisitAll(func(f *flag.Flag) {
		if f.Usage != "" {
			fmt.Fprintf(flags.Output(), "  -%s (default %q)\n    \t%s\n", f.Name, f.DefValue, f.Usage)
		}
	})
}

// run measures and prints. Whatever it started is gone when it returns.
func run(o options) (err error) {
	// The kernel ends children with the thread that started them: keep it.
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends this process at once

	b, err := prepare(ctx, o)
	if err != nil {
		return err
	}
	defer func() {
		b.children.killAll()
		err = errors.Join(err, os.RemoveAll(b.children.dir))
		if ctx.Err() != nil {
			err = errors.New("interrupted; everything it started is ended")
		}
	}()
	if err := b.begin(ctx); err != nil {
		return err
	}
	for round := range o.rounds {
		if err := b.round(ctx, round); err != nil {
			return err
		}
	}
	r := b.report()
	if err := r.write(os.Stdout); err != nil {
		return err
	}
	if o.json != "" {
		if err := r.writeJSON(o.json); err != nil {
			return err
		}
	}
	if len(b.failures) > 0 {
		return fmt.Errorf("%d measurements failed; the report lists them", len(b.failures))
	}
	return nil
}

// prepare checks everything that can be checked before a process is started.
func prepare(ctx context.Context, o options) (*bench, error) {
	if o.rounds < 1 || o.seconds <= 0 || o.seconds > 600 {
		return nil, errors.New("-rounds must be at least 1 and -seconds between 0 and 600")
	}
	chosen, phases, err := choose(o.only)
	if err != nil {
		return nil, err
	}
	if o.localtailnet, err = program(o.localtailnet, "localtailnet", "make localtailnet builds it"); err != nil {
		return nil, err
	}
	if o.tailway == off {
		chosen = without(chosen, "tailway")
	} else if measures(chosen, "tailway") {
		if o.tailway, err = program(o.tailway, "tailway", "make release builds it; -tailway off measures the Go peers alone"); err != nil {
			return nil, err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	// Two descriptors a connection, and children inherit what is set here.
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return nil, err
	}
	files.Cur = files.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return nil, fmt.Errorf("cannot raise the limit of open files: %w", err)
	}
	dir, err := os.MkdirTemp("", "tailway-bench-")
	if err != nil {
		return nil, err
	}
	b := &bench{
		options:    o,
		self:       self,
		children:   &children{dir: dir, env: os.Environ(), running: map[*child]bool{}},
		contenders: chosen,
		phases:     phases,
		results:    results{},
	}
	if o.tailscaled == off {
		b.contenders = without(b.contenders, "tailscaled")
	} else if measures(b.contenders, "tailscaled") {
		b.findTailscaled(ctx)
	}
	if len(b.contenders) == 0 {
		return nil, errors.Join(errors.New("no server is left to be measured"), os.RemoveAll(dir))
	}
	return b, nil
}

// program is the absolute path of a binary that must be there.
func program(path, name, hint string) (string, error) {
	if path == "" {
		return "", fmt.Errorf("no %s binary was given: set -%s PATH (%s)", name, name, hint)
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("there is no %s binary at %s (%s): %w", name, path, hint, err)
	}
	if info.IsDir() || info.Mode()&0o111 == 0 {
		return "", fmt.Errorf("%s is no executable %s (%s)", path, name, hint)
	}
	return filepath.Abs(path)
}
