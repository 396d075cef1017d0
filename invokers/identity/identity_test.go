package identity

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"os"
	"strings"
	"testing"
	"time"
)

type vector struct {
	PEM    string `json:"private_key_pem"`
	KeyID  string `json:"key_id"`
	Tokens []struct {
		Aud string
		Sub *string
		JWT string
	}
}

func load(t testing.TB) vector {
	t.Helper()
	b, err := os.ReadFile("testdata/request-identity.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vector
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// TestCapturedTokens: key id and tokens are byte for byte those of the original server.
func TestCapturedTokens(t *testing.T) {
	v := load(t)
	s, err := New([]byte(v.PEM), DefaultLeeway)
	if err != nil {
		t.Fatal(err)
	}
	if s.KeyID() != v.KeyID {
		t.Errorf("key id %s, want %s", s.KeyID(), v.KeyID)
	}
	for _, want := range v.Tokens {
		claims, err := base64.RawURLEncoding.DecodeString(strings.Split(want.JWT, ".")[1])
		if err != nil {
			t.Fatal(err)
		}
		var c struct{ Iat int64 }
		if err := json.Unmarshal(claims, &c); err != nil {
			t.Fatal(err)
		}
		h := s.Headers(nil, time.Unix(c.Iat, 999), want.Aud, want.Sub)
		if len(h) != 2 || h[0].Name != "x-restate-signature-scheme" || h[0].Value != "v1" || h[1].Name != "x-restate-jwt-v1" {
			t.Errorf("headers %v", h)
		}
		if h[1].Value != want.JWT {
			t.Errorf("%s: token\n%s\nwant\n%s", want.Aud, h[1].Value, want.JWT)
		}
	}
}

func encodePEM(typ string, b []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: b})
}

func TestRefusedKeys(t *testing.T) {
	v := load(t)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ecDER, err := x509.MarshalPKCS8PrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, want string
		pem        []byte
		leeway     time.Duration
	}{
		{"no PEM", "not in PEM", []byte("x"), DefaultLeeway},
		{"public key", "expected a PRIVATE KEY", encodePEM("PUBLIC KEY", nil), DefaultLeeway},
		{"damaged", "parse PKCS#8", encodePEM("PRIVATE KEY", []byte{1}), DefaultLeeway},
		{"other algorithm", "expected Ed25519", encodePEM("PRIVATE KEY", ecDER), DefaultLeeway},
		{"two keys", "more than one", []byte(v.PEM + "\n" + v.PEM), DefaultLeeway},
		{"short leeway", "at least 1s", []byte(v.PEM), time.Millisecond},
	} {
		if _, err := New(c.pem, c.leeway); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want an error with %q", c.name, err, c.want)
		}
	}
}

// TestSubjectIsJSON: any key gives claims that are JSON and say the key.
func TestSubjectIsJSON(t *testing.T) {
	s, err := New([]byte(load(t).PEM), DefaultLeeway)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"", `a"b\c`, "\x00\x1f\b\f\n\r\t", "é☃𝄞", "<&>\u2028", "\xff"} {
		token := s.Headers(nil, time.Unix(1e9, 0), "/invoke/S/h", &key)[1].Value
		parts := strings.Split(token, ".")
		claims, err := base64.RawURLEncoding.DecodeString(parts[1])
		if err != nil {
			t.Fatal(err)
		}
		var c struct {
			Sub           string
			Iat, Nbf, Exp int64
		}
		if err := json.Unmarshal(claims, &c); err != nil {
			t.Errorf("key %q: claims %s: %v", key, claims, err)
		}
		if want := strings.ToValidUTF8(key, "\ufffd"); c.Sub != want || c.Nbf != c.Iat-60 || c.Exp != c.Iat+60 {
			t.Errorf("key %q: %+v", key, c)
		}
		sig, err := base64.RawURLEncoding.DecodeString(parts[2])
		if err != nil || !ed25519.Verify(s.key.Public().(ed25519.PublicKey), []byte(parts[0]+"."+parts[1]), sig) {
			t.Errorf("key %q: the signature does not verify (%v)", key, err)
		}
	}
}

func TestBase58(t *testing.T) {
	for in, want := range map[string]string{"": "", "\x00": "1", "\x00\x00\x01": "112", "Hello World!": "2NEpo7TZRRrLZSi2U"} {
		if got := base58([]byte(in)); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func BenchmarkHeaders(b *testing.B) {
	s, err := New([]byte(load(b).PEM), DefaultLeeway)
	if err != nil {
		b.Fatal(err)
	}
	key := "some-key"
	b.ReportAllocs()
	for b.Loop() {
		s.Headers(nil, time.Unix(1e9, 0), "/invoke/Counter/add", &key)
	}
}
