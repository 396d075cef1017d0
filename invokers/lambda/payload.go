package lambda

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/klauspost/compress/zstd"

	"perdure/invokers/transport"
)

// appendEvent appends the payload of a call: the request as a JSON object whose body is the whole stream of frames in
// base64. The order of the fields and the escaping are those that functions have seen so far.
func appendEvent(b []byte, req transport.Request, extra []transport.Field, body []byte) []byte {
	b = slices.Grow(b, 256+base64.StdEncoding.EncodedLen(len(body)))
	b = appendString(append(b, `{"path":`...), req.Path)
	b = appendString(append(b, `,"httpMethod":`...), req.Method)
	b = append(b, `,"headers":{`...)
	for i, f := range unify(append(slices.Clone(req.Header), extra...)) {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendString(b, f.Name), ':')
		b = appendString(b, f.Value)
	}
	b = append(b, `},"body":"`...)
	b = base64.StdEncoding.AppendEncode(b, body)
	return append(b, `","isBase64Encoded":true}`...)
}

// unify joins fields of the same name, because the event holds one value for each.
func unify(fields []transport.Field) []transport.Field {
	out := fields[:0]
	for _, f := range fields {
		if i := slices.IndexFunc(out, func(o transport.Field) bool { return o.Name == f.Name }); i >= 0 {
			out[i].Value += ", " + f.Value
		} else {
			out = append(out, f)
		}
	}
	return out
}

const hexDigits = "0123456789abcdef"

// appendString appends a JSON string that escapes only what must be. Bytes that are no UTF-8 become U+FFFD.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			b = appendASCII(b, c)
			i++
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		b = utf8.AppendRune(b, r)
		i += size
	}
	return append(b, '"')
}

func appendASCII(b []byte, c byte) []byte {
	switch {
	case c == '"' || c == '\\':
		return append(b, '\\', c)
	case c >= ' ':
		return append(b, c)
	}
	if i := strings.IndexByte("\b\f\n\r\t", c); i >= 0 {
		return append(b, '\\', "bfnrt"[i])
	}
	return append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
}

// answer is the payload that a function returns.
type answer struct {
	StatusCode      int                    `json:"statusCode"`
	Headers         map[string]headerValue `json:"headers"`
	Body            *string                `json:"body"`
	IsBase64Encoded bool                   `json:"isBase64Encoded"`
}

// headerValue is a string, or a list of which the first value counts.
type headerValue []string

func (v *headerValue) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '[' {
		return json.Unmarshal(b, (*[]string)(v))
	}
	var s *string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	if s != nil {
		*v = headerValue{*s}
	}
	return nil
}

// decodeAnswer reads a function's payload. zipped says that body is to be decompressed.
func decodeAnswer(payload []byte) (resp transport.Response, body []byte, zipped bool, err error) {
	if len(bytes.TrimSpace(payload)) == 0 {
		return resp, nil, false, errors.New("function returned no payload")
	}
	var a answer
	if err := json.Unmarshal(payload, &a); err != nil {
		return resp, nil, false, fmt.Errorf("function returned no answer of an SDK endpoint, does it run one? %w", err)
	}
	if a.StatusCode < 200 || a.StatusCode > 999 {
		return resp, nil, false, fmt.Errorf("function returned status %d: does it run an SDK endpoint?", a.StatusCode)
	}
	resp.Status = a.StatusCode
	for _, name := range sortedKeys(a.Headers) {
		for _, v := range a.Headers[name] {
			resp.Header = append(resp.Header, transport.Field{Name: name, Value: v})
		}
	}
	if a.Body == nil {
		return resp, nil, false, nil
	}
	body = []byte(*a.Body)
	if a.IsBase64Encoded {
		n, err := base64.StdEncoding.Decode(body, body)
		if err != nil {
			return resp, nil, false, fmt.Errorf("decode the body of the function's payload: %w", err)
		}
		body = body[:n]
	}
	switch encoding := strings.ToLower(strings.TrimSpace(resp.Get("content-encoding"))); encoding {
	case "", "identity":
	case "zstd":
		return resp, body, true, nil
	default:
		return resp, nil, false, fmt.Errorf("body of the function's payload has content-encoding %.50q, which was not asked for", encoding)
	}
	return resp, body, false, nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// maxWindow bounds the memory of one decompression.
const maxWindow = 16 << 20

// newDecoder returns a decoder that works in its caller's goroutine and holds at most a window of memory.
func newDecoder(body []byte) (*zstd.Decoder, error) {
	return zstd.NewReader(bytes.NewReader(body), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
}
