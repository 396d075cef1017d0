package endpoint

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"perdure/integration/bench/h2lite"
	"perdure/integration/bench/rawproto"
)

type rawDef struct {
	ty       string // SERVICE or VIRTUAL_OBJECT
	waiting  bool   // asks for the short inactivity timeout
	handlers map[string]rawH
}

type rawH struct {
	ty string // "", EXCLUSIVE, SHARED
	h  rawproto.Handler
}

// Config says how the services are served.
type Config struct {
	// RequestResponse announces the request/response mode (for HTTP/1.1) instead of bidirectional streams (for h2c).
	RequestResponse bool
	// Inactivity is the inactivity timeout that the waiting services ask for; negative leaves it to the server.
	Inactivity time.Duration
	// Retention is the journal retention that all services ask for; negative leaves it to the server.
	Retention time.Duration
}

// Endpoint serves the benchmark services, over net/http (HTTP/1.1) or h2lite (h2c), and counts what only it can see.
type Endpoint struct {
	cfg      Config
	defs     map[string]rawDef
	manifest []byte
	stats    stats
	gate     gate
}

// New returns an endpoint that has seen nothing.
func New(cfg Config) *Endpoint {
	e := &Endpoint{cfg: cfg}
	e.stats.reset()
	e.defs = e.definitions()
	e.manifest = manifest(cfg, e.defs)
	return e
}

func (e *Endpoint) route(w rawproto.Writer, path, contentType, accept string, body io.Reader, done <-chan struct{}) {
	switch {
	case path == "/discover":
		ct := "application/vnd.restate.endpointmanifest.v3+json"
		for _, v := range []string{"v4", "v3", "v2"} {
			if strings.Contains(accept, "endpointmanifest."+v+"+json") {
				ct = "application/vnd.restate.endpointmanifest." + v + "+json"
				break
			}
		}
		w.Start(200, ct)
		w.Write(e.manifest)
		return
	case path == "/health":
		w.Start(200, "")
		return
	case strings.HasPrefix(path, "/invoke/"):
		name := path[len("/invoke/"):]
		svc, hn, _ := strings.Cut(name, "/")
		d := e.defs[svc]
		if h, ok := d.handlers[hn]; ok {
			e.stats.attempt(name)
			if d.waiting {
				e.stats.active.Add(1)
				defer e.stats.active.Add(-1)
			}
			fn := h.h
			if fn == nil {
				fn = e.gated(done)
			}
			rawproto.Serve(w, contentType, body, fn)
			return
		}
	}
	w.Start(404, "")
}

// H2 serves one stream of h2lite.
func (e *Endpoint) H2(s *h2lite.Stream) {
	e.route(s, s.Path, s.ContentType, s.Accept, s, s.Done())
}

// ServeHTTP is for HTTP/1.1.
func (e *Endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.route(httpWriter{w}, r.URL.Path, r.Header.Get("Content-Type"), r.Header.Get("Accept"), r.Body, r.Context().Done())
}

type httpWriter struct{ http.ResponseWriter }

func (w httpWriter) Start(status int, ct string) {
	h := w.Header()
	if ct != "" {
		h["Content-Type"] = []string{ct}
	}
	h["X-Restate-Server"] = []string{"restate-sdk-bench/1.0.0"}
	w.WriteHeader(status)
}

func (w httpWriter) Flush() error { return http.NewResponseController(w.ResponseWriter).Flush() }

func (e *Endpoint) gated(done <-chan struct{}) rawproto.Handler {
	return func(c *rawproto.Ctx) ([]byte, error) {
		if !e.gate.wait(done) {
			return nil, errors.New("gone")
		}
		v, _ := c.Get("n")
		c.Set("n", enc(num(v)+1))
		e.stats.gatedDone(c.Input)
		return nil, nil
	}
}

func (e *Endpoint) definitions() map[string]rawDef {
	add := func(c *rawproto.Ctx) ([]byte, error) {
		v, _ := c.Get("n")
		d := int64(1)
		if len(c.Input) > 0 {
			d = num(c.Input)
		}
		n := num(v) + d
		c.Set("n", enc(n))
		return strconv.AppendInt(nil, n, 10), nil
	}
	get := func(c *rawproto.Ctx) ([]byte, error) {
		v, _ := c.Get("n")
		return strconv.AppendInt(nil, num(v), 10), nil
	}
	return map[string]rawDef{
		"Greeter": {ty: "SERVICE", handlers: map[string]rawH{
			"greet": {h: func(c *rawproto.Ctx) ([]byte, error) { return c.Input, nil }},
		}},
		"Counter": {ty: "VIRTUAL_OBJECT", handlers: map[string]rawH{
			"add": {ty: "EXCLUSIVE", h: add},
			"get": {ty: "SHARED", h: get},
		}},
		"Store": {ty: "VIRTUAL_OBJECT", handlers: map[string]rawH{
			"update": {ty: "EXCLUSIVE", h: func(c *rawproto.Ctx) ([]byte, error) {
				p, err := parse(c.Input)
				if err != nil {
					return nil, &rawproto.Failure{Code: 400, Msg: err.Error()}
				}
				v, _ := c.Get("v")
				c.Set("v", fill(p.Size))
				return strconv.AppendInt(nil, int64(len(v)), 10), nil
			}},
		}},
		"Steps": {ty: "SERVICE", handlers: map[string]rawH{
			"run": {h: func(c *rawproto.Ctx) ([]byte, error) {
				p, err := parse(c.Input)
				if err != nil {
					return nil, &rawproto.Failure{Code: 400, Msg: err.Error()}
				}
				sum := 0
				for i := 0; i < p.N; i++ {
					v, err := c.Run("step", func() ([]byte, error) { return fill(p.Size), nil })
					if err != nil {
						return nil, err
					}
					sum += len(v)
				}
				return strconv.AppendInt(nil, int64(sum), 10), nil
			}},
		}},
		"Chain": {ty: "SERVICE", handlers: map[string]rawH{
			"call": {h: func(c *rawproto.Ctx) ([]byte, error) {
				p, err := parse(c.Input)
				if err != nil {
					return nil, &rawproto.Failure{Code: 400, Msg: err.Error()}
				}
				if p.Depth <= 0 {
					return []byte("0"), nil
				}
				v, err := c.Call("Chain", "", "call", depthIn(p.Depth-1))()
				if err != nil {
					return nil, err
				}
				return strconv.AppendInt(nil, num(v)+1, 10), nil
			}},
		}},
		"Fan": {ty: "SERVICE", handlers: map[string]rawH{
			"call": {h: func(c *rawproto.Ctx) ([]byte, error) {
				p, err := parse(c.Input)
				if err != nil {
					return nil, &rawproto.Failure{Code: 400, Msg: err.Error()}
				}
				fs := make([]func() ([]byte, error), p.N)
				for i := range fs {
					fs[i] = c.Call("Greeter", "", "greet", []byte("f"))
				}
				n := 0
				for _, f := range fs {
					v, err := f()
					if err != nil {
						return nil, err
					}
					n += len(v)
				}
				return strconv.AppendInt(nil, int64(n), 10), nil
			}},
			"send": {h: func(c *rawproto.Ctx) ([]byte, error) {
				p, err := parse(c.Input)
				if err != nil {
					return nil, &rawproto.Failure{Code: 400, Msg: err.Error()}
				}
				for i := 0; i < p.N; i++ {
					c.Send("Sink", "", "put", strconv.AppendUint(nil, p.ID+uint64(i), 10))
				}
				return nil, nil
			}},
		}},
		"Sink": {ty: "SERVICE", handlers: map[string]rawH{
			"put": {h: func(c *rawproto.Ctx) ([]byte, error) { e.stats.sinkSaw(c.Input); return nil, nil }},
		}},
		"Gated": {ty: "VIRTUAL_OBJECT", handlers: map[string]rawH{
			"put": {ty: "EXCLUSIVE"}, // gated, which needs the stream
			"get": {ty: "SHARED", h: get},
		}},
		"Sleeper": {ty: "SERVICE", waiting: true, handlers: map[string]rawH{
			"sleep": {h: func(c *rawproto.Ctx) ([]byte, error) {
				p, err := parse(c.Input)
				if err != nil {
					return nil, &rawproto.Failure{Code: 400, Msg: err.Error()}
				}
				c.Sleep(time.Now().Add(time.Duration(p.Ms) * time.Millisecond))
				return []byte("ok"), nil
			}},
			"park": {h: func(c *rawproto.Ctx) ([]byte, error) {
				p, err := parse(c.Input)
				if err != nil {
					return nil, &rawproto.Failure{Code: 400, Msg: err.Error()}
				}
				e.stats.sleeperStarted(p.Name)
				due := time.UnixMilli(p.Until)
				c.Sleep(due)
				e.stats.sleeperFired(due)
				return []byte("ok"), nil
			}},
		}},
		"Awaker": {ty: "SERVICE", waiting: true, handlers: map[string]rawH{
			"self": {h: func(c *rawproto.Ctx) ([]byte, error) {
				id, wait := c.Awakeable()
				c.Send("Awaker", "", "resolve", []byte(id))
				return wait()
			}},
			"resolve": {h: func(c *rawproto.Ctx) ([]byte, error) {
				c.Resolve(string(c.Input), []byte("done"))
				return nil, nil
			}},
			"park": {h: func(c *rawproto.Ctx) ([]byte, error) {
				id, wait := c.Awakeable()
				name := string(c.Input)
				if _, err := c.Run("publish", func() ([]byte, error) {
					e.stats.mu.Lock()
					e.stats.awk[name] = id
					e.stats.mu.Unlock()
					return nil, nil
				}); err != nil {
					return nil, err
				}
				return wait()
			}},
		}},
	}
}

func depthIn(d int) []byte { b, _ := json.Marshal(in{Depth: d}); return b }

func manifest(cfg Config, defs map[string]rawDef) []byte {
	type m = map[string]any
	var svcs []m
	for name, d := range defs {
		var hs []m
		for hn, h := range d.handlers {
			e := m{"name": hn,
				"input":  m{"required": false, "contentType": "*/*"},
				"output": m{"contentType": "application/octet-stream", "setContentTypeIfEmpty": false}}
			if h.ty != "" {
				e["ty"] = h.ty
			}
			hs = append(hs, e)
		}
		s := m{"name": name, "ty": d.ty, "handlers": hs}
		if d.waiting && cfg.Inactivity >= 0 {
			s["inactivityTimeout"] = cfg.Inactivity.Milliseconds()
		}
		if cfg.Retention >= 0 {
			s["journalRetention"] = cfg.Retention.Milliseconds()
		}
		svcs = append(svcs, s)
	}
	mode := "BIDI_STREAM"
	if cfg.RequestResponse {
		mode = "REQUEST_RESPONSE"
	}
	b, _ := json.Marshal(m{"protocolMode": mode, "minProtocolVersion": 5, "maxProtocolVersion": 7, "services": svcs})
	return b
}
