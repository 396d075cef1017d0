package ingress

import (
	"net/http"
	"strings"
	"unicode/utf8"

	"perdure/control/ident"
	"perdure/control/schema"
)

// routeKind is what a path asks for.
type routeKind uint8

const (
	routeCall      routeKind = iota + 1
	routeSend                // answer when accepted
	routeAttach              // wait for the result of an invocation
	routeOutput              // the result of an invocation, now
	routeLookup              // the id of an invocation
	routeAwakeable           // resolve or reject
	routeHealth
)

// route is a parsed path. Strings are decoded.
type route struct {
	kind routeKind
	// service, key and handler of a call, and of attach and output by workflow or idempotency key.
	service, key, handler string
	keyed                 bool
	// byWorkflow: service and key name a workflow.
	byWorkflow bool
	// byIdempotencyKey: service, key, handler and idempotencyKey name an invocation.
	byIdempotencyKey bool
	idempotencyKey   string
	// id is an invocation's or an awakeable's printable id.
	id string
	// reject of an awakeable instead of resolve.
	reject bool
	// body says that the target of attach, output and lookup stands in the request's body.
	body bool
	// scope of a scoped call; scoped says that there is one.
	scope  string
	scoped bool
}

// Bounds of the number of slashes in a path that can mean anything.
const minSlashes, maxSlashes = 2, 7

// parsePath reads the path of a request: still percent-encoded, without query. A call's handler is not looked up here, but
// whether the service is keyed decides what its segments mean.
func parsePath(method, path string, s *schema.Schema) (route, error) {
	trimmed := strings.Trim(path, "/")
	if n := strings.Count(trimmed, "/") + 1; n < minSlashes || n > maxSlashes {
		return route{}, badPath("/" + trimmed)
	}
	first, rest, _ := strings.Cut(trimmed, "/")
	switch first {
	case "restate":
		return parseOwn(method, rest, s)
	case "openapi":
		return route{}, errNotFound
	}
	r, err := parseTarget(first, rest, s)
	if err != nil {
		return r, err
	}
	return r, onlyCalls(method)
}

func onlyCalls(method string) error {
	if method != http.MethodPost && method != http.MethodGet {
		return errMethod
	}
	return nil
}

func only(method, want string) error {
	if method != want {
		return errMethod
	}
	return nil
}

// parseTarget reads service/handler[/send] or object/key/handler[/send].
func parseTarget(service, rest string, s *schema.Schema) (r route, err error) {
	rev, err := s.Service(service)
	if err != nil {
		return r, err
	}
	isKeyed := rev.Type.Keyed()
	r.kind, r.service, r.keyed = routeCall, service, isKeyed
	if isKeyed {
		var ok bool
		if r.key, rest, ok = strings.Cut(rest, "/"); !ok {
			return r, errTargetPath
		}
		if r.key, err = decodeKey(r.key); err != nil {
			return r, err
		}
	}
	handler, rest, more := strings.Cut(rest, "/")
	switch {
	case handler == "":
		return r, errTargetPath
	case more && rest == "send":
		r.kind = routeSend
	case more:
		return r, errTargetPath
	}
	r.handler = handler
	return r, nil
}

// parseOwn reads what follows /restate/.
func parseOwn(method, path string, s *schema.Schema) (route, error) {
	first, rest, more := strings.Cut(path, "/")
	switch first {
	case "health":
		return route{kind: routeHealth}, only(method, http.MethodGet)
	case "call":
		return parseCall(method, routeCall, rest, s)
	case "send":
		return parseCall(method, routeSend, rest, s)
	case "scope":
		return parseScope(method, rest, s)
	case "attach":
		return parseByID(method, routeAttach, rest, more)
	case "output":
		return parseByID(method, routeOutput, rest, more)
	case "lookup":
		if more {
			return route{}, errAPIPath
		}
		return route{kind: routeLookup, body: true}, only(method, http.MethodPost)
	case "invocation":
		return parseInvocation(method, rest, s)
	case "workflow":
		return parseWorkflow(method, rest)
	case "awakeables", "a":
		return parseAwakeable(method, rest)
	}
	return route{}, errNotFound
}

// parseCall reads service[/key]/handler of the explicit call and send paths.
func parseCall(method string, kind routeKind, path string, s *schema.Schema) (route, error) {
	service, rest, _ := strings.Cut(path, "/")
	if service == "" {
		return route{}, errAPIPath
	}
	r, err := parseTarget(service, rest, s)
	if err == errTargetPath || err == nil && r.kind != routeCall {
		return route{}, errAPIPath
	}
	if err != nil {
		return r, err
	}
	r.kind = kind
	return r, onlyCalls(method)
}

func parseScope(method, path string, s *schema.Schema) (r route, err error) {
	scope, rest, _ := strings.Cut(path, "/")
	verb, rest, ok := strings.Cut(rest, "/")
	kind := routeCall
	if verb == "send" {
		kind = routeSend
	}
	if !ok || verb != "call" && verb != "send" {
		return r, errAPIPath
	}
	if scope, err = decodeKey(scope); err != nil {
		return r, err
	}
	if err := checkScope(scope); err != nil {
		return r, err
	}
	if r, err = parseCall(method, kind, rest, s); err != nil {
		return r, err
	}
	r.scope, r.scoped = scope, true
	return r, nil
}

func parseByID(method string, kind routeKind, id string, more bool) (route, error) {
	if !more {
		return route{kind: kind, body: true}, only(method, http.MethodPost)
	}
	if strings.Contains(id, "/") {
		return route{}, errAPIPath
	}
	return route{kind: kind, id: id}, only(method, http.MethodGet)
}

// parseInvocation reads id/verb or service[/key]/handler/idempotency key/verb.
func parseInvocation(method, path string, s *schema.Schema) (r route, err error) {
	target, verb, ok := cutLast(path)
	if !ok {
		return r, errInvocationPath
	}
	if !strings.Contains(target, "/") {
		r.id = target
	} else if r, err = parseIdempotent(target, s); err != nil {
		return r, err
	}
	if r.kind, err = waitVerb(verb); err != nil {
		return r, err
	}
	return r, only(method, http.MethodGet)
}

// parseIdempotent reads service[/key]/handler/idempotency key.
func parseIdempotent(path string, s *schema.Schema) (r route, err error) {
	parts := strings.Split(path, "/")
	rev, err := s.Service(parts[0])
	if err != nil {
		return r, err
	}
	isKeyed := rev.Type.Keyed()
	want := 3
	if isKeyed {
		want = 4
	}
	if len(parts) != want {
		return r, errInvocationPath
	}
	r.byIdempotencyKey, r.keyed, r.service = true, isKeyed, parts[0]
	if isKeyed {
		if r.key, err = decodeKey(parts[1]); err != nil {
			return r, err
		}
	}
	r.handler = parts[want-2]
	r.idempotencyKey, err = decodeKey(parts[want-1])
	return r, err
}

// parseWorkflow reads name/key/verb.
func parseWorkflow(method, path string) (r route, err error) {
	parts := strings.Split(path, "/")
	if len(parts) != 3 {
		return r, errWorkflowPath
	}
	r = route{byWorkflow: true, service: parts[0], keyed: true}
	if r.key, err = decodeKey(parts[1]); err != nil {
		return r, err
	}
	if r.kind, err = waitVerb(parts[2]); err != nil {
		return r, err
	}
	return r, only(method, http.MethodGet)
}

func waitVerb(verb string) (routeKind, error) {
	switch verb {
	case "attach":
		return routeAttach, nil
	case "output":
		return routeOutput, nil
	}
	return 0, errNotFound
}

// parseAwakeable reads id/verb.
func parseAwakeable(method, path string) (route, error) {
	id, verb, ok := strings.Cut(path, "/")
	if !ok || strings.Contains(verb, "/") {
		return route{}, errAwakeablePath
	}
	if verb != "resolve" && verb != "reject" {
		return route{}, errNotFound
	}
	return route{kind: routeAwakeable, id: id, reject: verb == "reject"}, only(method, http.MethodPost)
}

func cutLast(s string) (before, after string, ok bool) {
	if i := strings.LastIndexByte(s, '/'); i >= 0 {
		return s[:i], s[i+1:], true
	}
	return s, "", false
}

// decodeKey undoes percent-encoding once. A percent sign without two hexadecimal digits stands for itself; the result must be
// UTF-8, because keys are strings to the SDKs.
func decodeKey(s string) (string, error) {
	if strings.IndexByte(s, '%') >= 0 {
		b := make([]byte, 0, len(s))
		for i := 0; i < len(s); i++ {
			if s[i] == '%' && i+2 < len(s) && isHex(s[i+1]) && isHex(s[i+2]) {
				b = append(b, unhex(s[i+1])<<4|unhex(s[i+2]))
				i += 2
				continue
			}
			b = append(b, s[i])
		}
		s = string(b)
	}
	if !utf8.ValidString(s) {
		return "", errKeyUTF8
	}
	if len(s) > ident.MaxName {
		return "", errKeyLong
	}
	return s, nil
}

func isHex(c byte) bool { return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'f' }

func unhex(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c | 0x20 - 'a' + 10
}

const maxScope = 36

func checkScope(scope string) error {
	if scope == "" {
		return badScope("value cannot be empty")
	}
	if len(scope) > maxScope {
		return scopeTooLong(len(scope))
	}
	for i := 0; i < len(scope); i++ {
		c := scope[i]
		if c|0x20 < 'a' || c|0x20 > 'z' {
			if (c < '0' || c > '9') && c != '_' && c != '.' && c != '-' {
				return badScope("value contains characters outside the allowed set [a-zA-Z0-9_.-]")
			}
		}
	}
	return nil
}

// checkLimitKey says what is wrong with a limit key; there are no scoped invocations yet that could have one.
func checkLimitKey(s string) error {
	if strings.Count(s, "/") > 1 {
		return errLimitKeyParts
	}
	return errLimitKeyScope
}
