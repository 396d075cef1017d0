package schema

import (
	"errors"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// ErrNotURI is returned by NormalizeURI for text that no URI can be.
var ErrNotURI = errors.New("The provided uri is not a URI: it has characters that a URI cannot have, or a malformed host or port")

// NormalizeURI checks and normalises the URI of a deployment: lower-case scheme and host, no default port, path at least "/",
// query kept, fragment dropped. Only http and https without user info are accepted; which addresses may be reached is decided when
// a connection is made. The error text says what is wrong with the URI.
func NormalizeURI(s string) (string, error) {
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return "", ErrNotURI
		}
	}
	u, err := url.Parse(s)
	switch {
	case err != nil && strings.Contains(s, "://"):
		return "", ErrNotURI
	case err != nil: // host:port, which reads like a scheme
		u = new(url.URL)
	}
	switch {
	case u.Scheme == "" || u.Host == "" && u.Opaque == "":
		return "", errors.New("The provided uri " + s + " is not absolute, only absolute URIs can be used.")
	case u.Scheme != "http" && u.Scheme != "https" || u.Opaque != "":
		return "", errors.New("The provided uri has the scheme " + u.Scheme + ", only http and https can be used.")
	case u.User != nil:
		return "", errors.New("The provided uri has a user name or password. Put credentials into additional_headers.")
	case u.Hostname() == "":
		return "", errors.New("The provided uri has no host.")
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
			return "", ErrNotURI
		}
	}
	host := strings.ToLower(u.Host)
	if p := u.Port(); p == "" || p == "80" && u.Scheme == "http" || p == "443" && u.Scheme == "https" {
		host = strings.TrimSuffix(strings.TrimSuffix(host, p), ":")
	}
	path := u.EscapedPath()
	if path == "" {
		path = "/"
	}
	n := u.Scheme + "://" + host + path
	if u.RawQuery != "" {
		n += "?" + u.RawQuery
	}
	return n, nil
}

// CheckARN says what is wrong with the ARN of a Lambda function as a deployment: it must be qualified with a version or an
// alias, since a deployment is one version of user code.
func CheckARN(arn string) error {
	parts := strings.SplitN(arn, ":", 8)
	switch {
	case len(parts) == 7 && parts[5] == "function":
		return errUnqualified
	case len(parts) < 8:
		return errors.New("A qualified ARN must have 8 components delimited by `:`")
	case parts[0] != "arn":
		return errors.New("ARN must start with `arn`")
	case parts[2] != "lambda":
		return errors.New("ARN must be for the lambda service")
	case parts[5] != "function":
		return errors.New("ARN must refer to a `function` resource")
	case parts[7] == "":
		return errUnqualified
	}
	for _, i := range []int{1, 3, 4, 6} {
		if parts[i] == "" {
			return errors.New("Partition, service, region, account ID, function name and version must all be non-empty")
		}
	}
	return nil
}

var errUnqualified = errors.New("A qualified ARN needs a version or alias suffix. If you want to use the unpublished version, provide $LATEST and make sure your shell doesn't treat it as a variable")

// same reports whether two registrations mean one deployment: for HTTP equal authority and path, and equal values of the
// routing headers; for Lambda an equal ARN. Scheme, query and other headers do not count.
func same(a Address, aHeaders map[string]string, b Address, bHeaders map[string]string, routing []string) bool {
	switch {
	case a.Lambda != nil && b.Lambda != nil:
		return a.Lambda.ARN == b.Lambda.ARN
	case a.HTTP == nil || b.HTTP == nil || location(a.HTTP.URI) != location(b.HTTP.URI):
		return false
	}
	for _, h := range routing {
		h = strings.ToLower(h)
		av, aok := aHeaders[h]
		bv, bok := bHeaders[h]
		if av != bv || aok != bok {
			return false
		}
	}
	return true
}

// location is authority and path of a normalised URI.
func location(uri string) string {
	_, rest, _ := strings.Cut(uri, "://")
	rest, _, _ = strings.Cut(rest, "?")
	return rest
}

// Find is the registered deployment that a registration of addr with these headers (lower-case names) means, nil when there is
// none; of several the one created last. routing lists the headers by which deployments at one URL differ.
func (s *Schema) Find(addr Address, headers map[string]string, routing []string) *Deployment {
	for i := len(s.ordered) - 1; i >= 0; i-- {
		if d := s.ordered[i]; same(d.Address, d.Headers, addr, headers, routing) {
			return d
		}
	}
	return nil
}

// CheckHeader says why a header cannot be one of those that go with each request to a deployment. Header names are compared
// without case. The error does not contain the value, which may be a secret.
func CheckHeader(name, value string) error {
	lower := strings.ToLower(name)
	switch {
	case !httpguts.ValidHeaderFieldName(name):
		return errors.New("a header cannot have the name '" + name + "'")
	case !httpguts.ValidHeaderFieldValue(value):
		return errors.New("the value of the header '" + name + "' has characters that a header cannot have")
	case lower == "host" && (value == "" || !httpguts.ValidHostHeader(value)):
		return errors.New("the value of the header '" + name + "' is not the name of a host")
	case lower == "te" && strings.EqualFold(value, "trailers"): // the only one that HTTP/2 allows
		return nil
	case ofConnection[lower]:
		return errors.New("the header '" + name + "' is about a connection or about how a body is sent over it, which the server decides itself; a service would refuse the request, or misread it")
	}
	return nil
}

// ofConnection are the headers that HTTP/2 forbids, and content-length, which can only be wrong: bodies differ.
var ofConnection = map[string]bool{
	"connection": true, "content-length": true, "http2-settings": true, "keep-alive": true, "proxy-connection": true,
	"te": true, "transfer-encoding": true, "upgrade": true,
}
