package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// child is a process that this one started and will end.
type child struct {
	name  string
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines chan string // of its stdout; closed when it ends
	log   string      // file with its stderr
	ended chan struct{}
}

// children are all processes of a run.
type children struct {
	dir     string // for logs
	env     []string
	running map[*child]bool
	count   int
}

// start runs a program. It must be called from the main goroutine, which is
// locked to its thread: the kernel ends a child with the thread that made it.
func (c *children) start(name, path string, arguments ...string) (*child, error) {
	c.count++
	one := &child{
		name:  name,
		log:   filepath.Join(c.dir, fmt.Sprintf("%03d-%s.log", c.count, name)),
		lines: make(chan string, 64),
		ended: make(chan struct{}),
	}
	log, err := os.Create(one.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	one.cmd = exec.Command(path, arguments...)
	one.cmd.Env = c.env
	one.cmd.Dir = c.dir
	one.cmd.Stderr = log
	// A group of its own, so that Ctrl-C reaches this process alone, which then
	// ends the others in order.
	one.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if one.stdin, err = one.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := one.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := one.cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", name, err)
	}
	c.running[one] = true
	go one.follow(stdout)
	return one, nil
}

func (c *child) follow(stdout io.Reader) {
	lines := bufio.NewReader(stdout)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			break
		}
		select {
		case c.lines <- strings.TrimSuffix(line, "\n"):
		default: // nobody reads the output of this one
		}
	}
	close(c.lines)
	c.cmd.Wait() // how a measured process ends is of no interest; that it ended is
	close(c.ended)
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// line waits for the next line of the child's stdout.
func (c *child) line(ctx context.Context) (string, error) {
	select {
	case line, ok := <-c.lines:
		if !ok {
			return "", c.failure(errors.New("it ended"))
		}
		return line, nil
	case <-ctx.Done():
		return "", c.failure(ctx.Err())
	}
}

// failure adds the end of the child's log to an error.
func (c *child) failure(err error) error {
	text, _ := os.ReadFile(c.log)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	lines = lines[max(0, len(lines)-8):]
	return fmt.Errorf("%s: %w; the end of its log:\n    %s", c.name, err, strings.Join(lines, "\n    "))
}

// kill ends a child at once and waits until it is gone. Measured servers end
// this way: their state is thrown away, and closing a tsnet node in order can
// take minutes.
func (c *children) kill(one *child) {
	if one == nil || !c.running[one] {
		return
	}
	one.cmd.Process.Kill()
	<-one.ended
	delete(c.running, one)
}

// end closes a child's stdin, which is its sign to end, and kills it when it
// does not.
func (c *children) end(one *child) {
	if one == nil || !c.running[one] {
		return
	}
	one.stdin.Close()
	select {
	case <-one.ended:
		delete(c.running, one)
	case <-time.After(5 * time.Second):
		c.kill(one)
	}
}

func (c *children) killAll() {
	for one := range c.running {
		c.kill(one)
	}
}
