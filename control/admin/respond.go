package admin

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// minCompressed is the size from which on a body is compressed.
const minCompressed = 256

// zstdOnce makes the encoder when it is first needed: it is expensive, and shared.
type zstdOnce struct {
	once sync.Once
	enc  *zstd.Encoder
}

func (z *zstdOnce) encode(b []byte) []byte {
	z.once.Do(func() {
		// No error: the options are constants. One encoder works at a time, without goroutines.
		z.enc, _ = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithWindowSize(1<<20))
	})
	return z.enc.EncodeAll(b, nil)
}

// respond answers with JSON.
func (a *Admin) respond(w http.ResponseWriter, r *http.Request, status int, v any) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		a.deps.Log.Error("cannot encode an answer", "path", r.URL.Path, "err", err)
		a.respondEmpty(w, r, http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	a.respondBody(w, r, status, bytes.TrimSuffix(buf.Bytes(), []byte("\n")))
}

func (a *Admin) respondText(w http.ResponseWriter, r *http.Request, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	a.respondBody(w, r, status, []byte(text))
}

func (a *Admin) respondEmpty(w http.ResponseWriter, r *http.Request, status int) {
	a.count(r, status)
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(status)
}

func (a *Admin) respondBody(w http.ResponseWriter, r *http.Request, status int, b []byte) {
	a.count(r, status)
	h := w.Header()
	h.Set("Vary", "accept-encoding")
	if len(b) >= minCompressed {
		switch accepted(r.Header.Get("Accept-Encoding")) {
		case "zstd":
			h.Set("Content-Encoding", "zstd")
			b = a.zstd.encode(b)
		case "gzip":
			h.Set("Content-Encoding", "gzip")
			b = gzipped(b)
		}
	}
	h.Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(b) // the client is gone: nobody to tell
	}
}

func (a *Admin) count(r *http.Request, status int) {
	method := r.Method
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
	default:
		method = "other" // the client chooses, and must not choose the number of series
	}
	a.requests.WithLabelValues(method, strconv.Itoa(status)).Inc()
}

func gzipped(b []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	_, _ = w.Write(b) // to memory
	_ = w.Close()
	return buf.Bytes()
}

// accepted is the encoding to use: zstd before gzip, nothing when the client takes neither.
func accepted(header string) string {
	best := ""
	for part := range strings.SplitSeq(header, ",") {
		name, params, _ := strings.Cut(part, ";")
		q := strings.ReplaceAll(params, " ", "")
		if v, ok := strings.CutPrefix(q, "q="); ok {
			if f, err := strconv.ParseFloat(v, 64); err != nil || f == 0 {
				continue
			}
		}
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "zstd":
			return "zstd"
		case "gzip":
			best = "gzip"
		}
	}
	return best
}

// decode reads the JSON body into v.
func (c *call) decode(v any) error {
	ct, _, _ := strings.Cut(c.r.Header.Get("Content-Type"), ";")
	ct = strings.ToLower(strings.TrimSpace(ct))
	if ct != "application/json" && !(strings.HasPrefix(ct, "application/") && strings.HasSuffix(ct, "+json")) {
		return textError(http.StatusUnsupportedMediaType, "Expected request with `Content-Type: application/json`")
	}
	b, err := io.ReadAll(c.r.Body)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return textError(http.StatusRequestEntityTooLarge, "length limit exceeded")
	case err != nil: // the client went away, or was silent for too long
		return textError(http.StatusBadRequest, "Failed to read the request body: "+err.Error())
	}
	err = json.Unmarshal(b, v)
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &syntax):
		return textError(http.StatusBadRequest, "Failed to parse the request body as JSON: "+err.Error())
	case err != nil:
		return mismatch(err)
	case string(bytes.TrimSpace(b)) == "null": // which leaves v as it is
		return mismatch(errors.New("invalid type: null, expected an object"))
	}
	return nil
}

// mismatch says that the JSON is not of the expected shape.
func mismatch(err error) error {
	text := err.Error()
	var t *json.UnmarshalTypeError
	if errors.As(err, &t) {
		text = "invalid type: " + t.Value + ", expected " + inWords(t.Type)
		if t.Field != "" {
			text = t.Field + ": " + text
		}
	}
	return textError(http.StatusUnprocessableEntity, "Failed to deserialize the JSON body into the target type: "+text)
}

// inWords is what a Go type is in JSON.
func inWords(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Pointer:
		return inWords(t.Elem())
	case reflect.Bool:
		return "a boolean"
	case reflect.String:
		return "a string"
	case reflect.Slice, reflect.Array:
		return "an array"
	case reflect.Struct, reflect.Map:
		return "an object"
	}
	return "a number"
}

func missingField(name string) error {
	return mismatch(errors.New("missing field `" + name + "`"))
}

func badQueryString(param, why string) error {
	return textError(http.StatusBadRequest, "Failed to deserialize query string: "+param+": "+why)
}
