package engine

import (
	"sync"

	"tailscale.com/ipn/ipnext"
	"tailscale.com/ipn/ipnlocal"
	"tailscale.com/tsd"
	"tailscale.com/types/logger"
)

// tsnet keeps its LocalBackend private, and its LocalAPI costs an HTTP request per
// question. An extension of the backend is handed it.

var backends sync.Map // *tsd.System → *ipnlocal.LocalBackend

func init() {
	ipnext.RegisterExtension("libtailscale", func(_ logger.Logf, safe ipnext.SafeBackend) (ipnext.Extension, error) {
		if backend, ok := safe.(*ipnlocal.LocalBackend); ok {
			backends.Store(safe.Sys(), backend)
		}
		return extension{safe.Sys()}, nil
	})
}

type extension struct{ sys *tsd.System }

func (extension) Name() string           { return "libtailscale" }
func (extension) Init(ipnext.Host) error { return nil }
func (e extension) Shutdown() error      { backends.Delete(e.sys); return nil }

func backendOf(sys *tsd.System) (*ipnlocal.LocalBackend, bool) {
	backend, ok := backends.Load(sys)
	if !ok {
		return nil, false
	}
	return backend.(*ipnlocal.LocalBackend), true
}
