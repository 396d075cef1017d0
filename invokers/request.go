package invokers

import (
	"slices"
	"strings"
	"sync"

	"perdure/control/schema"
	"perdure/invokers/transport"
)

// endpoint is a deployment prepared for requests.
type endpoint struct {
	deployment *schema.Deployment
	address    transport.Endpoint
	// headers are the additional ones: those of the deployment, in the order of their names, after those
	// of the server that the deployment does not replace.
	headers []transport.Field
}

// endpointCache prepares each deployment once. Snapshots share deployments by pointer, so a pointer that
// differs is a deployment that changed.
type endpointCache struct {
	m sync.Map // ident.DeploymentID → *endpoint
}

func (c *endpointCache) get(d *schema.Deployment, cfg *Config) (*endpoint, error) {
	if v, ok := c.m.Load(d.ID); ok {
		if e := v.(*endpoint); e.deployment == d {
			return e, nil
		}
	}
	addr, err := addressOf(d)
	if err != nil {
		return nil, err
	}
	e := &endpoint{deployment: d, address: addr, headers: additionalHeaders(cfg.AdditionalHeaders, d.Headers)}
	c.m.Store(d.ID, e)
	return e, nil
}

func addressOf(d *schema.Deployment) (transport.Endpoint, error) {
	if l := d.Address.Lambda; l != nil {
		ep := transport.LambdaFunction(l.ARN, l.AssumeRoleARN, l.Compression == "zstd")
		var err error
		ep.Concurrency, err = d.LambdaConcurrency()
		return ep, err
	}
	h := d.Address.HTTP
	if h == nil {
		return transport.Endpoint{}, errNoAddress
	}
	return transport.ParseURL(h.URI, h.UseHTTP11 || h.Version == schema.HTTP11)
}

func additionalHeaders(server []transport.Field, deployment map[string]string) []transport.Field {
	names := make([]string, 0, len(deployment))
	for name := range deployment {
		names = append(names, name)
	}
	slices.Sort(names)
	out := make([]transport.Field, 0, len(server)+len(names))
	for _, f := range server {
		if !slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, f.Name) }) {
			out = append(out, f)
		}
	}
	for _, n := range names {
		out = append(out, transport.Field{Name: strings.ToLower(n), Value: deployment[n], NoIndex: true})
	}
	return out
}

// contentTypes are the media types of the protocol versions, from minVersion.
var contentTypes = [...]string{
	"application/vnd.restate.invocation.v5",
	"application/vnd.restate.invocation.v6",
	"application/vnd.restate.invocation.v7",
}

func contentType(version uint32) string { return contentTypes[version-minVersion] }

// appendHeaders appends the header of an attempt's request to dst.
func (p *Pool) appendHeaders(dst []transport.Field, a *attempt) []transport.Field {
	ct := contentType(a.version)
	dst = append(dst,
		transport.Field{Name: "content-type", Value: ct},
		transport.Field{Name: "accept", Value: ct},
		transport.Field{Name: "x-restate-invocation-id", Value: a.printableID, NoIndex: true},
	)
	var subject *string
	if keyed(a.target) {
		key := a.target.GetKey()
		subject = &key
		dst = append(dst, transport.Field{Name: "x-restate-service-key", Value: percentEncode(key), NoIndex: true})
	}
	if c := a.span.Context(); c.Parent != "" {
		dst = append(dst, transport.Field{Name: "traceparent", Value: c.Parent, NoIndex: true},
			transport.Field{Name: "tracestate", Value: c.State, NoIndex: true})
	}
	if p.deps.Signer != nil {
		dst = p.deps.Signer.Headers(dst, p.deps.Now(), a.path, subject)
	}
	return append(dst, a.endpoint.headers...)
}

// percentEncode escapes all bytes but RFC 3986's unreserved ones.
func percentEncode(s string) string {
	plain := true
	for i := 0; i < len(s) && plain; i++ {
		plain = unreserved(s[i])
	}
	if plain {
		return s
	}
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	b.Grow(len(s) + 16)
	for i := range len(s) {
		if c := s[i]; unreserved(c) {
			b.WriteByte(c)
		} else {
			b.WriteByte('%')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		}
	}
	return b.String()
}

func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}
