package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
)

// tailscaleVersion is what this program, so every Go peer, is built from.
func tailscaleVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, dependency := range info.Deps {
		if dependency.Path == "tailscale.com" {
			return dependency.Version
		}
	}
	return "unknown"
}

// findTailscaled takes the binary that was given or builds one. Without one the
// run goes on: the other peers say more.
func (b *bench) findTailscaled(ctx context.Context) {
	var err error
	if b.options.tailscaled == "build" {
		fmt.Fprintln(os.Stderr, "bench: building tailscaled (-tailscaled off leaves it out)")
		b.options.tailscaled, err = buildTailscaled(ctx, b.options.module, b.children.dir)
	} else {
		b.options.tailscaled, err = program(b.options.tailscaled, "tailscaled", "-tailscaled build builds one")
	}
	if err != nil {
		b.contenders = without(b.contenders, "tailscaled")
		b.note("tailscaled is left out: %v", err)
	}
}

// buildTailscaled builds from the directory of tailscale.com itself: our own
// go.sum does not cover what only tailscaled needs.
func buildTailscaled(ctx context.Context, module, dir string) (string, error) {
	module, err := moduleDirectory(module)
	if err != nil {
		return "", err
	}
	source, err := goTool(ctx, module, "list", "-m", "-f", "{{.Version}} {{.Dir}}", "tailscale.com")
	if err != nil {
		return "", err
	}
	version, sources, _ := strings.Cut(strings.TrimSpace(source), " ")
	if sources == "" {
		return "", errors.New("the sources of tailscale.com are not in the module cache: run go mod download")
	}
	if own := tailscaleVersion(); own != version {
		return "", fmt.Errorf("%s requires tailscale.com %s, this program is built from %s", module, version, own)
	}
	output := filepath.Join(dir, "tailscaled")
	_, err = goTool(ctx, sources, "build", "-mod=readonly", "-trimpath", "-buildvcs=false",
		"-tags", "netgo,osusergo", "-o", output, "./cmd/tailscaled")
	return output, err
}

func moduleDirectory(given string) (string, error) {
	candidates := []string{".", filepath.Join("vendor", "libtailscale")}
	if given != "" {
		candidates = []string{given}
	}
	for _, candidate := range candidates {
		text, err := os.ReadFile(filepath.Join(candidate, "go.mod"))
		if err == nil && strings.Contains(string(text), "tailscale.com v") {
			return candidate, nil
		}
	}
	return "", fmt.Errorf("no go.mod that requires tailscale.com in %s: set -module", strings.Join(candidates, " or "))
}

func goTool(ctx context.Context, dir string, arguments ...string) (string, error) {
	command := exec.CommandContext(ctx, "go", arguments...)
	command.Dir = dir
	command.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off")
	// The compilers that go starts must end with it.
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	command.Cancel = func() error { return syscall.Kill(-command.Process.Pid, syscall.SIGKILL) }
	var complaint strings.Builder
	command.Stderr = &complaint
	output, err := command.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w: %s", arguments[0], err, strings.TrimSpace(complaint.String()))
	}
	return string(output), nil
}
