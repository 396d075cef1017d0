package services

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"

	"github.com/restatedev/sdk-go/server"
)

// memory is what handlers use of Memory.
type memory interface {
	Count(token string) int
	Counted(token string) int
	Note(token, line string)
	Lines(token string) []string
	Open(token string)
	IsOpen(token string) bool
	Pass(ctx context.Context, token string) error
}

var (
	_ memory = (*Memory)(nil)
	_ memory = remoteMemory("")
)

// ServeHTTP gives other processes the memory, for endpoints that are many short-lived processes, as Lambda functions are.
func (m *Memory) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	token := r.URL.Query().Get("token")
	var out any
	switch r.URL.Path {
	case "/count":
		out = m.Count(token)
	case "/counted":
		out = m.Counted(token)
	case "/note":
		m.Note(token, r.URL.Query().Get("line"))
	case "/lines":
		out = m.Lines(token)
	case "/open":
		m.Open(token)
	case "/isopen":
		out = m.IsOpen(token)
	case "/pass":
		if m.Pass(r.Context(), token) != nil {
			return // the process that asked is gone
		}
	default:
		http.NotFound(w, r)
		return
	}
	if err := json.NewEncoder(w).Encode(out); err != nil {
		slog.Debug("answer about memory", "err", err)
	}
}

// remoteMemory is a Memory in another process, the base of whose URL it is.
type remoteMemory string

// ask asks for something and stores the answer in out. It panics when the memory is gone: then the test is over, and the
// process that runs the handler is of no use any more.
func (m remoteMemory) ask(ctx context.Context, what, token, line string, out any) error {
	q := url.Values{"token": {token}, "line": {line}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, string(m)+"/"+what+"?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || len(bytes.TrimSpace(b)) == 0 {
		return fmt.Errorf("memory: %s: status %d: %s", what, resp.StatusCode, b)
	}
	return json.Unmarshal(b, out)
}

func (m remoteMemory) must(what, token, line string, out any) {
	if err := m.ask(context.Background(), what, token, line, out); err != nil {
		panic(err)
	}
}

func (m remoteMemory) Count(token string) (n int)      { m.must("count", token, "", &n); return n }
func (m remoteMemory) Counted(token string) (n int)    { m.must("counted", token, "", &n); return n }
func (m remoteMemory) Note(token, line string)         { m.must("note", token, line, new(any)) }
func (m remoteMemory) Lines(token string) (l []string) { m.must("lines", token, "", &l); return l }
func (m remoteMemory) Open(token string)               { m.must("open", token, "", new(any)) }
func (m remoteMemory) IsOpen(token string) (ok bool)   { m.must("isopen", token, "", &ok); return ok }

func (m remoteMemory) Pass(ctx context.Context, token string) error {
	return m.ask(ctx, "pass", token, "", new(any))
}

// LambdaHandler is the endpoint of one variant as a Lambda function. The function's processes share the memory at the URL,
// which serves a Memory.
func LambdaHandler(o Options, memoryURL string) (server.LambdaHandlerFunc, error) {
	h, err := endpoint(o, remoteMemory(memoryURL)).LambdaHandler()
	if err != nil {
		return nil, fmt.Errorf("bind services: %w", err)
	}
	return h, nil
}
