package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"tailscale.com/ipn"
)

// memoryStore keeps state in memory. tsnet accepts its own only for ephemeral
// nodes; ours leaves that to the caller.
type memoryStore struct {
	mu     sync.Mutex
	values map[ipn.StateKey][]byte
}

func (s *memoryStore) ReadState(key ipn.StateKey) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	value, ok := s.values[key]
	if !ok {
		return nil, ipn.ErrStateNotExist
	}
	return value, nil
}

func (s *memoryStore) WriteState(key ipn.StateKey, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.values == nil {
		s.values = make(map[ipn.StateKey][]byte)
	}
	s.values[key] = append([]byte(nil), value...)
	return nil
}

// accountKey is the file, and the store key, of the ACME account.
const accountKey = "acme-account.key.pem"

// certFiles carries certificates between a store and the directory where the
// engine looks for them. The engine itself keeps them in files whatever store it
// has, except inside Kubernetes.
type certFiles struct {
	dir   string // <state directory>/certs
	store ipn.StateStore
}

func names(domain string) []string {
	base := strings.Replace(domain, "*.", "wildcard_.", 1)
	return []string{base + ".crt", base + ".key", accountKey}
}

// restore writes the files of a domain that the store has and the directory has
// not.
func (c certFiles) restore(domain string) error {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return fmt.Errorf("cannot make the certificate directory: %w", err)
	}
	for _, name := range names(domain) {
		path := filepath.Join(c.dir, name)
		if _, err := os.Stat(path); err == nil {
			continue
		}
		value, err := c.store.ReadState(ipn.StateKey(name))
		if errors.Is(err, ipn.ErrStateNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("cannot read %s from the store: %w", name, err)
		}
		if err := os.WriteFile(path, value, 0o600); err != nil {
			return fmt.Errorf("cannot restore %s: %w", name, err)
		}
	}
	return nil
}

// save writes the files of a domain to the store when they differ.
func (c certFiles) save(domain string) error {
	for _, name := range names(domain) {
		value, err := os.ReadFile(filepath.Join(c.dir, name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("cannot read the issued %s: %w", name, err)
		}
		stored, err := c.store.ReadState(ipn.StateKey(name))
		if err == nil && string(stored) == string(value) {
			continue
		}
		if err := c.store.WriteState(ipn.StateKey(name), value); err != nil {
			return fmt.Errorf("cannot write %s to the store: %w", name, err)
		}
	}
	return nil
}
