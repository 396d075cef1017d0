package lambdaemu

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	algorithm  = "AWS4-HMAC-SHA256"
	timeFormat = "20060102T150405Z"
)

// signature is a parsed Authorization header.
type signature struct {
	accessKey             string
	date, region, service string
	headers               []string // signed, lower case, sorted
	value                 string
}

func (s *signature) scope() string {
	return s.date + "/" + s.region + "/" + s.service + "/aws4_request"
}

var errNoSignature = errors.New("there is no SigV4 signature")

// parseAuthorization reads
// AWS4-HMAC-SHA256 Credential=<key>/<date>/<region>/<service>/aws4_request, SignedHeaders=<a;b>, Signature=<hex>.
func parseAuthorization(h string) (*signature, error) {
	rest, ok := strings.CutPrefix(h, algorithm+" ")
	if !ok {
		return nil, errNoSignature
	}
	var s signature
	for part := range strings.SplitSeq(rest, ",") {
		key, value, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok {
			return nil, fmt.Errorf("part %q of the Authorization header is no key=value", part)
		}
		switch key {
		case "Credential":
			p := strings.Split(value, "/")
			if len(p) != 5 || p[4] != "aws4_request" {
				return nil, fmt.Errorf("credential %q is not key/date/region/service/aws4_request", value)
			}
			s.accessKey, s.date, s.region, s.service = p[0], p[1], p[2], p[3]
		case "SignedHeaders":
			s.headers = strings.Split(value, ";")
		case "Signature":
			s.value = value
		}
	}
	switch {
	case s.accessKey == "" || s.value == "":
		return nil, errors.New("the Authorization header lacks a credential or a signature")
	case !slices.IsSorted(s.headers) || !slices.Contains(s.headers, "host") || !slices.Contains(s.headers, "x-amz-date"):
		return nil, errors.New("the signed headers must be sorted and contain host and x-amz-date")
	}
	return &s, nil
}

// checkTime compares the time of signing with the clock and with the scope.
func (s *signature) checkTime(r *http.Request, now time.Time) error {
	signed, err := time.Parse(timeFormat, r.Header.Get("X-Amz-Date"))
	if err != nil {
		return fmt.Errorf("X-Amz-Date: %w", err)
	}
	if signed.Format("20060102") != s.date {
		return errors.New("date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP")
	}
	if d := now.Sub(signed); d > clockSkew || d < -clockSkew {
		return fmt.Errorf("signature is %s old, more than %s are not accepted", d.Round(time.Second), clockSkew)
	}
	return nil
}

// verify computes the signature that the holder of secret would have made.
func (s *signature) verify(r *http.Request, body []byte, secret string) error {
	for name := range r.Header {
		n := strings.ToLower(name)
		if (strings.HasPrefix(n, "x-amz-") || n == "content-type") && !slices.Contains(s.headers, n) {
			return fmt.Errorf("header %s is not signed", n)
		}
	}
	sum := sha256.Sum256(body)
	payload := hex.EncodeToString(sum[:])
	if h := r.Header.Get("X-Amz-Content-Sha256"); h != "" && h != payload {
		return errors.New("X-Amz-Content-Sha256 is not the hash of the body")
	}
	canonical := canonicalRequest(r, s.headers, payload)
	hash := sha256.Sum256([]byte(canonical))
	toSign := algorithm + "\n" + r.Header.Get("X-Amz-Date") + "\n" + s.scope() + "\n" + hex.EncodeToString(hash[:])
	key := mac(mac(mac(mac([]byte("AWS4"+secret), s.date), s.region), s.service), "aws4_request")
	if !hmac.Equal([]byte(hex.EncodeToString(mac(key, toSign))), []byte(s.value)) {
		return errors.New("the signature does not match")
	}
	return nil
}

func mac(key []byte, data string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(data))
	return h.Sum(nil)
}

// canonicalRequest is the text that is signed.
func canonicalRequest(r *http.Request, headers []string, payloadHash string) string {
	var b strings.Builder
	b.WriteString(r.Method + "\n")
	b.WriteString(encode(r.URL.EscapedPath(), "/") + "\n")
	b.WriteString(canonicalQuery(r.URL.RawQuery) + "\n")
	for _, h := range headers {
		var values []string
		switch h {
		case "host":
			values = []string{r.Host}
		case "content-length":
			values = []string{fmt.Sprint(r.ContentLength)}
		default:
			values = slices.Clone(r.Header.Values(h))
		}
		for i, v := range values {
			values[i] = strings.Join(strings.Fields(v), " ")
		}
		b.WriteString(h + ":" + strings.Join(values, ",") + "\n")
	}
	b.WriteString("\n" + strings.Join(headers, ";") + "\n" + payloadHash)
	return b.String()
}

func canonicalQuery(raw string) string {
	values, err := url.ParseQuery(raw)
	if err != nil {
		return raw // cannot have been signed by anybody who follows the rules
	}
	var pairs []string
	for k, vs := range values {
		for _, v := range vs {
			pairs = append(pairs, encode(k, "")+"="+encode(v, ""))
		}
	}
	slices.Sort(pairs)
	return strings.Join(pairs, "&")
}

// encode percent-encodes all but the unreserved characters and those in keep. Paths are encoded a second time here: the
// signature of all services but S3 is over the doubly encoded path.
func encode(s, keep string) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-_.~"+keep, c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
