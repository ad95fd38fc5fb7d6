package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"mime"
	"net/http"
)

// signedRequest is a flattened JWS, the body of every ACME POST (RFC 8555 §6.2).
type signedRequest struct {
	Protected string `json:"protected"`
	Payload   string `json:"payload"`
	Signature string `json:"signature"`
}

type protectedHeader struct {
	Algorithm string          `json:"alg"`
	Nonce     string          `json:"nonce"`
	URL       string          `json:"url"`
	KeyID     string          `json:"kid"`
	Key       json.RawMessage `json:"jwk"`
}

// accountKey is a P-256 key of an ACME account.
type accountKey struct {
	public *ecdsa.PublicKey
	// thumbprint is the RFC 7638 thumbprint, base64url.
	thumbprint string
}

// parseAccountKey reads a JWK (RFC 7517); only P-256 is known.
func parseAccountKey(jwk json.RawMessage) (*accountKey, error) {
	var fields struct {
		Type  string `json:"kty"`
		Curve string `json:"crv"`
		X     string `json:"x"`
		Y     string `json:"y"`
	}
	if err := json.Unmarshal(jwk, &fields); err != nil {
		return nil, fmt.Errorf("jwk: %w", err)
	}
	if fields.Type != "EC" || fields.Curve != "P-256" {
		return nil, errors.New("jwk: want kty EC and crv P-256")
	}
	x, errX := base64.RawURLEncoding.DecodeString(fields.X)
	y, errY := base64.RawURLEncoding.DecodeString(fields.Y)
	if errX != nil || errY != nil || len(x) != 32 || len(y) != 32 {
		return nil, errors.New("jwk: x and y must be 32 bytes in base64url")
	}
	point := append(append([]byte{4}, x...), y...)
	public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		return nil, fmt.Errorf("jwk: %w", err)
	}
	// RFC 7638 §3.2: the required members only, in order, without spaces.
	digest := sha256.Sum256(fmt.Appendf(nil, `{"crv":"P-256","kty":"EC","x":%q,"y":%q}`, fields.X, fields.Y))
	return &accountKey{public: public, thumbprint: base64.RawURLEncoding.EncodeToString(digest[:])}, nil
}

// verifies reports whether signature is an ES256 signature of signed
// (RFC 7518 §3.4: R and S, 32 bytes each).
func (k *accountKey) verifies(signed string, signature []byte) bool {
	if len(signature) != 64 {
		return false
	}
	digest := sha256.Sum256([]byte(signed))
	r := new(big.Int).SetBytes(signature[:32])
	s := new(big.Int).SetBytes(signature[32:])
	return ecdsa.Verify(k.public, digest[:], r, s)
}

// verifiedRequest is a POST whose signature, nonce and URL were right.
type verifiedRequest struct {
	payload []byte // empty: POST-as-GET
	key     *accountKey
	account *account // nil where the key itself signs: newAccount
}

// verify checks a POST as RFC 8555 §6.2 to §6.5 say. byKey is for newAccount,
// the one request that carries its key instead of an account.
func (s *acmeServer) verify(r *http.Request, byKey bool) (*verifiedRequest, *problem) {
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/jose+json" {
		return nil, &problem{Status: http.StatusUnsupportedMediaType, Type: "malformed", Detail: "the content type must be application/jose+json"}
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxControlBody))
	if err != nil {
		return nil, malformed("read body: %v", err)
	}
	var signed signedRequest
	if err := json.Unmarshal(body, &signed); err != nil {
		return nil, malformed("body is no flattened JWS: %v", err)
	}
	protected, err := base64.RawURLEncoding.DecodeString(signed.Protected)
	if err != nil {
		return nil, malformed("protected header: %v", err)
	}
	var header protectedHeader
	if err := json.Unmarshal(protected, &header); err != nil {
		return nil, malformed("protected header: %v", err)
	}
	if header.Algorithm != "ES256" {
		return nil, &problem{Status: http.StatusBadRequest, Type: "badSignatureAlgorithm", Detail: "only ES256 is accepted"}
	}
	if want := s.base + r.URL.Path; header.URL != want {
		return nil, &problem{Status: http.StatusUnauthorized, Type: "unauthorized", Detail: fmt.Sprintf("the signed url is %q, the request went to %q", header.URL, want)}
	}
	if (header.KeyID == "") == (len(header.Key) == 0) {
		return nil, malformed("exactly one of kid and jwk is needed")
	}
	verified := &verifiedRequest{}
	if byKey {
		if len(header.Key) == 0 {
			return nil, malformed("this request must carry its jwk")
		}
		if verified.key, err = parseAccountKey(header.Key); err != nil {
			return nil, &problem{Status: http.StatusBadRequest, Type: "badPublicKey", Detail: err.Error()}
		}
	} else {
		if header.KeyID == "" {
			return nil, malformed("this request must carry its kid")
		}
		if verified.account = s.accountByURL(header.KeyID); verified.account == nil {
			return nil, &problem{Status: http.StatusBadRequest, Type: "accountDoesNotExist", Detail: "no valid account " + header.KeyID}
		}
		verified.key = verified.account.key
	}
	signature, err := base64.RawURLEncoding.DecodeString(signed.Signature)
	if err != nil || !verified.key.verifies(signed.Protected+"."+signed.Payload, signature) {
		return nil, &problem{Status: http.StatusUnauthorized, Type: "unauthorized", Detail: "the JWS signature does not verify"}
	}
	if !s.takeNonce(header.Nonce) {
		return nil, &problem{Status: http.StatusBadRequest, Type: "badNonce", Detail: "the nonce is unknown or used"}
	}
	if verified.payload, err = base64.RawURLEncoding.DecodeString(signed.Payload); err != nil {
		return nil, malformed("payload: %v", err)
	}
	return verified, nil
}
