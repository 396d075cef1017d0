package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
)

// Endpoint is the address of a deployment: either an HTTP address or a Lambda function. It is comparable, so
// it can be the key of a map. Make it with ParseURL or LambdaFunction.
type Endpoint struct {
	// Scheme is "http" (HTTP/2 with prior knowledge, in clear text) or "https" (ALPN decides between
	// HTTP/2 and HTTP/1.1); empty for Lambda.
	Scheme string
	// Authority is host[:port] as it is sent in :authority or Host, the port left out when it is the
	// scheme's default.
	Authority string
	// Prefix is the path of the deployment without trailing slash, "" for none; escaped as on the wire.
	Prefix string
	// Query is the query of the deployment's URL without "?"; it is kept after each request's path.
	Query string
	// UseHTTP11 forces HTTP/1.1.
	UseHTTP11 bool

	// Function is the qualified Lambda ARN. When it is set, all fields above are empty.
	Function string
	// Role is the ARN of the role to assume for calling Function, or "".
	Role string
	// Concurrency is how many calls of Function may run at once, 0 for the transport's own limit.
	Concurrency int
	// Zstd says that Function announced that it understands zstd compressed bodies.
	Zstd bool
}

// ParseURL reads an http or https URL of a deployment. A fragment or user information is refused: neither
// would be sent.
func ParseURL(raw string, useHTTP11 bool) (Endpoint, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return Endpoint{}, fmt.Errorf("parse deployment address: %w", err)
	}
	ep := Endpoint{
		Scheme:    strings.ToLower(u.Scheme),
		Prefix:    strings.TrimRight(u.EscapedPath(), "/"),
		Query:     u.RawQuery,
		UseHTTP11: useHTTP11,
	}
	switch {
	case ep.Scheme != "http" && ep.Scheme != "https":
		return Endpoint{}, fmt.Errorf("deployment address %q: scheme must be http or https", raw)
	case u.Hostname() == "":
		return Endpoint{}, fmt.Errorf("deployment address %q: host is missing", raw)
	case u.User != nil:
		return Endpoint{}, errors.New("deployment address holds user information: send credentials as additional headers")
	case u.Fragment != "":
		return Endpoint{}, fmt.Errorf("deployment address %q: remove the fragment", raw)
	}
	ep.Authority = authority(u.Hostname(), u.Port(), ep.Scheme)
	return ep, nil
}

func authority(host, port, scheme string) string {
	host = strings.ToLower(host)
	if port == "" || port == defaultPort(scheme) {
		if strings.Contains(host, ":") {
			return "[" + host + "]"
		}
		return host
	}
	return net.JoinHostPort(host, port)
}

func defaultPort(scheme string) string {
	if scheme == "https" {
		return "443"
	}
	return "80"
}

// LambdaFunction returns the endpoint of a Lambda function.
func LambdaFunction(arn, role string, zstd bool) Endpoint {
	return Endpoint{Function: arn, Role: role, Zstd: zstd}
}

// LambdaPayload is how many bytes Lambda takes as the payload of a synchronous call, and gives back: 6 MiB.
const LambdaPayload = 6 << 20

// MaxBody is how many bytes the body of a request to e may have for sure, 0 for any number. A Lambda function gets it in base64,
// in a payload with the request's header; more may fit if the function understands compression.
func (e Endpoint) MaxBody() int {
	if !e.IsLambda() {
		return 0
	}
	const header = 64 << 10
	return (LambdaPayload - header) / 4 * 3
}

// IsLambda tells the two kinds apart.
func (e Endpoint) IsLambda() bool { return e.Function != "" }

// Address is host:port to connect to.
func (e Endpoint) Address() string {
	if _, _, err := net.SplitHostPort(e.Authority); err == nil {
		return e.Authority
	}
	return e.Authority + ":" + defaultPort(e.Scheme)
}

// Target joins the prefix, a request's path and the query: what stands in the request line.
func (e Endpoint) Target(path string) string {
	if e.Query == "" {
		if e.Prefix == "" {
			return path
		}
		return e.Prefix + path
	}
	return e.Prefix + path + "?" + e.Query
}

// String is the URL, or the ARN, for messages and logs. The query is left out: it may hold a token.
func (e Endpoint) String() string {
	if e.IsLambda() {
		return e.Function
	}
	return e.Scheme + "://" + e.Authority + e.Prefix
}

// Router sends each exchange to the transport of the endpoint's kind. Lambda may be nil on a server without it.
type Router struct {
	HTTP   Transport
	Lambda Transport
}

var _ Transport = Router{}

// Open implements Transport.
func (r Router) Open(ctx context.Context, ep Endpoint, req Request) (Stream, error) {
	t := r.HTTP
	if ep.IsLambda() {
		t = r.Lambda
	}
	if t == nil {
		return nil, &Error{Kind: Connect, Endpoint: ep.String(), Err: errors.New("this server has no transport for this kind of endpoint")}
	}
	return t.Open(ctx, ep, req)
}
