package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

const (
	defaultAdminURL   = "http://127.0.0.1:9070"
	defaultIngressURL = "http://127.0.0.1:8080"

	// adminTimeout bounds a request to the admin API. Registering asks the deployment for its services, several times if
	// need be, so this is longer than any one step of it.
	adminTimeout = 60 * time.Second
	// maxAnswer bounds what is read of an answer.
	maxAnswer = 64 << 20
)

// client talks to a server on behalf of one command.
type client struct {
	app            *app
	admin, ingress string
	token          string
	json           bool
	http           *http.Client
}

// clientFlags adds the flags that say which server to talk to, and fills c from them before the command runs.
func (a *app) clientFlags(cmd *cobra.Command, c *client) {
	*c = client{app: a, http: &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
	f := cmd.Flags()
	f.StringVar(&c.admin, "admin-url", "", "`URL` of the admin API (PERDURE_ADMIN_URL, default "+defaultAdminURL+")")
	f.StringVar(&c.ingress, "ingress-url", "", "`URL` of the ingress (PERDURE_INGRESS_URL, default "+defaultIngressURL+")")
	f.StringVar(&c.token, "token", "", "bearer `token` for the server (PERDURE_TOKEN)")
	output := "json"
	if f.Lookup(output) != nil {
		output = "json-output" // the command takes JSON as well
	}
	f.BoolVar(&c.json, output, false, "print JSON instead of text")
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := c.complete(); err != nil {
			return err
		}
		return run(cmd, args)
	}
}

func (c *client) complete() error {
	for _, u := range []struct {
		value           *string
		flag, env, deft string
	}{{&c.admin, "--admin-url", "PERDURE_ADMIN_URL", defaultAdminURL}, {&c.ingress, "--ingress-url", "PERDURE_INGRESS_URL", defaultIngressURL}} {
		if *u.value == "" {
			*u.value = c.app.getenv(u.env)
		}
		if *u.value == "" {
			*u.value = u.deft
		}
		parsed, err := parseURL(*u.value)
		if err != nil {
			return usagef("%s: %w", u.flag, err)
		}
		*u.value = strings.TrimSuffix(parsed.String(), "/")
	}
	if c.token == "" {
		c.token = c.app.getenv("PERDURE_TOKEN")
	}
	return nil
}

// parseURL reads an http or https URL; host:port alone means http.
func parseURL(s string) (*url.URL, error) {
	if !strings.Contains(s, "://") {
		s = "http://" + s
	}
	u, err := url.Parse(s)
	if err != nil {
		return nil, err
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, fmt.Errorf("%q is no URL that can be used: write http://host:port", s)
	}
	return u, nil
}

// apiError is an answer that is not a success.
type apiError struct {
	Status  int
	Message string
	Code    string // the server's code for the mistake, or empty
}

func (e *apiError) Error() string {
	s := e.Message
	if e.Code != "" {
		tag := "[" + e.Code + "] "
		for strings.HasPrefix(s, tag) { // some answers say it twice
			s = s[len(tag):]
		}
		if !strings.Contains(s, e.Code) {
			s = tag + s
		}
	}
	switch e.Status {
	case http.StatusUnauthorized, http.StatusForbidden:
		s += "; the server wants a token: pass --token or set PERDURE_TOKEN"
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		s += "; try again in a moment"
	}
	return fmt.Sprintf("%s (HTTP %d)", s, e.Status)
}

func newAPIError(status int, body []byte) *apiError {
	e := &apiError{Status: status}
	var shaped struct {
		Message     string  `json:"message"`
		RestateCode *string `json:"restate_code"`
	}
	if json.Unmarshal(body, &shaped) == nil && shaped.Message != "" {
		e.Message = shaped.Message
		if shaped.RestateCode != nil {
			e.Code = *shaped.RestateCode
		}
		return e
	}
	if e.Message = strings.TrimSpace(string(body[:min(len(body), 2000)])); e.Message == "" {
		e.Message = "the server answered " + http.StatusText(status)
	}
	return e
}

// answer is a success.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// do sends a request and reads the whole answer. Statuses other than 2xx are an apiError.
func (c *client) do(ctx context.Context, method, target string, body []byte, header http.Header) (*answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	req.Header.Set("User-Agent", "perdure/"+version)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, unreachable(req.URL, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", req.URL.Host, err)
	}
	if len(data) > maxAnswer {
		return nil, fmt.Errorf("the answer of %s is larger than %d MiB", req.URL.Host, maxAnswer>>20)
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return nil, newAPIError(resp.StatusCode, data)
	}
	return &answer{status: resp.StatusCode, header: resp.Header, body: data}, nil
}

// unreachable says in plain words that a server did not answer. The URL is shown without the part that may hold secrets.
func unreachable(u *url.URL, err error) error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	if errors.Is(err, context.Canceled) {
		return err
	}
	return fmt.Errorf("cannot reach the server at %s://%s: %w; is it running (perdure server), and are --admin-url and --ingress-url right?", u.Scheme, u.Host, err)
}

// adminDo asks the admin API and decodes the answer into out unless that is nil.
func (c *client) adminDo(ctx context.Context, method, path string, in, out any) (*answer, error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	var body []byte
	header := http.Header{"Accept": {"application/json"}}
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
		header.Set("Content-Type", "application/json")
	}
	ans, err := c.do(ctx, method, c.admin+path, body, header)
	if err != nil || out == nil {
		return ans, err
	}
	if err := json.Unmarshal(ans.body, out); err != nil {
		return nil, fmt.Errorf("what answers at %s is no admin API of Perdure: %w", c.admin, err)
	}
	return ans, nil
}

// printJSON writes v indented.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// rawJSON writes an answer's body indented.
func rawJSON(w io.Writer, body []byte) error {
	var b bytes.Buffer
	if err := json.Indent(&b, bytes.TrimSpace(body), "", "  "); err != nil {
		return fmt.Errorf("the answer is not JSON: %w", err)
	}
	_, err := fmt.Fprintln(w, b.String())
	return err
}

// table writes rows in columns under a head.
func table(w io.Writer, head []string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.Join(head, "\t"))
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	return t.Flush()
}
