package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"time"
)

// authority is the certificate authority of the tailnet: a root that clients
// trust and an intermediate that signs the leaves.
type authority struct {
	root            *x509.Certificate
	intermediate    *x509.Certificate
	intermediateKey *ecdsa.PrivateKey
}

func newAuthority() (*authority, error) {
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("root key: %w", err)
	}
	root, err := signAuthority("localtailnet root", 1, nil, rootKey, rootKey)
	if err != nil {
		return nil, err
	}
	intermediateKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("intermediate key: %w", err)
	}
	intermediate, err := signAuthority("localtailnet intermediate", 0, root, intermediateKey, rootKey)
	if err != nil {
		return nil, err
	}
	return &authority{root: root, intermediate: intermediate, intermediateKey: intermediateKey}, nil
}

// signAuthority makes a CA certificate for subject, signed by parent, or by
// itself when there is none. depth bounds the authorities below it.
func signAuthority(name string, depth int, parent *x509.Certificate, subject, signer *ecdsa.PrivateKey) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"localtailnet"}, CommonName: name},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().AddDate(10, 0, 0),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            depth,
		MaxPathLenZero:        depth == 0,
	}
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, subject.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", name, err)
	}
	return x509.ParseCertificate(der)
}

// issue signs a leaf for names, valid from now for lifetime.
func (a *authority) issue(request *x509.CertificateRequest, names []string, lifetime time.Duration) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now().Truncate(time.Second)
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: names[0]},
		DNSNames:              names,
		NotBefore:             now,
		NotAfter:              now.Add(lifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.intermediate, request.PublicKey, a.intermediateKey)
	if err != nil {
		return nil, fmt.Errorf("sign leaf for %v: %w", names, err)
	}
	return x509.ParseCertificate(der)
}

func (a *authority) chainPEM(leaf *x509.Certificate) []byte {
	return append(certificatePEM(leaf), certificatePEM(a.intermediate)...)
}

func (a *authority) rootPEM() string { return string(certificatePEM(a.root)) }

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.root)
	return pool
}

func certificatePEM(certificate *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw})
}

func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("serial number: %w", err)
	}
	return serial, nil
}
