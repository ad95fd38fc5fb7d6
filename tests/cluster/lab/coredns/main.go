// Command coredns is CoreDNS with the plugins that a cluster's DNS needs and no
// others, which saves most of its build.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/whoami"
)

func main() {
	// In the order in which they see a query.
	dnsserver.Directives = []string{"ready", "errors", "cache", "whoami", "kubernetes"}
	coremain.Run()
}
