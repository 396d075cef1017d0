// Package identity signs the requests that the server sends to services, so that a service can refuse
// everybody else. A signature is a JSON web token (EdDSA over Ed25519) that names the request's path, a short
// span of time and, for objects and workflows, the key.
//
// The private key is read once and never printed. Signing is deterministic.
package identity

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"time"
	"unicode/utf8"

	"perdure/invokers/transport"
)

// DefaultLeeway is the usual time around the present for which a token is valid.
const DefaultLeeway = time.Minute

// Signer signs requests. It is safe for concurrent use.
type Signer struct {
	key    ed25519.PrivateKey
	keyID  string
	header string // first part of all tokens, with its dot
	leeway int64  // s
}

// New reads an Ed25519 private key in a PKCS#8 PEM file's content. Tokens are valid from leeway before to
// leeway after their making; at least a second. Too short, and a service whose clock differs refuses
// requests; too long, and a stolen token can be used for longer.
func New(pemFile []byte, leeway time.Duration) (*Signer, error) {
	if leeway < time.Second {
		return nil, fmt.Errorf("request identity: the expiration is %s, must be at least 1s", leeway)
	}
	block, rest := pem.Decode(pemFile)
	switch {
	case block == nil:
		return nil, errors.New("request identity: the file is not in PEM format")
	case block.Type != "PRIVATE KEY":
		return nil, fmt.Errorf("request identity: the PEM block is a %q, expected a PRIVATE KEY in PKCS#8", block.Type)
	}
	if next, _ := pem.Decode(rest); next != nil {
		return nil, errors.New("request identity: the file holds more than one PEM block; keep only the private key")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("request identity: parse PKCS#8 key: %w", err)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("request identity: the key is a %T, expected Ed25519 (openssl genpkey -algorithm ed25519)", parsed)
	}
	s := &Signer{key: key, leeway: int64(leeway / time.Second)}
	s.keyID = "publickeyv1_" + base58(key.Public().(ed25519.PublicKey))
	s.header = encode([]byte(`{"typ":"JWT","alg":"EdDSA","kid":"`+s.keyID+`"}`)) + "."
	return s, nil
}

// KeyID is the public key in the form in which it is given to SDKs.
func (s *Signer) KeyID() string { return s.keyID }

// Headers appends the headers of a request. path is that of the request without the deployment's own
// prefix; subject is the key of an object or workflow, nil for other requests.
func (s *Signer) Headers(dst []transport.Field, now time.Time, path string, subject *string) []transport.Field {
	return append(dst,
		transport.Field{Name: "x-restate-signature-scheme", Value: "v1"},
		transport.Field{Name: "x-restate-jwt-v1", Value: s.token(now, path, subject), NoIndex: true},
	)
}

func (s *Signer) token(now time.Time, audience string, subject *string) string {
	t := now.Unix()
	c := make([]byte, 0, 256)
	c = appendJSONString(append(c, `{"aud":`...), audience)
	c = strconv.AppendInt(append(c, `,"exp":`...), t+s.leeway, 10)
	c = strconv.AppendInt(append(c, `,"iat":`...), t, 10)
	c = strconv.AppendInt(append(c, `,"nbf":`...), t-s.leeway, 10)
	if subject != nil {
		c = appendJSONString(append(c, `,"sub":`...), *subject)
	}
	c = append(c, '}')
	signed := s.header + encode(c)
	return signed + "." + encode(ed25519.Sign(s.key, []byte(signed)))
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// appendJSONString appends a JSON string with the escapes that JSON demands and no others. Bytes that are
// not UTF-8 become the replacement character.
func appendJSONString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r == '\b':
			b = append(b, `\b`...)
		case r == '\f':
			b = append(b, `\f`...)
		case r == '\n':
			b = append(b, `\n`...)
		case r == '\r':
			b = append(b, `\r`...)
		case r == '\t':
			b = append(b, `\t`...)
		case r < ' ':
			b = append(b, `\u00`...)
			b = append(b, hex[r>>4], hex[r&15])
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return append(b, '"')
}

// base58 is the encoding of Bitcoin addresses: a big number in 58 digits, leading zero bytes as 1.
func base58(b []byte) string {
	const digits = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
	n, base, digit := new(big.Int).SetBytes(b), big.NewInt(58), new(big.Int)
	var out []byte
	for n.Sign() > 0 {
		n.DivMod(n, base, digit)
		out = append(out, digits[digit.Int64()])
	}
	for _, c := range b {
		if c != 0 {
			break
		}
		out = append(out, '1')
	}
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	return string(out)
}
