package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"time"

	"tailscale.com/derp/derpserver"
	"tailscale.com/net/stunserver"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
)

// relay is the DERP and STUN server of the tailnet: region 1.
type relay struct {
	derpMap     *tailcfg.DERPMap
	derpAddress string
	stunAddress string
	derp        *derpserver.Server
	http        *http.Server
	stopSTUN    context.CancelFunc
}

func startRelay(config Config) (*relay, error) {
	address := net.JoinHostPort(config.IP, "0")
	certificate, err := selfSigned("localtailnet DERP", config.IP)
	if err != nil {
		return nil, err
	}
	listener, err := config.listen(address)
	if err != nil {
		return nil, fmt.Errorf("DERP: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	stun := stunserver.New(ctx)
	if err := stun.Listen(address); err != nil {
		stop()
		return nil, errors.Join(fmt.Errorf("STUN: %w", err), listener.Close())
	}
	go stun.Serve()

	derp := derpserver.New(key.NewNode(), config.Logf)
	server := &http.Server{
		Handler:           derpserver.Handler(derp),
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{certificate}},
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          logger.StdLogger(config.Logf),
		// DERP hijacks its connection, which HTTP/2 cannot give.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	go server.ServeTLS(listener, "", "")

	derpAddress := listener.Addr().(*net.TCPAddr)
	stunAddress := stun.LocalAddr().(*net.UDPAddr)
	return &relay{
		derpMap: &tailcfg.DERPMap{
			OmitDefaultRegions: true,
			Regions: map[int]*tailcfg.DERPRegion{1: {
				RegionID:   1,
				RegionCode: "local",
				RegionName: "Local",
				Nodes: []*tailcfg.DERPNode{{
					Name:             "1a",
					RegionID:         1,
					HostName:         config.IP,
					IPv4:             config.IP,
					IPv6:             "none",
					DERPPort:         derpAddress.Port,
					STUNPort:         stunAddress.Port,
					STUNTestIP:       config.IP,
					InsecureForTests: true,
				}},
			}},
		},
		derpAddress: derpAddress.String(),
		stunAddress: stunAddress.String(),
		derp:        derp,
		http:        server,
		stopSTUN:    stop,
	}, nil
}

func (r *relay) close() error {
	r.stopSTUN()
	// The server does not know connections that DERP has hijacked; DERP
	// closes those itself.
	return errors.Join(r.http.Close(), r.derp.Close())
}

func selfSigned(name, ip string) (tls.Certificate, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("key for %s: %w", name, err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(1, 0, 0),
		IPAddresses:  []net.IP{net.ParseIP(ip)},
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate for %s: %w", name, err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}, nil
}
