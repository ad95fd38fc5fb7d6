package engine

import (
	"net/netip"
	"testing"

	"tailscale.com/tailcfg"
	"tailscale.com/types/netmap"
)

func TestADeviceIsFoundByItsNamesAndAServiceAlsoByItsOwnKind(t *testing.T) {
	node := func(name, ip string) tailcfg.NodeView {
		prefix := netip.PrefixFrom(netip.MustParseAddr(ip), 32)
		return (&tailcfg.Node{Name: name, Addresses: []netip.Prefix{prefix}}).View()
	}
	nm := &netmap.NetworkMap{
		SelfNode: node("me.tail.ts.net.", "100.64.0.1"),
		Peers: []tailcfg.NodeView{
			node("web.tail.ts.net.", "100.64.0.2"),
			node("shared.other.ts.net.", "100.64.0.3"),
		},
	}
	nm.DNS.ExtraRecords = []tailcfg.DNSRecord{
		{Name: "web.tail.ts.net", Value: "100.100.0.1"},
		{Name: "db.tail.ts.net.", Value: "100.100.0.2"},
	}
	for host, want := range map[string]string{
		"web":                 "100.64.0.2",
		"WEB.tail.ts.net":     "100.64.0.2",
		"me":                  "100.64.0.1",
		"shared.other.ts.net": "100.64.0.3",
		"db":                  "100.100.0.2",
		"svc:db":              "100.100.0.2",
		"svc:web":             "100.100.0.1",
		"shared":              "",
		"svc:me":              "",
		"svc:":                "",
		"nobody":              "",
	} {
		ip, ok := lookUp(nm, host)
		if got := ip.String(); ok != (want != "") || ok && got != want {
			t.Errorf("%s is %s (%v), want %q", host, got, ok, want)
		}
	}
}
